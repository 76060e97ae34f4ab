//! Starts a container outside of the device's network, or not at all.

use super::containers::Containers;
use super::marks::Mark;
use super::outcome::{refused, shares_network};
use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, RunStatus};
use crate::runtime::start::{Runtime, RuntimeError};
use std::time::Duration;

/// How long a start may take.
pub(super) const START: Duration = Duration::from_secs(30);

impl Containers {
    /// Starts a container, and checks where it runs. A mark from before the start until after the check tells a later
    /// runner, if this one is killed in between, that the check is still to be done.
    ///
    /// # Errors
    /// When the mark cannot be made, it does not start, or it was killed since it is in the device's network.
    pub(super) fn launch(&self, name: &ContainerName, runtime: &dyn Runtime) -> Result<RunStatus, Failure> {
        let was_unchecked = Mark::Unchecked.is_on(self.paths(), name);
        Mark::Unchecked.put(self.paths(), name).map_err(|failure| failure.about(format!("container {name}")))?;
        match runtime.start(START) {
            // It is another start's, which may be that of a runner that was killed.
            Err(e @ (RuntimeError::Running(_) | RuntimeError::Changing)) => {
                if !was_unchecked {
                    Mark::Unchecked.remove(self.paths(), name);
                }
                Err(refused(name, &e))
            }
            started => self.checked(name, runtime, started),
        }
    }

    /// The state of a container that pv-net has started. One that is in the device's network is killed.
    ///
    /// # Errors
    /// When it has not started, or is killed.
    pub(super) fn checked(
        &self,
        name: &ContainerName,
        runtime: &dyn Runtime,
        started: Result<u32, RuntimeError>,
    ) -> Result<RunStatus, Failure> {
        let done = started.map_err(|e| refused(name, &e)).and_then(|pid| is_outside(name, runtime, pid));
        // One that could not be killed is to be killed by the next look at it.
        if done.is_ok() || matches!(runtime.pid(), Ok(None)) {
            Mark::Unchecked.remove(self.paths(), name);
        }
        done
    }
}

/// The state of a container that runs outside of the device's network. One that runs in it is killed.
fn is_outside(name: &ContainerName, runtime: &dyn Runtime, pid: u32) -> Result<RunStatus, Failure> {
    if !shares_network(pid) {
        return Ok(RunStatus::running(pid));
    }
    let killed = runtime.kill();
    let failure = Failure::new(Kind::Internal, format!("container {name}: it has started in the device's network"));
    let failure = failure.help("remove what gives it that from its runtime's configuration");
    Err(match killed {
        Ok(()) => failure,
        Err(e) => failure.and(refused(name, &e)),
    })
}
