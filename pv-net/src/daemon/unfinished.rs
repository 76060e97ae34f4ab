//! Finishes what an earlier daemon began and did not finish, because it was killed.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::kernel::link::has_end_of;
use crate::kernel::netlink::Netns;
use crate::model::{Attachment, ContainerName};
use futures_util::future::join_all;
use std::collections::BTreeSet;

impl Daemon {
    /// Finishes the attaches that an earlier daemon began, and makes the interfaces again that it has removed in a detach
    /// which did not come to its end. If that fails, unfinished links are removed, so that the container does not look
    /// attached.
    pub(super) async fn finish_interrupted(&mut self) {
        let links = match self.net.links().await {
            Ok(links) => links,
            Err(e) => return tracing::warn!(error = %e, "links not listed"),
        };
        let unfinished: BTreeSet<u32> = links.iter().filter(|l| l.is_unfinished()).map(|l| l.index).collect();
        let is_there = |a: &Attachment| self.link_index(&a.host_if).is_some();
        // An attach may have made only some of the links, and a detach may have left some.
        let is_partial = |all: &[Attachment]| all.iter().any(is_there) && !all.iter().all(is_there);
        let partial =
            self.state.containers.iter().filter(|(_, record)| is_partial(&record.attachments)).map(|(name, _)| name);
        let begun: BTreeSet<ContainerName> = unfinished
            .iter()
            .filter_map(|index| self.links.get(index).map(|(container, _)| container))
            .chain(partial)
            .cloned()
            .collect();
        // All namespaces are opened at the same time, so that several that hang take no longer than one.
        let reference = |name: &ContainerName| self.state.containers.get(name)?.netns.clone();
        let broker = &self.broker;
        let opened = begun.into_iter().map(|name| {
            let reference = reference(&name);
            async move {
                let netns = match &reference {
                    Some(reference) => broker.open(reference).await.map_err(Failure::from),
                    None => Err(Failure::new(Kind::Internal, "its namespace is not known")),
                };
                (name, netns)
            }
        });
        for (name, netns) in join_all(opened).await {
            let done = self.finish_attach(&name, netns).await;
            let Err(failure) = done else {
                tracing::info!(container = %name, "attach finished that an earlier daemon began");
                continue;
            };
            let why = format!("its attach did not come to its end, and cannot be finished: {}", failure.line());
            tracing::warn!(container = %name, %why, "links removed");
            let attachments = self.state.containers.get(&name).map(|r| r.attachments.clone()).unwrap_or_default();
            for attachment in attachments {
                if let Some(index) = self.link_index(&attachment.host_if).filter(|index| unfinished.contains(index))
                    && let Err(e) = self.disconnect(index, &attachment).await
                {
                    tracing::warn!(container = %name, error = %e, "link not removed");
                }
            }
            self.container_conditions.entry(name).or_default().push(format!("{why}: attach it again"));
        }
    }

    /// Finishes an attach. The namespace's path or process id may belong to another container by now; it is this
    /// container's only if its links end there.
    async fn finish_attach(&mut self, name: &ContainerName, netns: Result<Netns, Failure>) -> Result<(), Failure> {
        let record = self.state.containers.get(name);
        let attachments = record.map(|r| r.attachments.clone()).unwrap_or_default();
        let netns = netns?;
        let there: Vec<u32> = attachments.iter().filter_map(|a| self.link_index(&a.host_if)).collect();
        if !has_end_of(&there, &netns).await? {
            return Err(Failure::new(Kind::Internal, "its namespace is gone"));
        }
        self.make_whole(name, &netns).await
    }
}
