//! A container's runtime for commands of root's, without the runner: they execute what their caller says, and no request to
//! the runner may. They start and stop nothing, so they are no operations, and wait for none.

use super::execute::Programs;
use super::marks::directory;
use super::network::{self, Hooks};
use super::outcome;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::kernel::own_dir;
use crate::model::{ContainerKind, ContainerName, RuntimeSpec};
use crate::runtime::start::{RuntimeError, Take, Waited, runtime};
use nix::unistd::geteuid;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A declared container, and what calls its runtime.
pub struct Direct {
    name: ContainerName,
    spec: RuntimeSpec,
    programs: Programs,
}

impl Direct {
    /// The container of this name.
    ///
    /// # Errors
    /// When the caller is not root, the container is not declared, or pv-net knows no runtime of it.
    pub fn new(paths: &Paths, name: &str) -> Result<Self, Failure> {
        let name: ContainerName = name.parse().map_err(|e| network::failed(format!("container {name:?}"), e))?;
        if !geteuid().is_root() {
            let why = format!("container {name}: only root may use its runtime");
            return Err(Failure::new(Kind::Usage, why).help("run the command as root"));
        }
        let container = network::declared(paths, &name)?;
        if let (ContainerKind::Netns, Some(netns)) = (container.kind, &container.netns) {
            let why = "somebody else runs it, and pv-net knows only its network namespace";
            let help = format!(
                "ask whoever has started it, or use the device's programs in its network: nsenter --net={}",
                netns.display()
            );
            return Err(network::failed(format!("container {name}"), why).help(help));
        }
        let (_, startable) = network::startable(paths, &name)?;
        own_dir::make(&directory(paths), super::DIR_MODE)?;
        let launcher = Hooks::of_this_program(paths)?.launcher(&name);
        let programs = Programs::new(&directory(paths), name.as_str(), launcher);
        Ok(Self { name, spec: startable.runtime, programs })
    }

    /// Has what is run inside the container killed when this file ends.
    #[must_use]
    pub fn until(self, given_up: OwnedFd) -> Self {
        Self { programs: self.programs.until(given_up), ..self }
    }

    /// Runs a command inside the container, as [`Runtime::exec`](crate::runtime::start::Runtime::exec).
    ///
    /// # Errors
    /// When it cannot be run, or is killed.
    pub fn exec(
        &self,
        command: &[OsString],
        within: Option<Duration>,
        take: &mut dyn Take,
    ) -> Result<Option<i32>, RuntimeError> {
        runtime(&self.spec, &self.programs).exec(command, within, take)
    }

    /// Waits for the container's end, as [`Runtime::wait`](crate::runtime::start::Runtime::wait).
    ///
    /// # Errors
    /// When its runtime or the kernel does not say.
    pub fn wait(&self, within: Option<Duration>) -> Result<Waited, RuntimeError> {
        runtime(&self.spec, &self.programs).wait(within)
    }

    /// The failure for people.
    #[must_use]
    pub fn refused(&self, e: &RuntimeError) -> Failure {
        outcome::refused(&self.name, e)
    }
}
