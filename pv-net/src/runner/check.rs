//! Runs the health check that a container's `run.json` declares as a command. A caller only names the container.

use super::containers::Containers;
use super::outcome::refused;
use super::protocol::Checked;
use crate::failure::{Failure, Kind};
use crate::model::ContainerName;
use crate::runtime::start::{Kept, RuntimeError, runtime};

/// Most bytes that are kept of what a check says.
const MOST_OUTPUT: usize = 4096;

impl Containers {
    /// Runs a container's health check beside all operations on it: one that hangs keeps nobody from stopping it.
    ///
    /// # Errors
    /// When the container has no such check, does not run, or is being checked already.
    pub(super) fn check(&self, name: &ContainerName) -> Result<Checked, Failure> {
        let (container, startable) = self.startable(name)?;
        let Some(health) = container.health else {
            let why = format!("container {name}: its run.json has no health check that is a command");
            let help = "write \"health_check\": {\"type\": \"exec\", \"command\": [\"PROGRAM\", …]} into it";
            return Err(Failure::new(Kind::Usage, why).help(help));
        };
        let _turn = self.begin_check(name)?;
        let programs = self.programs(name);
        let mut kept = Kept::new(MOST_OUTPUT);
        let command: Vec<_> = health.command.into_iter().map(Into::into).collect();
        let done = runtime(&startable.runtime, &programs).exec(&command, Some(health.timeout), &mut kept);
        let (exit_status, is_late) = match done {
            Ok(code) => (code, false),
            Err(RuntimeError::Late { .. }) => (None, true),
            Err(e) => return Err(refused(name, &e)),
        };
        Ok(Checked { exit_status, is_late, output: kept.text() })
    }
}
