//! Containers that are detached when their namespace is gone, because nobody else would: a runtime's hook has attached
//! them, and no `run.json` declares them.

use super::Daemon;
use crate::model::{ContainerName, IfName};
use std::collections::BTreeSet;

impl Daemon {
    /// Detaches the containers with `auto_detach` that have no interface any more. The runtime need not say that a
    /// container has stopped: what it says may be late, when another one has the name, or come while no daemon runs.
    pub(super) async fn detach_ended(&mut self) {
        if !std::mem::take(&mut self.may_have_ended) {
            return;
        }
        let there: BTreeSet<&IfName> = self.links.values().map(|(_, host_if)| host_if).collect();
        let ended = self.state.containers.iter().filter(|(_, record)| {
            record.auto_detach && !record.attachments.iter().any(|attachment| there.contains(&attachment.host_if))
        });
        let ended: Vec<ContainerName> = ended.map(|(name, _)| name.clone()).collect();
        for name in ended {
            let Some(record) = self.state.containers.get(&name).cloned() else { continue };
            match self.try_detach(&name, &record, None).await {
                Ok(()) => tracing::info!(container = %name, "detached: its namespace is gone"),
                Err(e) => {
                    tracing::warn!(container = %name, error = %e, "its namespace is gone, but it is not detached");
                    self.may_have_ended = true;
                }
            }
        }
    }
}
