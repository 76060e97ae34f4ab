//! The device's side: its addresses, its uplinks, its sockets. Read again whenever the kernel reports a change.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::kernel::bpf::Hook;
use crate::kernel::{cgroup, netns, sysctl};
use crate::model::{IfName, Pool, PoolName};
use crate::plan::{
    Address, Candidate, HookPoint, LinkState, Observed, Op, PoolLink, Tables, UplinkSources, apart, fitting, locals,
    networks, overlaps, set_down, unfit, uplink_infos, ways_out,
};
use ipnetwork::IpNetwork;
use pv_net_common::Ip;
use pv_net_common::endpoint::{MAX_SOURCES, MAX_UPLINKS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Conditions about configured uplinks that do not exist.
fn missing(uplinks: &[IfName], links: &[LinkState]) -> Vec<String> {
    let absent = |name: &&IfName| !links.iter().any(|l| l.name == name.as_str());
    uplinks.iter().filter(absent).map(|name| format!("uplink {name}: no such link: it is used when it comes")).collect()
}

/// Masquerade's source addresses by the uplink's index. Tentative addresses and those of link scope cannot be used.
fn sources(uplinks: &BTreeMap<IfName, u32>, addresses: &[Address]) -> BTreeMap<u32, UplinkSources> {
    let of = |(name, link): (&IfName, &u32)| {
        let candidates: Vec<Candidate> = addresses.iter().filter(|a| a.link == *link).filter_map(candidate).collect();
        let prefer_temporary = sysctl::get("ipv6", name, "use_tempaddr").and_then(|text| text.parse::<i32>().ok());
        (*link, UplinkSources::new(&candidates, prefer_temporary.is_some_and(|n| n > 1)))
    };
    uplinks.iter().map(of).collect()
}

fn candidate(info: &Address) -> Option<Candidate> {
    let usable = match info.address.ip() {
        IpAddr::V4(addr) => !addr.is_loopback(),
        IpAddr::V6(addr) => info.beyond_link && !addr.is_unicast_link_local() && !addr.is_loopback() && !info.unusable,
    };
    usable.then_some(Candidate {
        address: info.address,
        avoided: info.avoided,
        temporary: info.address.is_ipv6() && info.secondary,
        secondary: info.address.is_ipv4() && (info.secondary || !info.beyond_link),
    })
}

impl Daemon {
    /// Has nobody be given an address that the device has itself.
    async fn follow_own_addresses(&mut self, addresses: &[(u32, IpNetwork)]) -> Result<(), Failure> {
        let nets: Vec<IpNetwork> = self.device.pools.values().flat_map(Pool::networks).collect();
        let own = addresses.iter().map(|(_, own)| own.ip()).filter(|own| nets.iter().any(|net| net.contains(*own)));
        let own: BTreeSet<IpAddr> = own.collect();
        if own != self.own_addresses {
            if !self.is_rehearsing() {
                self.leases.set_device(own.clone()).await?;
            }
            self.own_addresses = own;
        }
        Ok(())
    }

    /// Brings addresses, uplinks and their programs to the kernel's present state. Flows that used a removed address or
    /// uplink end.
    ///
    /// # Errors
    /// When the kernel cannot be observed, or refuses a step.
    pub(super) async fn refresh_uplinks(&mut self) -> Result<(), Failure> {
        if !self.is_active() {
            return Ok(());
        }
        let observed = self.host().observe_device().await?;
        let links = LinkState::all(observed.links.values());
        let addresses = observed.networks();
        self.follow_own_addresses(&addresses).await?;
        self.uplink_conditions = missing(&self.device.uplinks, &links);
        self.pool_overlaps = overlaps(self.device.pools.values(), &links, &addresses, &self.pool_bridges());
        let mut uplinks = self.uplink_names(&links, &observed);
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
        let networks = networks(self.device.pools.values(), &self.pools);
        let mut wanted = Tables { locals, networks, ..observed.tables.clone() };
        // Addresses are entered before programs ask for them.
        let (gone_addresses, added): (Vec<Op>, Vec<Op>) =
            observed.tables.address_steps(&wanted).into_iter().partition(Op::removes);
        self.apply_all(&added).await?;
        // Links on which no program can be attached do not count as uplinks, since replies by them would not be
        // translated back.
        self.hook_uplinks(&links, &uplinks, &observed).await?;
        uplinks.retain(|name| self.uplinks.contains_key(name));
        let of_bridges = self.pools.iter().filter(|(_, link)| !link.on_parent);
        let bridges: Vec<(&PoolName, u32)> = of_bridges.map(|(pool, link)| (pool, link.index)).collect();
        for link in links.iter().filter(|l| uplinks.iter().any(|name| name.as_str() == l.name)) {
            let why = apart(link, &links, &bridges);
            self.uplink_conditions.extend(why.map(|why| format!("uplink {}: {why}", link.name)));
        }
        self.note_mtu(&links);
        let sources = sources(&self.uplinks, &observed.addresses);
        let has_route6 = |index: &u32| observed.default_routes[1].contains(index);
        self.has_way_out6 = sources.iter().any(|(index, sources)| sources.v6.usual.is_some() || has_route6(index));
        let others = sources.iter().flat_map(|(link, s)| s.entries(*link)).take(MAX_SOURCES as usize / 2);
        wanted.sources = others.collect();
        wanted.uplinks = uplink_infos(&links, &sources, &uplinks, self.pools.values());
        let down = set_down(&links, &uplinks);
        let was_down = self.uplinks_down.clone();
        let (gone_uplinks, mut ops): (Vec<Op>, Vec<Op>) =
            observed.tables.uplink_steps(&wanted).into_iter().partition(Op::removes);
        // A flow keeps its address as long as the device has it, whatever new addresses there are. Link-local addresses
        // come and go with containers' links, and no flow is masqueraded with them.
        let known = &observed.tables;
        let is_lost = |a: &&Ip| !wanted.locals.contains_key(a) && !a.is_link_local();
        let lost: Vec<Ip> = known.locals.keys().filter(is_lost).copied().collect();
        // The entry of an uplink that is down stays, so that packets are masqueraded from the first one after it is up
        // again.
        let gone = known.uplinks.keys().filter(|i| !wanted.uplinks.contains_key(i));
        let gone: Vec<u32> = gone.chain(down.difference(&was_down)).copied().collect();
        let end =
            (!lost.is_empty() || !gone.is_empty()).then_some(Op::EndUplinkFlows { uplinks: gone, addresses: lost });
        // Flows end before the entries are removed, so that an interrupted daemon's successor finds both; and again
        // afterwards, for flows that began in between.
        ops.extend(end.clone());
        ops.extend(gone_uplinks.into_iter().chain(gone_addresses));
        ops.extend(end);
        // When flows that cannot continue have ended, the others look up their way out again.
        if known.uplinks != wanted.uplinks || self.routes_changed {
            ops.push(Op::RenewRoutes);
        }
        self.apply_all(&ops).await?;
        self.routes_changed = false;
        self.uplinks_down = down;
        self.guard_parents(&observed);
        self.refresh_filter(&observed).await
    }

    /// The uplinks that exist, the most important first: those of the configuration, else the links that lead out.
    pub(super) fn uplink_names(&mut self, links: &[LinkState], observed: &Observed) -> Vec<IfName> {
        let listed = &self.device.uplinks;
        if !listed.is_empty() {
            let there = |name: &&IfName| links.iter().any(|l| l.name == name.as_str());
            self.filterable = listed.iter().cloned().collect();
            return listed.iter().filter(there).cloned().collect();
        }
        let named = |link: &LinkState| link.name.parse::<IfName>().ok();
        let [v4, v6] = &observed.default_routes;
        let default_routes = &(v4 | v6);
        let found = ways_out(links, &observed.networks(), default_routes, &self.pool_bridges());
        self.filterable = found.iter().filter(|l| default_routes.contains(&l.index)).filter_map(|l| named(l)).collect();
        found.into_iter().filter_map(named).collect()
    }

    pub(super) fn pool_bridges(&self) -> BTreeSet<&str> {
        self.device.pools.values().filter_map(|p| p.bridge().map(IfName::as_str)).collect()
    }

    /// Leaves out the last uplinks when there are more than the map has room for, beside the pools' bridges.
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

    /// Attaches programs to `uplinks` and the pools' bridges, and detaches them from links that are neither any more.
    /// An uplink that cannot have its program is a condition.
    async fn hook_uplinks(
        &mut self,
        links: &[LinkState],
        uplinks: &BTreeSet<IfName>,
        observed: &Observed,
    ) -> Result<(), Failure> {
        let index: BTreeMap<&str, u32> = links.iter().map(|l| (l.name.as_str(), l.index)).collect();
        let mut now: BTreeMap<IfName, u32> =
            uplinks.iter().filter_map(|name| Some((name.clone(), *index.get(name.as_str())?))).collect();
        let bridges = self.bridges();
        // Programs on bridges are detached later, when none of the bridges' ports is open any more.
        let shares_place = self.hook() == Hook::Clsact;
        let is_gone = |at: HookPoint, index: u32| {
            let takes_its_place = || shares_place && bridges.values().any(|i| *i == index);
            at == HookPoint::Uplink && !now.values().any(|i| *i == index) && !takes_its_place()
        };
        let gone = observed.hooked.keys().filter(|(at, index)| is_gone(*at, *index));
        let unhook =
            |(at, index): &(HookPoint, u32)| Op::Unhook { at: *at, link: observed.name_of(*index), index: *index };
        // When a step fails, what is known about uplinks stays.
        self.apply_all(&gone.map(unhook).collect::<Vec<_>>()).await?;
        let uplinks_now = now.iter().map(|(name, index)| (HookPoint::Uplink, name.clone(), *index));
        let bridges_now = bridges.iter().map(|(name, index)| (HookPoint::Bridge, name.clone(), *index));
        let mut new: Vec<(HookPoint, IfName, u32)> = uplinks_now.chain(bridges_now).collect();
        new.retain(|(at, name, index)| {
            !observed.is_hooked(*at, *index) && (*at == HookPoint::Bridge || !bridges.contains_key(name))
        });
        self.hooked_bridges.clone_from(&bridges);
        if self.hook() == Hook::Clsact {
            self.prepare_clsact(&new)?;
        }
        for (place, name, index) in new {
            let Err(e) = self.host().apply(&Op::Hook { at: place, link: name.clone(), index }).await else { continue };
            if place == HookPoint::Bridge {
                self.lose_bridge(&name, &Failure::from(e).line());
            } else {
                now.remove(&name);
                self.uplink_conditions.push(format!("uplink {name}: not used: {e}"));
            }
        }
        self.uplinks = now;
        self.release_clsact(&observed.hooked).await
    }

    /// Detaches the programs from bridges that are no pool's any more.
    ///
    /// # Errors
    /// When the kernel cannot be observed, or refuses a step.
    pub(super) async fn unhook_old_bridges(&mut self) -> Result<(), Failure> {
        let observed = self.host().observe_device().await?;
        let is_old = |at: HookPoint, index: u32| {
            let takes_its_place = || self.hook() == Hook::Clsact && self.uplinks.values().any(|i| *i == index);
            at == HookPoint::Bridge && !self.hooked_bridges.values().any(|i| *i == index) && !takes_its_place()
        };
        let old = observed.hooked.keys().filter(|(at, index)| is_old(*at, *index));
        let unhook =
            |(at, index): &(HookPoint, u32)| Op::Unhook { at: *at, link: observed.name_of(*index), index: *index };
        let ops: Vec<Op> = old.map(unhook).collect();
        self.apply_all(&ops).await?;
        self.release_clsact(&BTreeMap::new()).await
    }

    /// The pools' bridges, with their index.
    fn bridges(&self) -> BTreeMap<IfName, u32> {
        let bridge =
            |(pool, link): (&PoolName, &PoolLink)| Some((self.device.pools.get(pool)?.bridge()?.clone(), link.index));
        self.pools.iter().filter_map(bridge).collect()
    }

    /// Marks a pool as not available because its bridge has no program: packets of its containers to groups would reach
    /// the device unchecked.
    fn lose_bridge(&mut self, bridge: &IfName, why: &str) {
        self.hooked_bridges.remove(bridge);
        let device = &self.device;
        let pools: Vec<PoolName> =
            device.pools.values().filter(|p| p.bridge() == Some(bridge)).map(|p| p.name.clone()).collect();
        for pool in pools {
            self.pools.remove(&pool);
            self.pool_conditions.insert(pool, why.to_owned());
        }
    }

    /// Attaches the socket hooks. Without them published ports work from everywhere except the device itself.
    pub(super) fn hook_sockets(&mut self) {
        let lost = "published ports are not reached from the device's own programs";
        self.start_conditions.retain(|condition| !condition.ends_with(lost));
        let condition = match (cgroup::find(&self.paths.cgroup), netns::own_cookie()) {
            (None, _) => Some(format!("no cgroup2 hierarchy is mounted: {lost}")),
            (_, Err(e)) => Some(format!("SO_NETNS_COOKIE: {e} (kernel 5.14): {lost}")),
            (Some(path), Ok(cookie)) => {
                let Some(plane) = &mut self.plane else { return };
                let hooked = plane.set_netns_cookie(cookie).and_then(|()| plane.attach_sockets(&path));
                hooked.err().map(|e| format!("{e}: {lost}"))
            }
        };
        self.has_socket_hooks = condition.is_none();
        self.start_conditions.extend(condition);
    }
}
