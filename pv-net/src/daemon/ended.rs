//! Containers that have ended. The links of one whose first process has ended are removed at once: the kernel removes them
//! with the namespace, which may be later, or never while something else holds it.
//!
//! And containers that are detached when their interfaces are gone, because nobody else would: a runtime's hook has
//! attached them, and no `run.json` declares them. The runtime need not say that such a container has stopped: what it
//! says may be late, when another one has the name, or come while no daemon runs. Mostly the namespace is gone; a
//! container that has deleted its interfaces itself is detached, too.

use super::Daemon;
use crate::failure::Failure;
use crate::ipam::store::ContainerRecord;
use crate::kernel::netlink::{NetError, alias};
use crate::model::{ContainerName, NetnsRef};

impl Daemon {
    /// Removes the links of a container that was attached by its first process, `pid`, which has ended. Its record and its
    /// leases stay for its next start. One that has been attached anew since is left alone.
    ///
    /// # Errors
    /// When the kernel refuses to remove a link, or what belongs to it.
    pub(super) async fn container_ended(&mut self, name: &ContainerName, pid: u32) -> Result<(), Failure> {
        let Some(record) = self.state.containers.get(name).cloned() else { return Ok(()) };
        if record.netns != Some(NetnsRef::Pid(pid)) {
            return Ok(());
        }
        let _quick = self.grace.expedite();
        let mut failures = Vec::new();
        for attachment in &record.attachments {
            if let Some(index) = self.link_index(&attachment.host_if) {
                tracing::info!(container = %name, host_if = %attachment.host_if, pid, "link removed: its container has ended");
                failures.extend(self.disconnect(index, attachment).await.err());
            }
        }
        let failure = failures.into_iter().reduce(Failure::and);
        failure.map_or(Ok(()), |failure| Err(failure.about(format!("container {name}"))))
    }

    /// Detaches a container of which no link is known any more. Returns whether that is done; otherwise it is to be tried
    /// again.
    pub(super) async fn detach_ended(&mut self, name: &ContainerName, record: &ContainerRecord) -> bool {
        // A link may have another name, and a listing may leave one out while others go.
        if !matches!(self.has_no_link(record).await, Ok(true)) {
            return false;
        }
        match self.try_detach(name, record, None).await {
            Ok(()) => tracing::info!(container = %name, "detached: its interfaces are gone"),
            Err(e) => {
                tracing::warn!(container = %name, error = %e, "its interfaces are gone, but it is not detached");
                return false;
            }
        }
        true
    }

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
}
