//! The device's side: its addresses, its uplinks, its sockets. Read again whenever the kernel says that something
//! changed.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::bpf::{Ended, Hook};
use crate::kernel::{cgroup, netns, nudge};
use crate::model::IfName;
use crate::plan::{LinkState, locals, uplink_infos};
use pv_net_common::Ip;
use std::collections::{BTreeMap, BTreeSet};

/// Uplinks that are configured and not there.
fn missing(uplinks: &[IfName], links: &[LinkState]) -> Vec<String> {
    let absent = |name: &&IfName| !links.iter().any(|l| l.name == name.as_str());
    uplinks.iter().filter(absent).map(|name| format!("uplink {name}: no such link: it is used when it comes")).collect()
}

/// Tells the containers that connections of theirs have ended. Who is not told learns by the next segment.
pub(super) fn tell(ended: &[Ended]) {
    if let Err(e) = nudge::connections(ended) {
        tracing::warn!(error = %e, "containers not told of the connections that ended");
    }
}

impl Daemon {
    /// Brings addresses, uplinks and their programs to what the kernel has now. Flows that used an address or an
    /// uplink that is gone end.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn refresh_outside(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        let links: Vec<LinkState> = (self.net.links().await?.into_iter())
            .map(|l| LinkState { index: l.index, name: l.name, mac: l.mac, mtu: l.mtu })
            .collect();
        let addresses = self.net.addresses().await?;
        let mut uplinks = self.uplink_names(&links).await?;
        self.outside_conditions = missing(&self.device.uplinks, &links);
        // Frames of other links have no Ethernet header, that the programs read first.
        let is_ethernet = |name: &IfName| links.iter().any(|l| l.name == name.as_str() && l.mac.is_some());
        for name in uplinks.iter().filter(|name| !is_ethernet(name)) {
            self.outside_conditions.push(format!("uplink {name}: is not an Ethernet link: not used"));
        }
        uplinks.retain(is_ethernet);
        let infos = uplink_infos(&links, &addresses, &uplinks, self.pools.values());
        let plane = self.plane()?;
        let before = plane.uplinks();
        plane.set_locals(&locals(&addresses))?;
        plane.set_uplinks(&infos)?;
        let present: BTreeSet<Ip> = infos.values().flat_map(|i| [i.addr4, i.addr6]).collect();
        let lost: Vec<Ip> = before
            .values()
            .flat_map(|i| [i.addr4, i.addr6])
            .filter(|a| !a.is_unspecified() && !present.contains(a))
            .collect();
        let gone: Vec<u32> = before.keys().filter(|i| !infos.contains_key(i)).copied().collect();
        if !lost.is_empty() || !gone.is_empty() {
            let ended = plane.end_flows_where(|key, entry| {
                gone.contains(&entry.ifindex)
                    || [key.src, key.dst, entry.src, entry.dst].iter().any(|addr| lost.contains(addr))
            })?;
            tell(&ended);
        }
        self.hook_uplinks(&links, &uplinks).await
    }

    /// The uplinks that are there: those of the configuration, else those that default routes lead to.
    async fn uplink_names(&self, links: &[LinkState]) -> Result<BTreeSet<IfName>, Failure> {
        let named = |link: &LinkState| link.name.parse::<IfName>().ok();
        if !self.device.uplinks.is_empty() {
            return Ok(links.iter().filter_map(named).filter(|name| self.device.uplinks.contains(name)).collect());
        }
        let found = self.net.default_route_links().await?;
        Ok(links.iter().filter(|l| found.contains(&l.index)).filter_map(named).collect())
    }

    async fn hook_uplinks(&mut self, links: &[LinkState], uplinks: &BTreeSet<IfName>) -> Result<(), Failure> {
        let index: BTreeMap<&str, u32> = links.iter().map(|l| (l.name.as_str(), l.index)).collect();
        let now: BTreeMap<IfName, u32> =
            uplinks.iter().filter_map(|name| Some((name.clone(), *index.get(name.as_str())?))).collect();
        let before = std::mem::take(&mut self.uplinks);
        if self.plane()?.hook() == Hook::Clsact {
            self.filter_uplinks(&now, &before).await?;
            self.uplinks = now;
            return Ok(());
        }
        let plane = self.plane()?;
        for hooked in plane.hooked_uplinks()? {
            let same = now
                .iter()
                .any(|(name, index)| name.as_str() == hooked && before.get(name).is_none_or(|was| was == index));
            if !same {
                plane.detach_uplink(&hooked)?;
            }
        }
        for name in now.keys() {
            plane.attach_uplink(name)?;
        }
        self.uplinks = now;
        self.refresh_filter(&before)
    }

    /// Puts the socket hooks in place. Without them published ports work from everywhere but the device itself.
    pub(super) fn hook_sockets(&mut self) {
        let lost = "published ports are not reached from the device's own programs";
        let condition = match (cgroup::find(&self.paths.cgroup), netns::own_cookie()) {
            (None, _) => Some(format!("no cgroup2 hierarchy is mounted: {lost}")),
            (_, Err(e)) => Some(format!("SO_NETNS_COOKIE: {e} (kernel 5.14): {lost}")),
            (Some(path), Ok(cookie)) => {
                let Some(plane) = &mut self.plane else { return };
                let hooked = plane.set_netns_cookie(cookie).and_then(|()| plane.attach_sockets(&path));
                hooked.err().map(|e| format!("{e}: {lost}"))
            }
        };
        self.start_conditions.extend(condition);
    }
}
