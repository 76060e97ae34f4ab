//! Containers of OCI runtimes, by the command line of runc, which crun and others have too.

use super::{
    BRIEFLY, CommandLine, Execute, Found, Output, Runtime, RuntimeError, State, has_ended, kill_by, refused, running,
    startable, understood,
};
use crate::model::OciSpec;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A container of an OCI runtime.
pub(super) struct Oci<'a> {
    pub spec: &'a OciSpec,
    pub execute: &'a dyn Execute,
}

/// The command lines.
impl Oci<'_> {
    fn line(&self, words: &[&str]) -> CommandLine {
        let root = self.spec.root.iter().flat_map(|root| [OsString::from("--root"), root.into()]);
        CommandLine::new(&self.spec.program, root.chain(words.iter().map(OsString::from)))
    }

    pub(super) fn start_line(&self, log: &Path) -> CommandLine {
        let mut line = self.line(&["--log-format", "json", "--log"]);
        line.arguments.extend([OsString::from(log), "run".into(), "--detach".into(), "--bundle".into()]);
        line.arguments.extend([OsString::from(&self.spec.bundle), OsString::from(&self.spec.id)]);
        line.output(Output::Log(log.to_owned()))
    }

    pub(super) fn signal_line(&self, signal: &str) -> CommandLine {
        self.line(&["kill", &self.spec.id, signal])
    }

    /// A runtime refuses this while the container runs.
    pub(super) fn delete_line(&self) -> CommandLine {
        self.line(&["delete", &self.spec.id])
    }

    /// Kills it, if it runs.
    pub(super) fn force_line(&self) -> CommandLine {
        self.line(&["delete", "--force", &self.spec.id])
    }

    fn delete(&self, line: &CommandLine) -> Result<(), RuntimeError> {
        let finished = self.execute.run(line, BRIEFLY)?;
        if finished.code == Some(0) || is_unknown(&finished.errors) { Ok(()) } else { Err(refused(line, &finished)) }
    }

    pub(super) fn state_line(&self) -> CommandLine {
        self.line(&["state", &self.spec.id])
    }

    /// Behind the container's id nothing is taken for a flag.
    pub(super) fn list_line(&self) -> CommandLine {
        self.line(&["list", "--format", "json"])
    }
}

/// What `state` and `list` answer of a container (runtime specification, "State"). crun lists a pid for each, runc 0
/// for one that has ended.
#[derive(Deserialize)]
struct Told {
    id: String,
    status: String,
    #[serde(default)]
    pid: u32,
}

impl Told {
    fn state(&self) -> State {
        match (self.status.as_str(), self.pid) {
            ("running" | "paused", pid) if pid > 0 => State::Running(pid),
            // One that was created only waits for its start, and one that is being created has no process yet.
            ("created" | "creating", _) => State::Changing,
            _ => State::Stopped,
        }
    }
}

/// What `state` answers.
pub(super) fn read_state(text: &str) -> Option<State> {
    serde_json::from_str::<Told>(text).ok().map(|told| told.state())
}

/// What `list` answers; runc says `null` for none.
pub(super) fn read_list(text: &str) -> Option<Vec<Found>> {
    let all: Option<Vec<Told>> = serde_json::from_str(text).ok()?;
    Some(all.unwrap_or_default().into_iter().map(|told| Found { state: told.state(), id: told.id }).collect())
}

/// The errors of a log in JSON.
pub(super) fn read_log(text: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let errors: Vec<String> = lines.filter(|line| line.level == "error").map(|line| line.msg).collect();
    errors.join("; ")
}

/// Whether a runtime says that it knows no such container: runc that it does not exist, crun that its file does not.
fn is_unknown(errors: &str) -> bool {
    errors.contains("does not exist") || errors.contains("No such file or directory")
}

impl Runtime for Oci<'_> {
    fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let line = self.list_line();
        let finished = self.execute.run(&line, BRIEFLY)?;
        understood(line, finished, read_list)
    }

    fn state(&self) -> Result<State, RuntimeError> {
        let line = self.state_line();
        let finished = self.execute.run(&line, BRIEFLY)?;
        if finished.code != Some(0) && is_unknown(&finished.errors) {
            return Ok(State::Absent);
        }
        understood(line, finished, read_state)
    }

    fn start(&self, within: Duration) -> Result<u32, RuntimeError> {
        let state = self.state()?;
        startable(state)?;
        if state == State::Stopped {
            self.clear()?;
        }
        let line = self.start_line(&self.execute.scratch("log"));
        let failed = match self.execute.run(&line, within) {
            Ok(finished) if finished.code == Some(0) => match self.state()? {
                State::Running(pid) => return Ok(pid),
                State::Absent | State::Stopped | State::Changing => RuntimeError::AtOnce,
            },
            Ok(finished) => {
                let errors = read_log(&finished.errors);
                refused(&line, &super::Finished { errors, ..finished })
            }
            Err(e) => e,
        };
        // What a failed start has left keeps the next one from beginning. The first error is the one to tell.
        if let Err(e) = self.delete(&self.force_line()) {
            tracing::debug!(container = %self.spec.id, error = %e, "not cleared after a failed start");
        }
        Err(failed)
    }

    fn stop(&self, patience: Duration) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        let line = self.signal_line("TERM");
        let finished = self.execute.run(&line, BRIEFLY)?;
        if finished.code != Some(0) && !has_ended(self.execute, pid, Duration::ZERO)? {
            return Err(refused(&line, &finished));
        }
        if has_ended(self.execute, pid, patience)? { self.clear() } else { self.kill() }
    }

    fn kill(&self) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        kill_by(self.execute, &self.signal_line("KILL"), pid, BRIEFLY)?;
        self.clear()
    }

    fn execute(&self) -> &dyn Execute {
        self.execute
    }

    fn exec_line(&self, command: &[OsString]) -> Result<(CommandLine, Option<PathBuf>), RuntimeError> {
        // runc goes on after the process that it has started, as long as another one has that one's output.
        let pid_file = self.execute.fresh("exec");
        let mut line = self.line(&["exec", "--pid-file"]);
        line.arguments.extend([OsString::from(&pid_file), OsString::from(&self.spec.id)]);
        line.arguments.extend_from_slice(command);
        Ok((line, Some(pid_file)))
    }

    fn clear(&self) -> Result<(), RuntimeError> {
        self.delete(&self.delete_line())
    }
}
