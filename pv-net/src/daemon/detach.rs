//! Detaching a container: removes its links, map entries, flows and leases.

use super::Daemon;
use crate::command::Halt;
use crate::failure::{Failure, Kind};
use crate::ipam::store::{Begun, ContainerRecord};
use crate::kernel::errand::{Errand, Found};
use crate::kernel::kill_point;
use crate::kernel::link::has_end_of;
use crate::kernel::netlink::{NetError, Netns};
use crate::model::{Attachment, ContainerName, NetnsRef};
use std::sync::Arc;

impl Daemon {
    /// Detaches a container and releases its leases. A container that is not attached may have leases too, from an
    /// attach that was cut short or from before the state was lost.
    ///
    /// # Errors
    /// When no container has the name, or an operation of the kernel or the disk fails; a detach can be tried again
    /// then. Or errands for namespaces, whose results must be in `found`.
    pub async fn detach(&mut self, name: &ContainerName, found: &Found) -> Result<(), Halt> {
        let needs = self.needs(name).into_iter().filter(|reference| found.netns(reference).is_none());
        let needs: Vec<Errand> = needs.map(Errand::Open).collect();
        if !needs.is_empty() {
            return Err(Halt::Needs(needs));
        }
        let Some(record) = self.state.containers.get(name).cloned() else {
            // A declared container that could not be attached is not tried again after a detach.
            let was_tried = self.is_tried_again(name);
            self.stays_detached(name, found)?;
            let released = self.release_all(name).await?;
            self.give_back(&released);
            if !released.is_empty() || was_tried {
                return Ok(());
            }
            let why = format!("container {name}: is not attached");
            return Err(Failure::new(Kind::NotFound, why).help("pv-net containers lists those that are").into());
        };
        let _points = kill_point::begin("detach");
        self.stays_detached(name, found)?;
        let inside = self.namespace_of(&record, found).await;
        let done = self.try_detach(name, &record, inside).await;
        // One that has begun is finished by the next daemon, and must not be attached again afterwards.
        if done.is_err() && self.state.containers.get(name).is_none_or(|record| record.begun.is_none()) {
            self.may_be_attached(name);
        }
        Ok(done?)
    }

    /// The namespaces that a detach of `name` needs: the one at a declared container's path, and the one in which an
    /// interface is made again when the next one cannot be removed.
    fn needs(&self, name: &ContainerName) -> Vec<NetnsRef> {
        let record = self.state.containers.get(name).filter(|record| record.attachments.len() > 1);
        let mut needs: Vec<NetnsRef> = self.place_of(name).into_iter().collect();
        needs.extend(record.and_then(|record| record.netns.clone()).filter(|reference| !needs.contains(reference)));
        needs
    }

    /// Detaches a container whose namespace is `inside`, if it still has one.
    pub(super) async fn try_detach(
        &mut self,
        name: &ContainerName,
        record: &ContainerRecord,
        inside: Option<&Netns>,
    ) -> Result<(), Failure> {
        let _quick = self.grace.expedite();
        if record.attachments.len() > 1 {
            self.begin(name, Begun::Detach)?;
        }
        // Done first: without its links nobody can tell that the namespace is this container's, should the daemon be
        // killed in between.
        if let Some(netns) = inside {
            self.tidy_inside(name, &[], netns).await;
        }
        for (done, attachment) in record.attachments.iter().enumerate() {
            if let Some(index) = self.link_index(&attachment.host_if)
                && let Err(failure) = self.disconnect(index, attachment).await
            {
                let failure = failure.about(format!("container {name}"));
                return Err(self.reconnect(record, done, failure, inside).await);
            }
        }
        let half_done = |failure: Failure| {
            let failure = failure.about(format!("container {name}: its links are gone, but not its leases"));
            failure.help(format!("pv-net detach {name} tries it again"))
        };
        // Leases are released first: if the daemon is killed in between, the lease of a known container is learned
        // again, while a lease without a container would stay forever.
        let leases = self.release_all(name).await.map_err(half_done)?;
        let before = self.state.clone();
        let published = self.publishes(name);
        self.state.containers.remove(name);
        self.state.identities.remove(name);
        let ports = if published { self.refresh_port_map().await } else { Ok(()) };
        if let Err(failure) = ports.and_then(|()| self.save()) {
            // The links are gone; the addresses are not given to others before this is on disk.
            self.restore_state(before);
            let not_restored = self.restore_leases(name, &leases).await.err();
            return Err(half_done(failure).not_restored(not_restored));
        }
        self.give_back(&leases);
        self.conditions_are_over(name, None);
        Ok(())
    }

