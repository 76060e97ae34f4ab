//! Whether a container is attached already, and to the namespace that it has now.

use super::Daemon;
use crate::command::Halt;
use crate::failure::{Failure, Kind};
use crate::ipam::store::RunText;
use crate::kernel::errand::{Errand, Found};
use crate::kernel::link::has_end_of;
use crate::kernel::netlink::{Net, Netns};
use crate::model::{Attachment, ContainerName, NetnsRef};
use std::sync::Arc;

/// The state of a container that is to be attached.
pub(super) enum AttachState {
    /// None of its links exists.
    Absent,
    /// It is attached to the requested namespace, as requested; parts of it may be missing.
    Attached,
    /// Its links lead to a namespace that is not its own any more: the kernel takes some time to delete a namespace,
    /// which also lives on as long as a process is in it.
    Left(Vec<(u32, Attachment)>),
}

impl Daemon {
    /// The state of container `name`, which is to be attached to `netns` (named by `reference`) as `run` says. Paths
    /// and process ids are reused and prove nothing, so it is checked in which namespace the links end.
    ///
    /// # Errors
    /// When it is attached otherwise, or a namespace cannot be looked into. Or an errand for its former namespace,
    /// whose result must be in `found`.
    pub(super) async fn attach_state(
        &mut self,
        name: &ContainerName,
        run: &RunText,
        reference: &NetnsRef,
        netns: &Netns,
        found: &Found,
    ) -> Result<AttachState, Halt> {
        let Some(record) = self.state.containers.get(name) else { return Ok(AttachState::Absent) };
        let link = |a: &Attachment| Some((self.link_index(&a.host_if)?, a.clone()));
        let there: Vec<_> = record.attachments.iter().filter_map(link).collect();
        if there.is_empty() && !record.attachments.is_empty() {
            // Its namespace went away with its links: this is the container's next start.
            return Ok(AttachState::Absent);
        }
        let links: Vec<u32> = there.iter().map(|(index, _)| *index).collect();
        let here = links.is_empty() || has_end_of(&self.net, &links, netns).await.map_err(Failure::from)?;
        if !here && !ends_in(&self.net, &links, record.netns.as_ref(), found).await? {
            return Ok(AttachState::Left(there));
        }
        if !here || record.run != *run {
            let why = format!("container {name}: is attached already");
            return Err(Failure::new(Kind::Conflict, why)
                .help(format!("detach it first: pv-net detach {name}"))
                .into());
        }
        if record.netns.as_ref() != Some(reference)
            && let Some(record) = self.state.containers.get_mut(name)
        {
            Arc::make_mut(record).netns = Some(reference.clone());
            self.save()?;
        }
        Ok(AttachState::Attached)
    }
}

/// Whether one of `links` ends in the namespace that `reference` leads to now. Without a reference that cannot be told,
/// and counts as yes.
async fn ends_in(net: &Net, links: &[u32], reference: Option<&NetnsRef>, found: &Found) -> Result<bool, Halt> {
    let Some(reference) = reference else { return Ok(true) };
    match found.netns(reference) {
        None => Err(Halt::Needs(vec![Errand::Open(reference.clone())])),
        Some(Ok(netns)) => Ok(has_end_of(net, links, netns).await.map_err(Failure::from)?),
        Some(Err(e)) if e.is_gone() => Ok(false),
        // Nobody can tell whether the namespace still exists, so it may be in use.
        Some(Err(e)) => Err(Failure::from(e).into()),
    }
}
