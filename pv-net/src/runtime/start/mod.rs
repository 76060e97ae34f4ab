//! Starting and stopping containers: the [`Runtime`] trait, and the runtimes that have it. Pure: which command lines a
//! runtime is called by, and what its answers mean. [`Execute`] calls them.

mod error;
mod inside;
mod lxc;
mod oci;
#[cfg(test)]
mod tests;
mod wasm;

use super::Call;
use crate::model::{Ending, NetnsRef, RuntimeSpec};
use lxc::Lxc;
use oci::Oci;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wasm::Wasm;

pub use error::RuntimeError;
pub use inside::{Inside, Kept, Stream, Take};
pub use wasm::LAUNCH;

/// How long a runtime may take to answer, or to do what takes no time: it reads a file or asks a process.
const BRIEFLY: Duration = Duration::from_secs(10);
/// How long the kernel may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A program and its arguments. No shell reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// An absolute path, or a name that is looked for in the usual directories.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What becomes of its output.
    pub output: Output,
}

/// What becomes of a program's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is the program's answer.
    Answer,
    /// The container gets it too, and keeps it open as long as it runs, so nobody reads it. The runtime writes its own
    /// errors to this file.
    Log(PathBuf),
    /// The container has the runner's own standard error for its output: the journal, for a runner that systemd starts.
    Runner,
}

/// How a container is started whose runtime makes no network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// pv-net, which makes the namespace, has it attached, and then becomes the runtime.
    pub call: Call,
    /// The container's `resolv.conf`, which need not exist.
    pub resolv_conf: PathBuf,
}

impl CommandLine {
    fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program: program.into(), arguments, output: Output::Answer }
    }

    fn output(self, output: Output) -> Self {
        Self { output, ..self }
    }
}

/// How a program has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status; none when a signal has ended it.
    pub code: Option<i32>,
    /// What it has answered; of a start, what a hook of pv-net has said of its failure.
    pub answer: String,
    /// What it has said of errors, or what is in its log.
    pub errors: String,
}

/// Calls programs, and waits for processes.
pub trait Execute {
    /// Runs a program to its end. One that takes longer is killed, with all that it has started and not set free.
    ///
    /// # Errors
    /// When it cannot be started, or takes too long.
    fn run(&self, line: &CommandLine, within: Duration) -> Result<Finished, RuntimeError>;

    /// Runs a runtime's program that runs another one inside the container, and returns the exit status. At the time
    /// limit both are killed, with all that the other one has started and not set free.
    ///
    /// # Errors
    /// When it cannot be started, takes too long, or nobody takes its output.
    fn run_inside(
        &self,
        inside: &Inside,
        within: Option<Duration>,
        take: &mut dyn Take,
    ) -> Result<Option<i32>, RuntimeError>;

    /// Waits until a process has ended. Returns whether it has, within that time.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn ended(&self, pid: u32, within: Duration) -> io::Result<bool>;

    /// Waits until a process has ended, for ever unless `within` is given, and returns how it has.
    ///
    /// # Errors
    /// When the kernel does not say whether it has ended.
    fn watch(&self, pid: u32, within: Option<Duration>) -> io::Result<Waited>;

    /// A file for what a runtime writes while it starts the container.
    fn scratch(&self, what: &str) -> PathBuf;

    /// A file for what a runtime writes during one call, and which no other call uses.
    fn fresh(&self, what: &str) -> PathBuf;

    /// How a container is started whose runtime makes no network namespace.
    fn launcher(&self) -> &Launcher;

    /// The process that a launcher has written down in this file, if that very process has not ended.
    fn written(&self, file: &Path) -> Option<u32>;

    /// Asks a process and its process group to end, or kills them.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn end(&self, pid: u32, by: End) -> io::Result<()>;

    /// Removes a file for what is written during a start. It need not exist.
    ///
    /// # Errors
    /// When it stays.
    fn remove(&self, file: &Path) -> io::Result<()>;

    /// Kills the process that has written its id to this file, and its process group. Without the file there is nobody.
    fn kill_written(&self, file: &Path);
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is asked to end, by SIGTERM.
    Ask,
    /// It is killed.
    Kill,
}

/// What a runtime says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It knows no such container.
    Absent,
    /// It does not run.
    Stopped,
    /// It is being started or stopped.
    Changing,
    /// It runs, or is paused; its first process.
    Running(u32),
}

/// What comes of waiting for the end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It goes on.
    Runs,
    /// It has ended.
    Ended(Ending),
}

/// A container that a runtime knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the runtime knows it by.
    pub id: String,
    /// Its state.
    pub state: State,
}

/// One container in its runtime. Calls wait until they are done.
pub trait Runtime {
    /// All containers that this runtime knows, in the place where this one is.
    ///
    /// # Errors
    /// When the runtime does not say.
    fn list(&self) -> Result<Vec<Found>, RuntimeError>;

    /// The container's state.
    ///
    /// # Errors
    /// When the runtime does not say.
    fn state(&self) -> Result<State, RuntimeError>;

    /// Starts the container, which must not run, and returns its first process. When it takes longer than `within`, what
    /// has been started is killed.
    ///
    /// # Errors
    /// When it does not run afterwards.
    fn start(&self, within: Duration) -> Result<u32, RuntimeError>;

