//! Uplinks where the kernel has no tcx (before 6.6): what clsact has attached has no pin, so the state says where it is.

use super::Daemon;
use crate::failure::Failure;
use crate::ipam::store::{self, ClsactHook};
use crate::kernel::bpf;
use crate::kernel::netlink::Net;
use crate::model::IfName;
use std::collections::BTreeMap;

impl Daemon {
    /// Makes each uplink of `now`, by name with its index, ready for its program, and takes those off that are no uplinks
    /// any more. `before` are those that have this daemon's programs already; the others come back.
    pub(super) async fn prepare_clsact(
        &mut self,
        now: &BTreeMap<IfName, u32>,
        before: &BTreeMap<IfName, u32>,
    ) -> Result<Vec<IfName>, Failure> {
        let old = self.state.clsact.clone();
        let is_uplink = |hook: &ClsactHook| now.get(&hook.link) == Some(&hook.index);
        for hook in old.iter().filter(|hook| !is_uplink(hook)) {
            remove(hook, &self.net).await?;
        }
        self.state.clsact.retain(is_uplink);
        let mut new = Vec::new();
        for (link, index) in now.iter().filter(|(link, index)| before.get(*link) != Some(index)) {
            new.push(link.clone());
            let added = bpf::add_qdisc(link.as_str());
            match self.state.clsact.iter_mut().find(|hook| hook.link == *link) {
                Some(hook) => hook.qdisc |= added,
                None => self.state.clsact.push(ClsactHook { link: link.clone(), index: *index, qdisc: added }),
            }
        }
        // On disk before it is in the kernel: whatever happens, `down` knows what to look for.
        if self.state.clsact != old {
            store::save(&self.paths.state_dir, &self.state)?;
        }
        Ok(new)
    }
}

/// Takes the program off, and the qdisc when pv-net added it and nobody else uses it.
pub(super) async fn remove(hook: &ClsactHook, net: &Net) -> Result<(), Failure> {
    let ClsactHook { link, index, qdisc } = hook;
    // Program and qdisc went with their link.
    if net.link(link.as_str()).await?.is_none_or(|found| found.index != *index) {
        return Ok(());
    }
    bpf::remove_clsact(link.as_str())?;
    if *qdisc {
        net.delete_unused_clsact(link.as_str(), *index).await?;
    }
    Ok(())
}
