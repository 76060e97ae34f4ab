//! Detaching a container: its links, map entries, flows and leases go.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store;
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
        let _quick = self.grace.expedite();
        for attachment in &record.attachments {
            if let Some(index) = self.link_index(&attachment.host_if) {
                self.disconnect(index, attachment).await?;
            }
        }
        let keys: Vec<_> = self.state.leases_of(name).map(|l| l.key.clone()).collect();
        for key in keys {
            self.state.ipam.release(&key);
        }
        let published = self.publishes(name);
        self.state.containers.remove(name);
        self.state.identities.remove(name);
        self.container_conditions.remove(name);
        if published {
            self.refresh_port_map()?;
        }
        store::save(&self.paths.state_dir, &self.state)?;
        Ok(())
    }
}
