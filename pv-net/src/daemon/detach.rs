//! Detaching a container: removes its links, map entries, flows and leases.

use super::Daemon;
use crate::command::Halt;
use crate::failure::{Failure, Kind};
use crate::ipam::store::ContainerRecord;
use crate::kernel::errand::{Errand, Found};
use crate::kernel::kill_point;
use crate::kernel::link::has_end_of;
use crate::kernel::netlink::Netns;
use crate::model::{Attachment, ContainerName, NetnsRef};

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
            if !self.release_all(name).await?.is_empty() || was_tried {
                return Ok(());
            }
            let why = format!("container {name}: is not attached");
            return Err(Failure::new(Kind::NotFound, why).help("pv-net containers lists those that are").into());
        };
        let _points = kill_point::begin("detach");
        self.stays_detached(name, found)?;
        let done = self.try_detach(name, &record, found).await;
        if done.is_err() {
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

    pub(super) async fn try_detach(
        &mut self,
        name: &ContainerName,
        record: &ContainerRecord,
        found: &Found,
    ) -> Result<(), Failure> {
        let _quick = self.grace.expedite();
        let inside = self.namespace_of(record, found).await;
        for (done, attachment) in record.attachments.iter().enumerate() {
            if let Some(index) = self.link_index(&attachment.host_if)
                && let Err(failure) = self.disconnect(index, attachment).await
            {
                let failure = failure.about(format!("container {name}"));
                return Err(self.reconnect(record, done, failure, found).await);
            }
        }
        if let Some(netns) = inside {
            self.tidy_inside(name, &[], netns).await;
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
            let reserved = self.state.reserved_ports.take();
            self.state = before;
            self.state.reserved_ports = reserved;
            let not_restored = self.restore_leases(name, &leases).await.err();
            return Err(half_done(failure).not_restored(not_restored));
        }
        self.container_conditions.remove(name);
        Ok(())
    }

    /// The namespace of a container with several interfaces, if it was opened and their links end there.
    pub(super) async fn namespace_of<'a>(&self, record: &ContainerRecord, found: &'a Found) -> Option<&'a Netns> {
        let netns = found.netns(record.netns.as_ref()?)?.ok()?;
        let links: Vec<u32> = record.attachments.iter().filter_map(|a| self.link_index(&a.host_if)).collect();
        has_end_of(&links, netns).await.is_ok_and(|here| here).then_some(netns)
    }

    /// Brings the routes inside a container to what its interfaces that are `left` need. What remains of others has no
    /// effect, and the next attach in that namespace removes it; so a failure is only logged.
    pub(super) async fn tidy_inside(&self, name: &ContainerName, left: &[Attachment], netns: &Netns) {
        if let Err(e) = self.arrange(left, netns).await {
            tracing::warn!(container = %name, error = %e, "routes of removed interfaces left in its namespace");
        }
    }

    /// Makes the first `gone` interfaces of a container again after its detach ended with `failure`.
    async fn reconnect(&mut self, record: &ContainerRecord, gone: usize, failure: Failure, found: &Found) -> Failure {
        if gone == 0 {
            return failure;
        }
        let netns = match record.netns.as_ref().and_then(|reference| found.netns(reference)) {
            Some(netns) => netns.map_err(Failure::from),
            None => Err(Failure::new(Kind::Internal, "its namespace is not known")),
        };
        match netns {
            Ok(netns) => {
                let again = self.connect_all(&record.attachments[..gone], netns).await;
                let not_restored = match again {
                    Ok(made) => {
                        self.finish(&made).await;
                        self.arrange(&record.attachments, netns).await.err()
                    }
                    Err(e) => Some(e),
                };
                failure.not_restored(not_restored)
            }
            Err(e) => failure.not_restored([e]),
        }
    }
}
