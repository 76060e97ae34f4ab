//! Containers that are detached when their interfaces are gone, because nobody else would: a runtime's hook has attached
//! them, and no `run.json` declares them. Mostly their namespace is gone; one that deletes its interface itself is out, too.

use super::Daemon;
use crate::ipam::store::ContainerRecord;
use crate::kernel::netlink::{NetError, alias};
use crate::model::{ContainerName, IfName};
use std::collections::BTreeSet;

impl Daemon {
    /// Whether the kernel has none of a container's links, by their names and by their marks.
    async fn has_no_link(&self, record: &ContainerRecord) -> Result<bool, NetError> {
        for attachment in &record.attachments {
            if self.net.link(attachment.host_if.as_str()).await?.is_some() {
                return Ok(false);
            }
        }
        let links = self.net.links().await?;
        let mut marks = links.iter().filter_map(|link| alias::to_attachment(&link.name, link.alias.as_deref()?));
        Ok(!marks.any(|mark| {
            record.attachments.iter().any(|a| (&a.container, &a.interface) == (&mark.container, &mark.interface))
        }))
    }

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
            // A link may have another name, and a listing may leave one out while others go.
            if !matches!(self.has_no_link(&record).await, Ok(true)) {
                self.may_have_ended = true;
                continue;
            }
            match self.try_detach(&name, &record, None).await {
                Ok(()) => tracing::info!(container = %name, "detached: its interfaces are gone"),
                Err(e) => {
                    tracing::warn!(container = %name, error = %e, "its interfaces are gone, but it is not detached");
                    self.may_have_ended = true;
                }
            }
        }
    }
}
