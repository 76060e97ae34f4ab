//! The controller: the one owner of the state, and the only one that changes the kernel by it.
//!
//! It does one thing at a time, in the order in which it was asked; what an operation sees does not change under it.
//! After each it publishes a snapshot, and only then answers: who asked sees what was done. Nobody else waits for it.

mod controller;
#[cfg(test)]
mod tests;

pub(crate) use controller::Controller;

use crate::command::{AttachRequest, Prepared};
use crate::failure::Failure;
use crate::kernel::netlink::NetEvent;
use crate::model::ContainerName;
use crate::snapshot::Snapshot;

/// What the controller drives: the state, and the kernel that is brought to what it says.
pub(crate) trait Core {
    /// Attaches a container; all of it or nothing.
    async fn attach(
        &mut self,
        name: &ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Result<(), Failure>;

    /// Detaches a container and releases its leases.
    async fn detach(&mut self, name: &ContainerName) -> Result<(), Failure>;

    /// Reads the configuration again. A file that is wrong changes nothing.
    async fn reload(&mut self) -> Result<(), Failure>;

    /// Takes note of a change in the device's network.
    async fn on_event(&mut self, event: &NetEvent);

    /// Acts on what was noted since the last time.
    async fn settle(&mut self);

    /// Looks at what nobody tells of.
    async fn audit(&mut self);

    /// Ends flows whose port a program of the device took.
    fn port_is_taken(&mut self, proto: u32, port: u16);

    /// Removes everything that pv-net made.
    async fn teardown(&mut self) -> Result<(), Failure>;

    /// All of it as it is now, with the parts of `before` that stayed the same.
    fn snapshot(&mut self, before: &Snapshot) -> Snapshot;
}
