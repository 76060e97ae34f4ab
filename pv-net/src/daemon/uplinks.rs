//! The device's side: its addresses, its uplinks, its sockets. Read again whenever the kernel says that something
//! changed.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::bpf::{Ended, Hook};
use crate::kernel::netlink::{AddressInfo, LinkInfo, alias};
use crate::kernel::{cgroup, challenge_ack, netns, sysctl};
use crate::model::{IfName, PoolName};
use crate::plan::{
    Candidate, LinkState, PoolLink, Unseen, UplinkSources, apart, fitting, locals, networks, overlaps, set_down, unfit,
    uplink_infos, ways_out,
};
use ipnetwork::IpNetwork;
use netlink_packet_route::address::AddressFlags;
use pv_net_common::Ip;
use pv_net_common::endpoint::{MAX_SOURCES, MAX_UPLINKS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The links as the plan knows them.
pub(super) fn link_states(links: Vec<LinkInfo>) -> Vec<LinkState> {
    let is_vrf = |l: &LinkInfo| l.kind.as_deref() == Some("vrf");
    let vrfs: BTreeMap<u32, String> = links.iter().filter(|l| is_vrf(l)).map(|l| (l.index, l.name.clone())).collect();
    let state = |l: LinkInfo| LinkState {
        index: l.index,
        mac: l.mac,
        mtu: l.mtu,
        up: l.up,
        carrier: l.carrier,
        // A port of a VRF too: who has set it apart says so when published ports shall be reached by it.
        inner: l.loopback || l.controller.is_some() || alias::is_ours(l.alias.as_deref()),
        unseen: if is_vrf(&l) { Some(Unseen::Vrf) } else { l.l3s.then_some(Unseen::L3s) },
        vrf: l.controller.and_then(|index| vrfs.get(&index).cloned()),
        name: l.name,
    };
    links.into_iter().map(state).collect()
}

/// Uplinks that are configured and not there.
fn missing(uplinks: &[IfName], links: &[LinkState]) -> Vec<String> {
    let absent = |name: &&IfName| !links.iter().any(|l| l.name == name.as_str());
    uplinks.iter().filter(absent).map(|name| format!("uplink {name}: no such link: it is used when it comes")).collect()
}

/// What masquerade uses, by the uplink's index. What is no address yet, or not beyond the link, is nothing to leave with.
fn sources(uplinks: &BTreeMap<IfName, u32>, addresses: &[AddressInfo]) -> BTreeMap<u32, UplinkSources> {
    let of = |(name, link): (&IfName, &u32)| {
        let candidates: Vec<Candidate> = addresses.iter().filter(|a| a.link == *link).filter_map(candidate).collect();
        let prefer_temporary = sysctl::get("ipv6", name, "use_tempaddr").and_then(|text| text.parse::<i32>().ok());
        (*link, UplinkSources::new(&candidates, prefer_temporary.is_some_and(|n| n > 1)))
    };
    uplinks.iter().map(of).collect()
}

fn candidate(info: &AddressInfo) -> Option<Candidate> {
    let has = |flag: AddressFlags| info.flags.contains(flag);
    let optimistic = has(AddressFlags::Optimistic);
    let usable = match info.address.ip() {
        IpAddr::V4(addr) => !addr.is_loopback(),
        IpAddr::V6(addr) => {
            let tentative = has(AddressFlags::Tentative) && !optimistic || has(AddressFlags::Dadfailed);
            info.beyond_link && !addr.is_unicast_link_local() && !addr.is_loopback() && !tentative
        }
    };
    // One bit with two names (`if_addr.h`).
    let secondary = has(AddressFlags::Secondary);
    usable.then_some(Candidate {
        address: info.address,
        avoided: has(AddressFlags::Deprecated) || optimistic,
        temporary: info.address.is_ipv6() && secondary,
        secondary: info.address.is_ipv4() && (secondary || !info.beyond_link),
    })
}

/// Tells the containers that connections of theirs have ended. Who is not told learns by the next segment.
pub(super) fn tell(ended: &[Ended]) {
    if let Err(e) = challenge_ack::provoke(ended) {
        tracing::warn!(error = %e, "containers not told of the connections that ended");
    }
}

impl Daemon {
    /// Brings addresses, uplinks and their programs to what the kernel has now. Flows that used an address or an
    /// uplink that is gone end.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn refresh_uplinks(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        let links = link_states(self.net.links().await?);
        let address_infos = self.net.address_infos().await?;
        let addresses: Vec<(u32, IpNetwork)> = address_infos.iter().map(|info| (info.link, info.address)).collect();
        self.uplink_conditions = missing(&self.device.uplinks, &links);
        self.pool_overlaps = overlaps(self.device.pools.values(), &links, &addresses, &self.pool_bridges());
        let mut uplinks = self.uplink_names(&links, &addresses).await?;
        uplinks.retain(|name| {
            let why = links.iter().find(|l| l.name == name.as_str()).and_then(unfit);
            self.uplink_conditions.extend(why.map(|why| format!("uplink {name}: {why}: not used")));
            why.is_none()
        });
        self.leave_out_the_last(&mut uplinks);
        let mut uplinks: BTreeSet<IfName> = uplinks.into_iter().collect();
        let (locals, left_out) = fitting(locals(&addresses));
        if left_out > 0 {
            let most = locals.len();
            self.uplink_conditions
                .push(format!("{left_out} addresses of the device are not known to the programs: {most} are the most"));
        }
        // Before a program asks: whose addresses these are.
        let networks = networks(self.device.pools.values(), &self.pools);
        let plane = self.plane()?;
        let (known, known_locals) = (plane.uplinks(), plane.locals());
        plane.set_locals(&locals)?;
        plane.set_networks(&networks)?;
        // Those that cannot be hooked are no uplinks: what leaves by them would get no reply.
        let before = self.hook_uplinks(&links, &uplinks).await?;
        uplinks.retain(|name| self.uplinks.contains_key(name));
        let bridges: Vec<(&PoolName, u32)> = self.pools.iter().map(|(pool, link)| (pool, link.index)).collect();
        for link in links.iter().filter(|l| uplinks.iter().any(|name| name.as_str() == l.name)) {
            let why = apart(link, &links, &bridges);
            self.uplink_conditions.extend(why.map(|why| format!("uplink {}: {why}", link.name)));
        }
        self.note_mtu(&links);
        let sources = sources(&self.uplinks, &address_infos);
        let others: Vec<_> =
            sources.iter().flat_map(|(link, s)| s.entries(*link)).take(MAX_SOURCES as usize / 2).collect();
        let infos = uplink_infos(&links, &sources, &uplinks, self.pools.values());
        let down = set_down(&links, &uplinks);
        let was_down = std::mem::replace(&mut self.uplinks_down, down.clone());
        let routes_changed = std::mem::take(&mut self.routes_changed);
        let plane = self.plane()?;
        plane.set_sources(&others)?;
        plane.set_uplinks(&infos)?;
        // A flow keeps the address that it began with as long as the device has it, whatever new ones are given. Of
        // link-local ones no flow is masqueraded, and they come and go with containers' links.
        let lost: Vec<Ip> =
            known_locals.into_iter().filter(|a| !locals.contains_key(a) && !a.is_link_local()).collect();
        // Its entry stays: what leaves by it is masqueraded from the first packet after it is up again.
        let gone: Vec<u32> =
            known.keys().filter(|i| !infos.contains_key(i)).chain(down.difference(&was_down)).copied().collect();
        if !lost.is_empty() || !gone.is_empty() {
            let ended = plane.end_flows_where(|key, entry| {
                gone.contains(&entry.ifindex)
                    || [key.src, key.dst, entry.src, entry.dst].iter().any(|addr| lost.contains(addr))
            })?;
            tell(&ended);
        }
        // After those that cannot go on have ended: the others' way out is looked up again.
        if known != infos || routes_changed {
            plane.routes_changed()?;
        }
        self.refresh_filter(&before)
    }

    /// The uplinks that are there, the important ones first: those of the configuration, else what leads out.
    pub(super) async fn uplink_names(
        &mut self,
        links: &[LinkState],
        addresses: &[(u32, IpNetwork)],
    ) -> Result<Vec<IfName>, Failure> {
        let listed = &self.device.uplinks;
        if !listed.is_empty() {
            let there = |name: &&IfName| links.iter().any(|l| l.name == name.as_str());
            self.filterable = listed.iter().cloned().collect();
            return Ok(listed.iter().filter(there).cloned().collect());
        }
        let named = |link: &LinkState| link.name.parse::<IfName>().ok();
        let default_routes = self.net.default_route_links().await?;
        let found = ways_out(links, addresses, &default_routes, &self.pool_bridges());
        self.filterable = found.iter().filter(|l| default_routes.contains(&l.index)).filter_map(|l| named(l)).collect();
        Ok(found.into_iter().filter_map(named).collect())
    }

    pub(super) fn pool_bridges(&self) -> BTreeSet<&str> {
        self.device.pools.values().filter_map(|p| p.bridge().map(IfName::as_str)).collect()
    }

    /// The programs know so many links; the bridges of pools are among them.
    fn leave_out_the_last(&mut self, uplinks: &mut Vec<IfName>) {
        let room = (MAX_UPLINKS as usize).saturating_sub(self.pools.len());
        if uplinks.len() > room {
            let names: Vec<String> = uplinks.drain(room..).map(|name| name.to_string()).collect();
            self.uplink_conditions.push(format!(
                "uplinks {}: not used: {room} are the most beside the pools: name those that matter in network.uplinks",
                names.join(", ")
            ));
        }
    }

    /// Puts the programs on `uplinks`, and takes them off what is none any more; which had them before, with their
    /// index. One that cannot have them is a condition.
    async fn hook_uplinks(
        &mut self,
        links: &[LinkState],
        uplinks: &BTreeSet<IfName>,
    ) -> Result<BTreeMap<IfName, u32>, Failure> {
        let index: BTreeMap<&str, u32> = links.iter().map(|l| (l.name.as_str(), l.index)).collect();
        let mut now: BTreeMap<IfName, u32> =
            uplinks.iter().filter_map(|name| Some((name.clone(), *index.get(name.as_str())?))).collect();
        let before = std::mem::take(&mut self.uplinks);
        let bridges = self.bridges();
        let bridges_before = std::mem::take(&mut self.hooked_bridges);
        let new = match self.plane()?.hook() {
            Hook::Clsact => {
                let both = |a: &BTreeMap<IfName, u32>, b: &BTreeMap<IfName, u32>| {
                    a.iter().chain(b).map(|(n, i)| (n.clone(), *i)).collect()
                };
                self.prepare_clsact(&both(&now, &bridges), &both(&before, &bridges_before)).await?
            }
            Hook::Tcx => {
                let plane = self.plane()?;
                for hooked in plane.hooked_uplinks()? {
                    let same = now.iter().any(|(name, index)| {
                        name.as_str() == hooked && before.get(name).is_none_or(|was| was == index)
                    });
                    if !same {
                        plane.detach_uplink(&hooked)?;
                    }
                }
                for hooked in plane.hooked_bridges()? {
                    // One that was made anew has the name of the one before, and not its program.
                    let same = bridges.iter().any(|(name, index)| {
                        name.as_str() == hooked && bridges_before.get(name).is_none_or(|was| was == index)
                    });
                    if !same {
                        plane.detach_bridge(&hooked)?;
                    }
                }
                now.keys().chain(bridges.keys()).cloned().collect()
            }
        };
        self.hooked_bridges = bridges;
        for name in new {
            if self.hooked_bridges.contains_key(&name) {
                self.hook_bridge(&name)?;
                continue;
            }
            if let Err(e) = self.plane()?.attach_uplink(&name) {
                now.remove(&name);
                self.uplink_conditions.push(format!("uplink {name}: not used: {e}"));
            }
        }
        self.uplinks = now;
        Ok(before)
    }

    /// The bridges of pools, with their index.
    fn bridges(&self) -> BTreeMap<IfName, u32> {
        let bridge =
            |(pool, link): (&PoolName, &PoolLink)| Some((self.device.pools.get(pool)?.bridge()?.clone(), link.index));
        self.pools.iter().filter_map(bridge).collect()
    }

    /// Puts the program on a pool's bridge. A pool whose bridge has none is not available: what its containers send to
    /// groups would reach the device unasked.
    fn hook_bridge(&mut self, bridge: &IfName) -> Result<(), Failure> {
        let Err(e) = self.plane()?.attach_bridge(bridge) else { return Ok(()) };
        let why = Failure::from(e).line();
        self.hooked_bridges.remove(bridge);
        let device = &self.device;
        let pools: Vec<PoolName> =
            device.pools.values().filter(|p| p.bridge() == Some(bridge)).map(|p| p.name.clone()).collect();
        for pool in pools {
            self.pools.remove(&pool);
            self.pool_conditions.insert(pool, why.clone());
        }
        Ok(())
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
