//! Uplinks where the kernel has no tcx (before 6.6): a filter has no pin, so the state says where there is one.

use super::Daemon;
use crate::failure::Failure;
use crate::ipam::store::{self, UplinkFilter};
use crate::kernel::bpf;
use crate::kernel::netlink::Net;
use crate::model::IfName;
use std::collections::BTreeMap;

impl Daemon {
    /// Makes each uplink of `now`, by name with its index, ready for a filter, and takes those off that are no uplinks
    /// any more. `before` are those that have this daemon's programs already; the others come back.
    pub(super) async fn prepare_filters(
        &mut self,
        now: &BTreeMap<IfName, u32>,
        before: &BTreeMap<IfName, u32>,
    ) -> Result<Vec<IfName>, Failure> {
        let old = self.state.filters.clone();
        let is_uplink = |filter: &UplinkFilter| now.get(&filter.link) == Some(&filter.index);
        for filter in old.iter().filter(|filter| !is_uplink(filter)) {
            remove(filter, &self.net).await?;
        }
        self.state.filters.retain(is_uplink);
        let mut new = Vec::new();
        for (link, index) in now.iter().filter(|(link, index)| before.get(*link) != Some(index)) {
            new.push(link.clone());
            let added = bpf::add_qdisc(link.as_str());
            match self.state.filters.iter_mut().find(|filter| filter.link == *link) {
                Some(filter) => filter.qdisc |= added,
                None => self.state.filters.push(UplinkFilter { link: link.clone(), index: *index, qdisc: added }),
            }
        }
        // On disk before it is in the kernel: whatever happens, `down` knows what to look for.
        if self.state.filters != old {
            store::save(&self.paths.state_dir, &self.state)?;
        }
        Ok(new)
    }
}

/// Takes a filter off, and the qdisc when pv-net added it and nobody else uses it.
pub(super) async fn remove(filter: &UplinkFilter, net: &Net) -> Result<(), Failure> {
    let UplinkFilter { link, index, qdisc } = filter;
    // Filter and qdisc went with their link.
    if net.link(link.as_str()).await?.is_none_or(|found| found.index != *index) {
        return Ok(());
    }
    bpf::remove_filter(link.as_str())?;
    if *qdisc {
        net.delete_unused_clsact(link.as_str(), *index).await?;
    }
    Ok(())
}
