//! Whether a container is attached already, and to the namespace that it has now.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store;
use crate::kernel::netlink::has_end_of;
use crate::kernel::netns::{self, Netns};
use crate::model::{Attachment, ContainerName, NetnsRef};
use std::sync::Arc;

/// How a container stands that is to be attached.
pub(super) enum AttachState {
    /// None of its links is there.
    Absent,
    /// To the namespace that is asked for, as asked; something of it may be missing.
    Attached,
    /// Links of a namespace that it does not have any more: the kernel takes some time to delete one, and it lives on
    /// as long as any process is in it.
    Left(Vec<(u32, Attachment)>),
}

impl Daemon {
    /// How container `name` stands that is to be attached to `netns`, which `reference` names, as `run` says. A name or
    /// a process number says nothing: both are used again, so it is looked where the links end.
    ///
    /// # Errors
    /// When it is attached otherwise, and when a namespace cannot be looked into.
    pub(super) async fn attach_state(
        &mut self,
        name: &ContainerName,
        run: &serde_json::Value,
        reference: &NetnsRef,
        netns: &Netns,
    ) -> Result<AttachState, Failure> {
        let Some(record) = self.state.containers.get(name) else { return Ok(AttachState::Absent) };
        let link = |a: &Attachment| Some((self.link_index(&a.host_if)?, a.clone()));
        let there: Vec<_> = record.attachments.iter().filter_map(link).collect();
        if there.is_empty() && !record.attachments.is_empty() {
            // Its namespace went away: this is the container's next start.
            return Ok(AttachState::Absent);
        }
        let links: Vec<u32> = there.iter().map(|(index, _)| *index).collect();
        let here = links.is_empty() || has_end_of(&links, netns).await?;
        if !here && !ends_in(&links, record.netns.as_ref()).await? {
            return Ok(AttachState::Left(there));
        }
        if !here || record.run != *run {
            let why = format!("container {name}: is attached already");
            return Err(Failure::new(Kind::Conflict, why).help(format!("detach it first: pv-net detach {name}")));
        }
        if record.netns.as_ref() != Some(reference)
            && let Some(record) = self.state.containers.get_mut(name)
        {
            Arc::make_mut(record).netns = Some(reference.clone());
            store::save(&self.paths.state_dir, &self.state)?;
        }
        Ok(AttachState::Attached)
    }
}

/// Whether one of `links` ends in the namespace that `reference` leads to now. Without a reference nobody can tell, and
/// it counts as one that is in use.
async fn ends_in(links: &[u32], reference: Option<&NetnsRef>) -> Result<bool, Failure> {
    let Some(reference) = reference else { return Ok(true) };
    match netns::open_aside(reference).await {
        Ok(netns) => Ok(has_end_of(links, &netns).await?),
        Err(_) => Ok(false),
    }
}
