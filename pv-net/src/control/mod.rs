//! The controller is the only owner of the state, and the only one that changes the kernel by it.
//!
//! It carries out one command at a time, in the order of their arrival, so nothing changes during an operation. After
//! each it publishes a snapshot, and only then answers, so that the sender finds its change in the snapshot. Readers
//! never wait for the controller.

mod controller;
#[cfg(test)]
mod tests;

pub(crate) use controller::Controller;

use crate::command::{AddInterface, AttachRequest, Halt, Prepared, Readdress};
use crate::failure::Failure;
use crate::kernel::errand::{Brought, Errand, Found};
use crate::kernel::netlink::NetEvent;
use crate::model::{ContainerName, IfName};
use crate::plan::ReloadPlan;
use crate::snapshot::Snapshot;

/// What the controller drives: the state, and the kernel that has to follow it.
pub(crate) trait Core {
    /// Attaches a container completely or not at all. `found` has the results of errands that it asked for before.
    async fn attach(
        &mut self,
        name: &ContainerName,
        request: &AttachRequest,
        prepared: &Result<Prepared, Failure>,
        found: &Found,
    ) -> Result<(), Halt>;

    /// Attaches a declared container whose namespace exists, unless it was detached by hand in that namespace.
    async fn attach_declared(&mut self, name: &ContainerName, prepared: &Prepared, found: &Found) -> Result<(), Halt>;

    /// Notes that the namespace of a declared container does not exist.
    fn namespace_is_gone(&mut self, name: &ContainerName);

    /// Removes the links of a container whose first process `pid` has ended, unless it has been attached anew since.
    async fn container_ended(&mut self, name: &ContainerName, pid: u32) -> Result<(), Failure>;

    /// Detaches a container and releases its leases.
    async fn detach(&mut self, name: &ContainerName, found: &Found) -> Result<(), Halt>;

    /// Adds an interface to an attached container, completely or not at all.
    async fn attach_interface(&mut self, add: &AddInterface, found: &Found) -> Result<(), Halt>;

    /// Removes an interface from an attached container, and releases its lease.
    async fn detach_interface(&mut self, name: &ContainerName, interface: &IfName, found: &Found) -> Result<(), Halt>;

    /// Notes what the network gives an interface, and brings the interface to it.
    async fn readdress(&mut self, new: &Readdress, found: &Found) -> Result<(), Halt>;

    /// Reads the configuration again and applies it. A wrong file changes nothing.
    async fn reload(&mut self) -> Result<(), Failure>;

    /// Tells what [`Self::reload`] would do, and changes nothing.
    async fn plan(&mut self) -> Result<ReloadPlan, Failure>;

    /// Notes a change in the device's network.
    async fn on_event(&mut self, event: &NetEvent);

    /// Acts on the changes noted since the last call.
    async fn settle(&mut self);

    /// Looks for changes that no event reports.
    async fn audit(&mut self);

    /// Ends flows whose port was taken by a program of the device.
    fn port_is_taken(&mut self, proto: u32, port: u16);

    /// Removes everything that pv-net made.
    async fn teardown(&mut self) -> Result<(), Failure>;

    /// The errands since the last call. The command that left them is finished without them.
    fn errands(&mut self) -> Vec<Errand>;

    /// Runs an errand beside the controller.
    fn run(&self, errand: Errand) -> impl Future<Output = Brought> + Send + 'static;

    /// Handles the result of one of [`Self::errands`].
    async fn errand_ended(&mut self, brought: Brought);

    /// What was repaired since the last call because somebody else had changed it: the container, if it is about one,
    /// and a text with what was wrong and what was done.
    fn take_repairs(&mut self) -> Vec<(Option<ContainerName>, String)>;

    /// The present state. Parts that did not change are shared with `before`.
    fn snapshot(&mut self, before: &Snapshot) -> Snapshot;
}
