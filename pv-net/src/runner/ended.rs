//! The ends of containers: waits for that of each first process, and notes it.

use super::containers::{Containers, Known};
use super::outcome::in_words;
use super::process::{Process, ending};
use crate::model::{ContainerName, RunState, RunStatus, RuntimeSpec};

impl Containers {
    /// Waits on a thread of its own for the end of a container's first process.
    pub(super) fn watch(&self, name: &ContainerName, pid: u32, spec: RuntimeSpec) {
        let process = Process::open(pid);
        let (containers, name) = (self.clone(), name.clone());
        let wait = move || {
            let watched = process.and_then(|process| {
                if let Some(process) = &process {
                    process.ended(None)?;
                }
                Ok(process)
            });
            match watched {
                Ok(process) => containers.has_ended(&name, pid, &spec, process.as_ref()),
                Err(e) => tracing::error!(container = %name, error = %e, "its end will not be noticed"),
            }
        };
        if let Err(e) = std::thread::Builder::new().name("pv-net-watch".to_owned()).spawn(wait) {
            tracing::error!(error = %e, "a container's end will not be noticed");
        }
    }

    /// Notes that a container's first process has ended. Nobody has asked for that unless an operation that ends it is
    /// under way.
    fn has_ended(&self, name: &ContainerName, pid: u32, spec: &RuntimeSpec, process: Option<&Process>) {
        let is_mine = |known: &Known| known.all.get(name).is_some_and(|entry| entry.status.pid == Some(pid));
        {
            let mut known = self.known();
            if !is_mine(&known) {
                return;
            }
            let (is_busy, is_asked) =
                known.all.get(name).map_or((false, false), |entry| (entry.is_busy, entry.is_ending));
            // At once, since the daemon waits for it; how it has ended is told as soon as the kernel says.
            let state = if is_busy { RunState::Changing } else { RunState::Stopped };
            self.note(&mut known, name, RunStatus::new(state));
            if is_asked {
                return;
            }
        }
        let how = process.and_then(Process::how);
        let status = match how {
            Some(how) if how.success() => RunStatus::stopped(),
            how => RunStatus::failed(in_words(how)),
        };
        let status = RunStatus { ending: ending(how), ..status };
        tracing::warn!(container = %name, pid, why = status.why, "ended");
        let busy = self.begin_after_all(name);
        // It may have been started again before this operation's turn.
        let now = self.status(name);
        if now.state == RunState::Stopped && now.why.is_none() {
            if let Err(e) = self.with_runtime(name, spec, |runtime| runtime.clear()) {
                tracing::warn!(container = %name, error = %e, "its runtime keeps something of it");
            }
            busy.end(status, spec);
        }
    }
}
