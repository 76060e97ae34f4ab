//! What runtimes say of containers that run already, or are just being started by somebody else.

use super::containers::Containers;
use super::launch::START;
use super::marks::Mark;
use super::outcome::{after_failure, refused, shares_network};
use super::process::is_gone;
use crate::config::load;
use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, RunState, RunStatus};
use crate::runtime::start::{Runtime, State};
use std::time::{Duration, Instant};

/// How many runtimes are asked at the same time when the runner starts.
const LOOKS: usize = 16;
/// When a runtime is asked once more about a container that is just being started or stopped.
const AGAIN: Duration = Duration::from_millis(500);

impl Containers {
    /// Asks the runtimes which containers run, and watches these.
    ///
    /// # Errors
    /// When the directory of declared containers cannot be read.
    pub(super) fn find(&self) -> Result<(), Failure> {
        let declared = load::containers(&self.paths().containers, self.paths().form())?;
        let containers = declared.into_iter().filter_map(|declared| declared.container.ok());
        let all: Vec<ContainerName> =
            containers.filter(|container| container.startable.is_some()).map(|container| container.name).collect();
        let find = |name: &ContainerName| match self.look(name) {
            Ok(status) if status.state == RunState::Changing => self.look_later(name),
            Ok(_) => {}
            Err(failure) => self.note(&mut self.known(), name, RunStatus::failed(failure.line())),
        };
        // One that does not answer holds up few others.
        for some in all.chunks(LOOKS) {
            std::thread::scope(|scope| {
                for name in some {
                    let named = std::thread::Builder::new().name("pv-net-find".to_owned());
                    if named.spawn_scoped(scope, || find(name)).is_err() {
                        find(name);
                    }
                }
            });
        }
        Ok(())
    }

    /// Asks about a container on a thread of its own until its state is known. A runner that was killed may have been
    /// starting it: then this is the check after that start.
    fn look_later(&self, name: &ContainerName) {
        let (containers, name) = (self.clone(), name.clone());
        let look = move || {
            if let Err(failure) = containers.look_until_settled(&name) {
                tracing::warn!(container = %name, error = %failure, "it is not known whether it runs");
            }
        };
        if let Err(e) = std::thread::Builder::new().name("pv-net-look".to_owned()).spawn(look) {
            tracing::error!(error = %e, "it is not known whether a container runs");
        }
    }

    /// Asks about a container until nobody is starting or stopping it any more, for as long as a start may take.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub(super) fn look_until_settled(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        let until = Instant::now() + START;
        loop {
            let status = self.look(name)?;
            if status.state != RunState::Changing || Instant::now() >= until {
                return Ok(status);
            }
            // Nobody unparks this thread: it is a wait.
            std::thread::park_timeout(AGAIN);
        }
    }

    /// Asks the runtime about a container. One that runs is watched.
    ///
    /// # Errors
    /// When it cannot be started by pv-net, or its runtime does not say.
    pub(super) fn look(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        let (_, startable) = self.startable(name)?;
        let busy = self.begin(name)?;
        let status = self.with_runtime(name, &startable.runtime, |runtime| self.found(name, runtime))?;
        Ok(busy.end(status, &startable.runtime))
    }

    /// The state of a container, after its runtime's answer.
    fn found(&self, name: &ContainerName, runtime: &dyn Runtime) -> Result<RunStatus, Failure> {
        let before = self.status(name);
        Ok(match runtime.state().map_err(|e| refused(name, &e))? {
            // The runner that has started it was killed before it has looked where it is.
            State::Running(pid) if Mark::Unchecked.is_on(self.paths(), name) => {
                self.checked(name, runtime, Ok(pid)).unwrap_or_else(|failure| {
                    tracing::warn!(container = %name, error = %failure, "killed");
                    after_failure(name, &failure, before, runtime)
                })
            }
            // Somebody else has started it so.
            State::Running(pid) if shares_network(pid) => {
                RunStatus { why: Some("it runs in the device's network".to_owned()), ..RunStatus::running(pid) }
            }
            State::Running(pid) => RunStatus::running(pid),
            State::Changing => {
                let why = "somebody else is starting or stopping it".to_owned();
                RunStatus { why: Some(why), ..RunStatus::new(RunState::Changing) }
            }
            State::Absent | State::Stopped => {
                Mark::Unchecked.remove(self.paths(), name);
                // How it has ended is known better from before.
                let is_known = before.pid.is_none() && before.state != RunState::Changing;
                if is_known { before } else { RunStatus::stopped() }
            }
        })
    }

    /// Answers whether the process `pid` of a container is gone, and if it is not, or there is none to ask about, asks the
    /// runtime about the container. The runtime need not answer for a process that is gone.
    ///
    /// # Errors
    /// A usage error if the container is not one that pv-net can start; another if its runtime does not say, which may be
    /// different later.
    pub(super) fn look_for(&self, name: &ContainerName, pid: Option<u32>) -> Result<(RunStatus, bool), Failure> {
        self.startable(name)?;
        if pid.is_some_and(is_gone) {
            return Ok((self.status(name), true));
        }
        let status = self.look(name).map_err(|failure| Failure { kind: Kind::Internal, ..failure })?;
        Ok((status, pid.is_some_and(is_gone)))
    }
}
