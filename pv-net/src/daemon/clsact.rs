//! Programs on uplinks on kernels without tcx (before 6.6). Filters of clsact have no pins. The kernel tells where
//! pv-net's filters are, but not who added the qdisc, so the state file has that.

use super::Daemon;
use crate::failure::Failure;
use crate::ipam::store::ClsactHook;
use crate::kernel::bpf;
use crate::kernel::netlink::Net;
use crate::model::IfName;
use crate::plan::{HookPoint, ProgramState};
use std::collections::{BTreeMap, BTreeSet};

impl Daemon {
    /// Adds the clsact qdisc to links that are about to get their program.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub(super) fn prepare_clsact(&mut self, new: &[(HookPoint, IfName, u32)]) -> Result<(), Failure> {
        if self.is_rehearsing() {
            return Ok(());
        }
        let old = self.state.clsact.clone();
        for (_, link, index) in new {
            let added = bpf::add_qdisc(link.as_str());
            match self.state.clsact.iter_mut().find(|hook| hook.index == *index) {
                Some(hook) => {
                    hook.qdisc |= added;
                    hook.link.clone_from(link);
                }
                None => self.state.clsact.push(ClsactHook { link: link.clone(), index: *index, qdisc: added }),
            }
        }
        // The state is on disk before the kernel is changed, so that `down` always knows what to look for.
        if self.state.clsact != old {
            self.save()?;
        }
        Ok(())
    }

    /// Restores links that are neither uplinks nor pools' bridges any more. Bridges among `hooked` keep their program
    /// until none of their ports is open.
    ///
    /// # Errors
    /// When the kernel refuses to remove a filter or qdisc, or the state file cannot be written.
    pub(super) async fn release_clsact(
        &mut self,
        hooked: &BTreeMap<(HookPoint, u32), ProgramState>,
    ) -> Result<(), Failure> {
        if self.is_rehearsing() || self.state.clsact.is_empty() {
            return Ok(());
        }
        let bridges = hooked.keys().filter(|(at, _)| *at == HookPoint::Bridge).map(|(_, index)| *index);
        let used: BTreeSet<u32> =
            self.uplinks.values().chain(self.hooked_bridges.values()).copied().chain(bridges).collect();
        let old: Vec<ClsactHook> = self.state.clsact.iter().filter(|h| !used.contains(&h.index)).cloned().collect();
        for hook in &old {
            remove(hook, &self.net).await?;
        }
        self.state.clsact.retain(|hook| used.contains(&hook.index));
        if old.is_empty() { Ok(()) } else { self.save() }
    }
}

/// Removes the program, and the qdisc if pv-net added it and nobody else uses it.
pub(super) async fn remove(hook: &ClsactHook, net: &Net) -> Result<(), Failure> {
    // If the link is gone, program and qdisc are gone with it.
    let Some(link) = net.links().await?.into_iter().find(|link| link.index == hook.index) else { return Ok(()) };
    bpf::remove_clsact(&link.name)?;
    if hook.qdisc {
        net.delete_unused_clsact(&link.name, link.index).await?;
    }
    Ok(())
}
