//! Finishes what an earlier daemon began and did not finish, because it was killed.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store::{Begun, ContainerRecord};
use crate::kernel::errand::Errand;
use crate::kernel::netlink::Netns;
use crate::kernel::netns::NetnsError;
use crate::model::{Attachment, ContainerName, NetnsRef};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Daemon {
    /// Finishes attaches and detaches that an earlier daemon began. If an attach cannot be finished, its links are
    /// removed, so that the container does not look attached. An interface that is gone for another reason stays so: the
    /// container has deleted it.
    pub(super) async fn finish_interrupted(&mut self) {
        self.finish_begun().await;
        let lacks_one =
            |record: &ContainerRecord| record.attachments.iter().any(|a| self.link_index(&a.host_if).is_none());
        let thinned: BTreeSet<ContainerName> = (self.state.containers.iter())
            .filter(|(_, record)| lacks_one(record))
            .map(|(name, _)| name.clone())
            .collect();
        self.thinned.extend(thinned);
        self.follow_thinned().await;
    }

    async fn finish_begun(&mut self) {
        let links = match self.net.links().await {
            Ok(links) => links,
            Err(e) => return tracing::warn!(error = %e, "links not listed"),
        };
        let unfinished: BTreeSet<u32> = links.iter().filter(|l| l.is_unfinished()).map(|l| l.index).collect();
        let is_there = |a: &Attachment| self.link_index(&a.host_if).is_some();
        let is_unfinished =
            |a: &Attachment| self.link_index(&a.host_if).is_some_and(|index| unfinished.contains(&index));
        let is_begun = |record: &ContainerRecord| match &record.begun {
            Some(Begun::Detach | Begun::Remove(_)) => true,
            // Without any link its namespace is gone.
            Some(Begun::Add(_)) => record.attachments.iter().any(is_there),
            None => record.attachments.iter().any(is_unfinished),
        };
        let begun: Vec<(ContainerName, Arc<ContainerRecord>)> = (self.state.containers.iter())
            .filter(|(_, record)| is_begun(record))
            .map(|(name, record)| (name.clone(), record.clone()))
            .collect();
        // All namespaces are opened at the same time, so that several that hang take no longer than one.
        let broker = &self.broker;
        let opened = begun.into_iter().map(|(name, record)| async move {
            let netns = match &record.netns {
                Some(reference) => broker.open(reference).await.map_err(Failure::from),
                None => Err(Failure::new(Kind::Internal, "its namespace is not known")),
            };
            (name, record, netns)
        });
        for (name, record, netns) in join_all(opened).await {
            match &record.begun {
                Some(Begun::Detach) => {
                    let inside = self.own_of(&record, &netns).await;
                    let done = self.try_detach(&name, &record, inside).await;
                    self.note_detached(&name, done, "detach");
                }
                Some(Begun::Remove(interface)) => {
                    let inside = self.own_of(&record, &netns).await;
                    let done = match record.attachments.iter().find(|a| a.interface == *interface) {
                        Some(gone) => self.try_detach_interface(&name, &record, gone, inside).await,
                        None => {
                            self.has_ended(&name);
                            Ok(())
                        }
                    };
                    self.note_detached(&name, done, &format!("detach of interface {interface}"));
                }
                Some(Begun::Add(_)) | None => {
                    let these = |a: &&Attachment| match (self.link_index(&a.host_if), &record.begun) {
                        (Some(index), _) => unfinished.contains(&index),
                        (None, Some(Begun::Add(interface))) => a.interface == *interface,
                        // An attach makes a container's links one after the other.
                        (None, _) => true,
                    };
                    let these: Vec<Attachment> = record.attachments.iter().filter(these).cloned().collect();
                    if let Err(failure) = self.finish_attach(&name, &record, &these, netns).await {
                        self.give_up(&name, &these, &failure).await;
                    }
                }
            }
        }
    }

    /// The namespace that was opened, if it is this container's.
    async fn own_of<'a>(&self, record: &ContainerRecord, netns: &'a Result<Netns, Failure>) -> Option<&'a Netns> {
        let netns = netns.as_ref().ok()?;
        self.is_in(record, netns).await.is_ok_and(|here| here).then_some(netns)
    }

    fn note_detached(&mut self, name: &ContainerName, done: Result<(), Failure>, what: &str) {
        match done {
            Ok(()) => tracing::info!(container = %name, "{what} finished that an earlier daemon began"),
            Err(failure) => {
                let why = format!("its {what} did not come to its end, and cannot be finished: {}", failure.line());
                tracing::warn!(container = %name, %why, "not finished");
                self.container_conditions.note(name, None, format!("{why}: detach it again"));
            }
        }
    }

    /// Finishes an attach of `these` interfaces. The namespace's path or process id may belong to another container by
    /// now; it is this container's only if its links end there.
    async fn finish_attach(
        &mut self,
        name: &ContainerName,
        record: &ContainerRecord,
        these: &[Attachment],
        netns: Result<Netns, Failure>,
    ) -> Result<(), Failure> {
        let netns = netns?;
        if !self.is_in(record, &netns).await? {
            return Err(Failure::new(Kind::Internal, "its namespace is gone"));
        }
        let _quick = self.grace.expedite();
        let made = self.connect_and_arrange(these, &record.attachments, &netns).await?;
        self.finish(&made).await;
        self.has_ended(name);
        tracing::info!(container = %name, "attach finished that an earlier daemon began");
        Ok(())
    }

    /// Removes what there is of `these` interfaces, whose attach cannot be finished.
    async fn give_up(&mut self, name: &ContainerName, these: &[Attachment], failure: &Failure) {
        let why = format!("its attach did not come to its end, and cannot be finished: {}", failure.line());
        tracing::warn!(container = %name, %why, "links removed");
        for attachment in these {
            if let Some(index) = self.link_index(&attachment.host_if)
                && let Err(e) = self.disconnect(index, attachment).await
            {
                tracing::warn!(container = %name, error = %e, "link not removed");
            }
        }
        let about = if let [one] = these { Some(&one.host_if) } else { None };
        self.container_conditions.note(name, about, format!("{why}: attach it again"));
    }

    /// Acts on lost links. A container with others has its routes arranged anew, since most likely it has deleted one:
    /// another interface gets the default route. One with `auto_detach` that has no other is detached.
    pub(super) async fn follow_thinned(&mut self) {
        for name in std::mem::take(&mut self.thinned) {
            let Some(record) = self.state.containers.get(&name).cloned() else { continue };
            if record.attachments.iter().any(|a| self.link_index(&a.host_if).is_some()) {
                if let Some(reference) = record.netns.clone() {
                    self.errands.add(Errand::Open(reference));
                }
            } else if record.auto_detach && !self.detach_ended(&name, &record).await {
                self.thinned.insert(name);
            }
        }
    }

    /// Arranges the routes of the containers whose namespace was opened for that.
    pub(super) async fn arrange_in(&mut self, reference: &NetnsRef, netns: Result<Netns, NetnsError>) {
        let Ok(netns) = netns else { return };
        let there = self.state.containers.iter().filter(|(_, r)| r.netns.as_ref() == Some(reference));
        let there: Vec<_> = there.map(|(name, record)| (name.clone(), record.clone())).collect();
        for (name, record) in there {
            if self.is_in(&record, &netns).await.is_ok_and(|here| here) {
                self.tidy_inside(&name, &record.attachments, &netns).await;
            }
        }
    }
}
