//! Detaching a container: its links, map entries, flows and leases go.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store::{self, ContainerRecord};
use crate::kernel::{kill_point, netns};
use crate::model::ContainerName;

impl Daemon {
    /// Detaches a container and releases its leases.
    ///
    /// # Errors
    /// When there is none of that name, or the kernel refuses; it can be tried again then.
    pub async fn detach(&mut self, name: &ContainerName) -> Result<(), Failure> {
        let Some(record) = self.state.containers.get(name).cloned() else {
            let why = format!("container {name}: is not attached");
            return Err(Failure::new(Kind::NotFound, why).help("pv-net containers lists those that are"));
        };
        let _points = kill_point::begin("detach");
        let _quick = self.grace.expedite();
        for (done, attachment) in record.attachments.iter().enumerate() {
            if let Some(index) = self.link_index(&attachment.host_if)
                && let Err(failure) = self.disconnect(index, attachment).await
            {
                return Err(self.reconnect(&record, done, failure.about(format!("container {name}"))).await);
            }
        }
        let before = self.state.clone();
        let keys: Vec<_> = self.state.leases_of(name).map(|l| l.key.clone()).collect();
        for key in keys {
            self.state.ipam.release(&key);
        }
        let published = self.publishes(name);
        self.state.containers.remove(name);
        self.state.identities.remove(name);
        let ports = if published { self.refresh_port_map() } else { Ok(()) };
        if let Err(failure) = ports.and_then(|()| Ok(store::save(&self.paths.state_dir, &self.state)?)) {
            // Its links are gone, and nobody else is given its addresses until that is on disk.
            let reserved = self.state.reserved_ports.take();
            self.state = before;
            self.state.reserved_ports = reserved;
            let failure = failure.about(format!("container {name}: its links are gone, but not its leases"));
            return Err(failure.help(format!("pv-net detach {name} tries it again")));
        }
        self.container_conditions.remove(name);
        Ok(())
    }

    /// Makes the first `gone` interfaces of a container again, whose detach ended with `failure`.
    async fn reconnect(&mut self, record: &ContainerRecord, gone: usize, failure: Failure) -> Failure {
        if gone == 0 {
            return failure;
        }
        let netns = match &record.netns {
            Some(reference) => netns::open(reference).map_err(Failure::from),
            None => Err(Failure::new(Kind::Internal, "its namespace is not known")),
        };
        match netns {
            Ok(netns) => {
                let again = self.connect_all(&record.attachments[..gone], &netns).await;
                let not_restored = match again {
                    Ok(made) => {
                        self.finish(&made).await;
                        None
                    }
                    Err(e) => Some(e),
                };
                failure.not_restored(not_restored)
            }
            Err(e) => failure.not_restored([e]),
        }
    }
}