    /// Asks the container to end, and kills it after `patience`.
    ///
    /// # Errors
    /// When it does not run, or goes on.
    fn stop(&self, patience: Duration) -> Result<(), RuntimeError>;

    /// Kills the container.
    ///
    /// # Errors
    /// When it does not run, or goes on.
    fn kill(&self) -> Result<(), RuntimeError>;

    /// What calls the runtime's programs.
    fn execute(&self) -> &dyn Execute;

    /// The line by which the runtime runs a program inside the container, and the file to which it writes that one's id, if
    /// it does.
    ///
    /// # Errors
    /// When no programs can be run in it.
    fn exec_line(&self, command: &[OsString]) -> Result<(CommandLine, Option<PathBuf>), RuntimeError>;

    /// Removes what the runtime keeps of a container that has ended, so that it can start again.
    ///
    /// # Errors
    /// When the runtime refuses.
    fn clear(&self) -> Result<(), RuntimeError>;

    /// The container's first process, while it runs.
    ///
    /// # Errors
    /// When the runtime does not say.
    fn pid(&self) -> Result<Option<u32>, RuntimeError> {
        match self.state()? {
            State::Running(pid) => Ok(Some(pid)),
            State::Absent | State::Stopped | State::Changing => Ok(None),
        }
    }

    /// Runs a program inside the container, without input, and returns its exit status. One that a signal has ended has 128
    /// and the signal's number for that; there is none when the runtime's own program was ended by one. What it says is
    /// taken by `take`. After `within` it is killed, with all that it has started and that has not left its session.
    ///
    /// # Errors
    /// When the container does not run, no programs can be run in it, the program takes longer, or `take` fails.
    fn exec(
        &self,
        command: &[OsString],
        within: Option<Duration>,
        take: &mut dyn Take,
    ) -> Result<Option<i32>, RuntimeError> {
        let (line, pid_file) = self.exec_line(command)?;
        let first = running(self.state()?)?;
        self.execute().run_inside(&Inside { line, first, pid_file }, within, take)
    }

    /// Waits until the container has ended, for ever unless `within` is given. One that does not run has ended.
    ///
    /// # Errors
    /// When the runtime or the kernel does not say.
    fn wait(&self, within: Option<Duration>) -> Result<Waited, RuntimeError> {
        let Some(pid) = self.pid()? else { return Ok(Waited::Ended(Ending::default())) };
        self.execute().watch(pid, within).map_err(|source| RuntimeError::Process { pid, source })
    }

    /// The container's network namespace, while it runs.
    ///
    /// # Errors
    /// When the runtime does not say.
    fn namespace(&self) -> Result<Option<NetnsRef>, RuntimeError> {
        Ok(self.pid()?.map(NetnsRef::Pid))
    }
}

/// The container that `spec` describes, in its runtime.
#[must_use]
pub fn runtime<'a>(spec: &'a RuntimeSpec, execute: &'a dyn Execute) -> Box<dyn Runtime + 'a> {
    match spec {
        RuntimeSpec::Lxc(spec) => Box::new(Lxc { spec, execute }),
        RuntimeSpec::Oci(spec) => Box::new(Oci { spec, execute }),
        RuntimeSpec::Wasm(spec) => Box::new(Wasm { spec, execute }),
    }
}

/// Fails unless a container in this state can be started.
fn startable(state: State) -> Result<(), RuntimeError> {
    match state {
        State::Absent | State::Stopped => Ok(()),
        State::Changing => Err(RuntimeError::Changing),
        State::Running(pid) => Err(RuntimeError::Running(pid)),
    }
}

/// The first process of a container in this state.
fn running(state: State) -> Result<u32, RuntimeError> {
    match state {
        State::Running(pid) => Ok(pid),
        State::Changing => Err(RuntimeError::Changing),
        State::Absent | State::Stopped => Err(RuntimeError::NotRunning),
    }
}

/// Waits until a process has ended. Returns whether it has, within that time.
fn has_ended(execute: &dyn Execute, pid: u32, within: Duration) -> Result<bool, RuntimeError> {
    execute.ended(pid, within).map_err(|source| RuntimeError::Process { pid, source })
}

/// Calls the runtime to kill a container, and waits for the end of its first process. A runtime refuses to kill one that
/// has ended by itself meanwhile.
fn kill_by(execute: &dyn Execute, line: &CommandLine, pid: u32, within: Duration) -> Result<(), RuntimeError> {
    let finished = execute.run(line, within)?;
    if finished.code != Some(0) && !has_ended(execute, pid, Duration::ZERO)? {
        return Err(refused(line, &finished));
    }
    if has_ended(execute, pid, AFTER_KILL)? { Ok(()) } else { Err(RuntimeError::Survives(pid)) }
}

/// What the program has answered, if it has ended well.
fn understood<T>(
    line: CommandLine,
    finished: Finished,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, RuntimeError> {
    if finished.code != Some(0) {
        return Err(refused(&line, &finished));
    }
    read(&finished.answer).ok_or(RuntimeError::Answer { program: line.program, answer: finished.answer })
}

fn refused(line: &CommandLine, finished: &Finished) -> RuntimeError {
    let said = finished.errors.trim();
    let said = match (said.is_empty(), finished.code) {
        (false, _) => said.to_owned(),
        (true, Some(code)) => format!("exit status {code}"),
        (true, None) => "ended by a signal".to_owned(),
    };
    RuntimeError::Refused { program: line.program.clone(), said }
}
