//! Containers of LXC, by its own programs.

use super::{
    AFTER_KILL, BRIEFLY, CommandLine, Execute, Found, Output, Runtime, RuntimeError, State, kill_by, refused, running,
    startable, understood,
};
use crate::model::LxcSpec;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A container of LXC.
pub(super) struct Lxc<'a> {
    pub spec: &'a LxcSpec,
    pub execute: &'a dyn Execute,
}

/// The command lines.
impl Lxc<'_> {
    fn line(&self, program: &str, more: &[&str]) -> CommandLine {
        let place = [OsString::from("-P"), self.spec.path.clone().into(), "-n".into(), self.spec.id.clone().into()];
        CommandLine::new(program, place.into_iter().chain(more.iter().map(OsString::from)))
    }

    /// LXC writes the id of the process that stays beside the container to `pid_file`, before it starts the container.
    pub(super) fn start_line(&self, pid_file: &Path, log: &Path) -> CommandLine {
        let mut line = self.line("lxc-start", &["-d", "-l", "ERROR"]);
        line.arguments.extend(["-p".into(), pid_file.into(), "-o".into(), log.into()]);
        line.output(Output::Log(log.to_owned()))
    }

    /// The signal is that of `lxc.signal.halt`, which the container's first program understands: SIGTERM would restart a
    /// systemd instead of ending it.
    pub(super) fn stop_line(&self, patience: Duration) -> CommandLine {
        self.line("lxc-stop", &["-t", &patience.as_secs().to_string()])
    }

    pub(super) fn kill_line(&self) -> CommandLine {
        self.line("lxc-stop", &["-k"])
    }

    pub(super) fn state_line(&self) -> CommandLine {
        self.line("lxc-info", &["-s", "-p"])
    }

    /// What is executed has nothing of this process' environment.
    pub(super) fn list_line(&self) -> CommandLine {
        let place = [OsString::from("-P"), self.spec.path.clone().into()];
        CommandLine::new("lxc-ls", place.into_iter().chain(["-f", "-F", "NAME,STATE,PID"].map(OsString::from)))
    }
}

/// A state and a process id, in LXC's words.
fn state(state: &str, pid: Option<&str>) -> Option<State> {
    let pid = || pid?.parse().ok().filter(|pid| *pid > 0);
    match state {
        "STOPPED" => Some(State::Stopped),
        "RUNNING" | "FREEZING" | "FROZEN" | "THAWED" => pid().map(State::Running),
        "STARTING" | "STOPPING" | "ABORTING" => Some(State::Changing),
        _ => None,
    }
}

/// What `lxc-info` answers: a line for each thing that it was asked for.
pub(super) fn read_state(text: &str) -> Option<State> {
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    };
    state(field("State")?, field("PID"))
}

/// What `lxc-ls -f` answers: a table with a head.
pub(super) fn read_list(text: &str) -> Option<Vec<Found>> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[id, word, pid] = words.as_slice() else { return None };
        Some(Found { id: id.to_owned(), state: state(word, Some(pid))? })
    };
    text.lines().skip(1).map(row).collect()
}

/// How many messages of a log are told: the first has the cause, and the last advice.
const TOLD: usize = 3;

/// The messages of LXC's log, which has the program, the container, a time, and a place in LXC's source in each line.
pub(super) fn read_log(text: &str) -> String {
    let messages: Vec<&str> = text.lines().filter_map(|line| line.splitn(3, " - ").nth(2)).take(TOLD).collect();
    messages.join("; ")
}

impl Runtime for Lxc<'_> {
    fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let line = self.list_line();
        let finished = self.execute.run(&line, BRIEFLY)?;
        understood(line, finished, read_list)
    }

    fn state(&self) -> Result<State, RuntimeError> {
        let line = self.state_line();
        let finished = self.execute.run(&line, BRIEFLY)?;
        if finished.code != Some(0) && finished.errors.contains("doesn't exist") {
            return Ok(State::Absent);
        }
        understood(line, finished, read_state)
    }

    fn start(&self, within: Duration) -> Result<u32, RuntimeError> {
        startable(self.state()?)?;
        let (pid_file, log) = (self.execute.scratch("pid"), self.execute.scratch("log"));
        let line = self.start_line(&pid_file, &log);
        match self.execute.run(&line, within) {
            Ok(finished) if finished.code == Some(0) => {}
            Ok(finished) => {
                // LXC does not say what a hook has said.
                let hook = finished.answer.trim();
                let errors = if hook.is_empty() { read_log(&finished.errors) } else { hook.to_owned() };
                return Err(refused(&line, &super::Finished { errors, ..finished }));
            }
            Err(e) => {
                // The process that stays beside the container is not one that the runtime's program waits for. When it
                // ends, the container does.
                self.execute.kill_written(&pid_file);
                return Err(e);
            }
        }
        match self.state()? {
            State::Running(pid) => Ok(pid),
            State::Absent | State::Stopped | State::Changing => Err(RuntimeError::AtOnce),
        }
    }

    fn stop(&self, patience: Duration) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        kill_by(self.execute, &self.stop_line(patience), pid, patience + AFTER_KILL)
    }

    fn kill(&self) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        kill_by(self.execute, &self.kill_line(), pid, BRIEFLY)
    }

    fn execute(&self) -> &dyn Execute {
        self.execute
    }

    fn exec_line(&self, command: &[OsString]) -> Result<(CommandLine, Option<PathBuf>), RuntimeError> {
        let mut line = self.line("lxc-attach", &["--clear-env", "--"]);
        line.arguments.extend_from_slice(command);
        // LXC does not write down what it has started, and ends with it, whatever else of it is left.
        Ok((line, None))
    }

    /// LXC keeps nothing of a container that has ended.
    fn clear(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}
