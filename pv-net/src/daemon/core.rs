//! How the controller drives the daemon.

use super::{Daemon, teardown};
use crate::command::{AddInterface, AttachRequest, Halt, Prepared, Readdress};
use crate::control::Core;
use crate::failure::Failure;
use crate::kernel::errand::{Brought, Errand, Found};
use crate::kernel::netlink::NetEvent;
use crate::memory;
use crate::model::{ContainerName, IfName};
use crate::plan::ReloadPlan;
use crate::snapshot::Snapshot;

impl Core for Daemon {
    async fn attach(
        &mut self,
        name: &ContainerName,
        request: &AttachRequest,
        prepared: &Result<Prepared, Failure>,
        found: &Found,
    ) -> Result<(), Halt> {
        let done = self.attach(name, request, prepared.as_ref(), found).await;
        match &done {
            Ok(()) => self.is_attached(name),
            // The caller may be a hook, of which the runtime tells no more than that it failed.
            Err(Halt::Failed(failure)) => tracing::warn!(container = %name, error = %failure, "not attached"),
            Err(Halt::Needs(_)) => {}
        }
        done
    }

    async fn attach_declared(&mut self, name: &ContainerName, prepared: &Prepared, found: &Found) -> Result<(), Halt> {
        self.attach_declared(name, prepared, found).await
    }

    fn namespace_is_gone(&mut self, name: &ContainerName) {
        self.namespace_is_gone(name);
    }

    async fn container_ended(&mut self, name: &ContainerName, pid: u32) -> Result<(), Failure> {
        self.container_ended(name, pid).await
    }

    async fn detach(&mut self, name: &ContainerName, found: &Found) -> Result<(), Halt> {
        self.detach(name, found).await
    }

    async fn attach_interface(&mut self, add: &AddInterface, found: &Found) -> Result<(), Halt> {
        self.attach_interface(add, found).await
    }

    async fn detach_interface(&mut self, name: &ContainerName, interface: &IfName, found: &Found) -> Result<(), Halt> {
        self.detach_interface(name, interface, found).await
    }

    async fn readdress(&mut self, new: &Readdress, found: &Found) -> Result<(), Halt> {
        self.readdress(new, found).await
    }

    async fn reload(&mut self) -> Result<(), Failure> {
        self.reload().await
    }

    async fn plan(&mut self) -> Result<ReloadPlan, Failure> {
        self.plan_reload().await
    }

    async fn on_event(&mut self, event: &NetEvent) {
        self.on_event(event).await;
    }

    async fn settle(&mut self) {
        self.settle().await;
    }

    async fn audit(&mut self) {
        self.look_at_firewall();
        self.look_at_ports().await;
        self.try_held_again().await;
        self.repair().await;
        self.refresh_policy().await;
        self.repair_policy();
        // Tries again what failed at the last change.
        self.settle().await;
        // All that the kernel has was read, which takes more memory than what follows.
        memory::give_back();
    }

    fn port_is_taken(&mut self, proto: u32, port: u16) {
        self.port_is_taken(proto, port);
    }

    async fn teardown(&mut self) -> Result<(), Failure> {
        teardown(&self.paths, Some(&self.broker)).await
    }

    fn errands(&mut self) -> Vec<Errand> {
        self.take_errands()
    }

    fn run(&self, errand: Errand) -> impl Future<Output = Brought> + Send + 'static {
        let broker = self.broker.clone();
        async move { errand.run(&broker).await }
    }

    async fn errand_ended(&mut self, brought: Brought) {
        self.errand_ended(brought).await;
    }

    fn take_repairs(&mut self) -> Vec<(Option<ContainerName>, String)> {
        std::mem::take(&mut self.repairs)
    }

    fn snapshot(&mut self, before: &Snapshot) -> Snapshot {
        Self::snapshot(self, before)
    }
}
