//! The daemon as the controller drives it.

use super::{Daemon, teardown};
use crate::command::{AttachRequest, Prepared};
use crate::control::Core;
use crate::failure::Failure;
use crate::kernel::netlink::NetEvent;
use crate::model::ContainerName;
use crate::snapshot::Snapshot;

impl Core for Daemon {
    async fn attach(
        &mut self,
        name: &ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Result<(), Failure> {
        self.attach(name, request, prepared).await
    }

    async fn detach(&mut self, name: &ContainerName) -> Result<(), Failure> {
        self.detach(name).await
    }

    async fn reload(&mut self) -> Result<(), Failure> {
        self.reload().await
    }

    async fn on_event(&mut self, event: &NetEvent) {
        self.on_event(event).await;
    }

    async fn settle(&mut self) {
        self.settle().await;
    }

    async fn audit(&mut self) {
        self.look_at_firewall();
        self.look_at_ports();
        self.try_held_again().await;
        self.repair().await;
        self.refresh_policy().await;
    }

    fn port_is_taken(&mut self, proto: u32, port: u16) {
        self.port_is_taken(proto, port);
    }

    async fn teardown(&mut self) -> Result<(), Failure> {
        teardown(&self.paths).await
    }

    fn snapshot(&mut self, before: &Snapshot) -> Snapshot {
        Self::snapshot(self, before)
    }
}