    /// The namespace of a container with several interfaces, if it was opened and their links end there.
    pub(super) async fn namespace_of<'a>(&self, record: &ContainerRecord, found: &'a Found) -> Option<&'a Netns> {
        let netns = found.netns(record.netns.as_ref()?)?.ok()?;
        self.is_in(record, netns).await.is_ok_and(|here| here).then_some(netns)
    }

    /// Whether one of a container's links ends in `netns`. Paths and process ids are reused, so nothing else proves
    /// that the namespace is the container's.
    pub(super) async fn is_in(&self, record: &ContainerRecord, netns: &Netns) -> Result<bool, NetError> {
        let links: Vec<u32> = record.attachments.iter().filter_map(|a| self.link_index(&a.host_if)).collect();
        has_end_of(&self.net, &links, netns).await
    }

    /// Brings the routes inside a container to what its interfaces that are `left` need. What remains of others has no
    /// effect, and the next attach in that namespace removes it; so a failure is only logged.
    pub(super) async fn tidy_inside(&mut self, name: &ContainerName, left: &[Attachment], netns: &Netns) {
        if let Err(e) = self.arrange(left, netns, &[]).await {
            tracing::warn!(container = %name, error = %e, "routes of removed interfaces left in its namespace");
        }
    }

    /// Makes the first `gone` interfaces of a container again after its detach ended with `failure`.
    async fn reconnect(
        &mut self,
        record: &ContainerRecord,
        gone: usize,
        failure: Failure,
        inside: Option<&Netns>,
    ) -> Failure {
        let Some(Attachment { container, .. }) = record.attachments.first() else { return failure };
        let gone = &record.attachments[..gone];
        let not_restored = match inside {
            Some(netns) => match self.connect_and_arrange(gone, &record.attachments, netns).await {
                Ok(made) => {
                    self.finish(&made).await;
                    self.has_ended(container);
                    None
                }
                Err(e) => Some(e),
            },
            None if gone.is_empty() => {
                self.has_ended(container);
                None
            }
            None => Some(Failure::new(Kind::Internal, "its namespace is not known, or gone")),
        };
        failure.not_restored(not_restored)
    }

    /// Stores that a change of a container's interfaces begins, before anything is changed.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub(super) fn begin(&mut self, name: &ContainerName, begun: Begun) -> Result<(), Failure> {
        let Some(record) = self.state.containers.get_mut(name) else { return Ok(()) };
        let before = Arc::make_mut(record).begun.replace(begun);
        let Err(failure) = self.save() else { return Ok(()) };
        if let Some(record) = self.state.containers.get_mut(name) {
            Arc::make_mut(record).begun = before;
        }
        Err(failure.about(format!("container {name}")))
    }

    /// Stores that a change of a container's interfaces has come to its end.
    pub(super) fn has_ended(&mut self, name: &ContainerName) {
        let Some(record) = self.state.containers.get_mut(name).filter(|record| record.begun.is_some()) else { return };
        Arc::make_mut(record).begun = None;
        if let Err(e) = self.save() {
            // The next write of the state stores it too. Until then a new daemon would do once more what is done.
            tracing::warn!(container = %name, error = %e.line(), "not written down that a change has come to its end");
        }
    }
}
