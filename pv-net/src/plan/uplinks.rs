//! The device's own addresses and its uplinks, as the programs know them. Pure.

use super::uplink_filter::prefix;
use super::{Link, PoolLink, Sources, UplinkSources};
use crate::model::{IfName, Pool, PoolKind, PoolName, alias};
use ipnetwork::IpNetwork;
use pv_net_common::endpoint::{
    LOCAL_ADDRESS, LOCAL_BROADCAST, MAX_LOCALS, UPLINK_BORROWED, UPLINK_NO_CARRIER, UPLINK_POOL, UPLINK_SOURCES,
};
use pv_net_common::{FilterSource, Ip, UplinkInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A link that may be an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC, for an Ethernet link.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is set up (`IFF_UP`).
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// It is the loopback link, a link of pv-net, or a port of another link, so nothing leaves the device by it.
    pub inner: bool,
    /// Why programs at its ingress see none of its packets, if that is so.
    pub unseen: Option<Unseen>,
    /// Name of the VRF that it is a port of.
    pub vrf: Option<String>,
}

impl LinkState {
    /// The device's links, in the order of their indexes.
    #[must_use]
    pub fn all<'a>(links: impl Iterator<Item = &'a Link> + Clone) -> Vec<Self> {
        let is_vrf = |l: &Link| l.kind.as_deref() == Some("vrf");
        let vrfs: BTreeMap<u32, &str> =
            links.clone().filter(|l| is_vrf(l)).map(|l| (l.index, l.name.as_str())).collect();
        let state = |l: &Link| Self {
            index: l.index,
            mac: l.mac,
            mtu: l.mtu,
            up: l.up,
            carrier: l.carrier,
            // Ports of VRFs count too: an administrator who has set a link apart has to name it as an uplink before
            // published ports are reachable by it.
            inner: l.loopback || l.controller.is_some() || alias::is_ours(l.alias.as_deref()),
            unseen: if is_vrf(l) { Some(Unseen::Vrf) } else { l.l3s.then_some(Unseen::L3s) },
            vrf: l.controller.and_then(|index| vrfs.get(&index).map(|name| (*name).to_owned())),
            name: l.name.clone(),
        };
        let mut all: Vec<Self> = links.map(state).collect();
        all.sort_by_key(|l| l.index);
        all
    }
}

/// Why programs at a link's ingress see none of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// An ipvlan in mode l3s.
    L3s,
    /// A VRF: packets come in by its ports.
    Vrf,
}

/// Why a link cannot be an uplink, as the text of a condition; `None` when it can.
#[must_use]
pub const fn unfit(link: &LinkState) -> Option<&'static str> {
    if link.mac.is_none() {
        // The programs read the Ethernet header first, and frames of this link have none.
        return Some("is not an Ethernet link");
    }
    match link.unseen {
        Some(Unseen::L3s) => {
            Some("is an ipvlan in mode l3s, by which packets come in unseen (those in modes l2 and l3 are seen)")
        }
        Some(Unseen::Vrf) => Some("is a VRF, by whose ports packets come in (name those)"),
        None => None,
    }
}

/// The condition about an uplink in a VRF: routes for containers are looked up in the table of their pool's bridge,
/// which may be another one. `bridges` are the pools' bridges.
#[must_use]
pub fn apart(uplink: &LinkState, links: &[LinkState], bridges: &[(&PoolName, u32)]) -> Option<String> {
    let vrf = uplink.vrf.as_deref()?;
    let is_apart =
        |bridge: u32| links.iter().find(|l| l.index == bridge).is_some_and(|l| l.vrf.as_deref() != Some(vrf));
    let pools: Vec<&str> =
        bridges.iter().filter(|(_, bridge)| is_apart(*bridge)).map(|(pool, _)| pool.as_str()).collect();
    let (pools, are) = match pools.as_slice() {
        [] => return None,
        [pool] => (format!("pool {pool}"), "is"),
        pools => (format!("pools {}", pools.join(", ")), "are"),
    };
    Some(format!(
        "is in VRF {vrf}, and {pools} {are} not: published ports are reached by it, but containers go out by it only \
         where a route of the main table leads to it"
    ))
}

/// The links that lead out of the device, when the configuration names none: first those with a default route, then
/// Ethernet links with an address of more than link scope. `bridges` are the pools' bridges.
#[must_use]
pub fn ways_out<'a>(
    links: &'a [LinkState],
    addresses: &[(u32, IpNetwork)],
    default_routes: &BTreeSet<u32>,
    bridges: &BTreeSet<&str>,
) -> Vec<&'a LinkState> {
    let is_default = |link: &LinkState| default_routes.contains(&link.index);
    let has_address = |link: &LinkState| addresses.iter().any(|(index, a)| *index == link.index && is_known(a.ip()));
    // A VRF often has an address, for the programs that use it.
    let is_card = |link: &LinkState| link.mac.is_some() && link.unseen != Some(Unseen::Vrf);
    let leads_out = |link: &LinkState| is_default(link) || is_card(link) && has_address(link);
    let mut found: Vec<&LinkState> =
        links.iter().filter(|l| !l.inner && !bridges.contains(l.name.as_str()) && leads_out(l)).collect();
    found.sort_by_key(|l| (!is_default(l), l.index));
    found
}

/// The conditions about networks of the device's links that overlap with `pools`: what containers send there never
/// leaves the pool, and what the device sends there may go to either. `bridges` are the pools' bridges, whose networks
/// are the pools' own.
#[must_use]
pub fn overlaps<'a>(
    pools: impl Iterator<Item = &'a Pool>,
    links: &[LinkState],
    addresses: &[(u32, IpNetwork)],
    bridges: &BTreeSet<&str>,
) -> BTreeMap<PoolName, Vec<String>> {
    let mut found = BTreeMap::<PoolName, Vec<String>>::new();
    // Only pools with a bridge are checked: interfaces of other kinds are meant to be in the network of their parent.
    for pool in pools.filter(|pool| matches!(pool.kind, PoolKind::Bridge { .. })) {
        for (index, address) in addresses.iter().filter(|(_, a)| is_known(a.ip())) {
            let Some(link) = links.iter().find(|l| l.index == *index) else { continue };
            if link.inner || bridges.contains(link.name.as_str()) {
                continue;
            }
            for net in pool.networks().filter(|net| overlap(*net, *address)) {
                let other = format!("{}/{}", address.network(), address.prefix());
                let why = format!(
                    "{net} overlaps {other} of link {}: choose another subnet, or give the link another address",
                    link.name
                );
                let all = found.entry(pool.name.clone()).or_default();
                // A link may have several addresses in one network.
                if !all.contains(&why) {
                    all.push(why);
                }
            }
        }
    }
    found
}

/// Whether two networks share an address.
fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv6() == b.is_ipv6() && (a.contains(b.network()) || b.contains(a.network()))
}

/// Whether an address has more than link scope.
fn is_known(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

/// All addresses of the device and the broadcast addresses of its networks, with their kind.
#[must_use]
pub fn locals(addresses: &[(u32, IpNetwork)]) -> BTreeMap<Ip, u32> {
    let broadcasts = addresses.iter().filter_map(|(_, a)| match a {
        // A network of two addresses has no broadcast address (RFC 3021).
        IpNetwork::V4(net) if net.prefix() < 31 => Some((Ip::from(net.broadcast()), LOCAL_BROADCAST)),
        _ => None,
    });
    // Later entries win: an address that is also a broadcast address counts as the device's.
    broadcasts.chain(addresses.iter().map(|(_, a)| (Ip::from(a.ip()), LOCAL_ADDRESS))).collect()
}

/// The networks of `pools` as prefixes of the `networks` map, with the index of the pool's bridge, 0 for a pool without
/// one.
#[must_use]
pub fn networks<'a>(
    pools: impl Iterator<Item = &'a Pool>,
    bridges: &BTreeMap<PoolName, PoolLink>,
) -> BTreeMap<(u32, FilterSource), u32> {
    // Pools of other kinds share the network of their parent.
    let pools = pools.filter(|pool| matches!(pool.kind, PoolKind::Bridge { .. }));
    let of_pool = |pool: &'a Pool| {
        let bridge = bridges.get(&pool.name).map_or(0, |link| link.index);
        pool.networks().map(move |network| (prefix(network), bridge))
    };
    pools.flat_map(of_pool).collect()
}

/// At most half as many addresses as the `locals` map has room for, so that all of them can be replaced by others, and
/// how many are left out. Link-local ones are left out first: a container reaches only that of its own pool's bridge.
#[must_use]
pub fn fitting(mut locals: BTreeMap<Ip, u32>) -> (BTreeMap<Ip, u32>, usize) {
    const ROOM: usize = MAX_LOCALS as usize / 2;
    let excess = locals.len().saturating_sub(ROOM);
    let (link_local, others): (Vec<Ip>, Vec<Ip>) = locals.keys().partition(|a| a.is_link_local());
    for addr in link_local.iter().chain(&others).take(excess) {
        locals.remove(addr);
    }
    (locals, excess)
}

/// The indexes of uplinks that are set down. Their IPv4 addresses stay, but no packet passes.
#[must_use]
pub fn set_down(links: &[LinkState], uplinks: &BTreeSet<IfName>) -> BTreeSet<u32> {
    let is_uplink = |link: &&LinkState| uplinks.iter().any(|u| u.as_str() == link.name);
    links.iter().filter(is_uplink).filter(|link| !link.up).map(|link| link.index).collect()
}

/// The entries of the `uplinks` map: the uplinks and the pools' bridges. `sources` are the uplinks' source addresses,
/// by index.
#[must_use]
pub fn uplink_infos<'a>(
    links: &[LinkState],
    sources: &BTreeMap<u32, UplinkSources>,
    uplinks: &BTreeSet<IfName>,
    pools: impl Iterator<Item = &'a PoolLink>,
) -> BTreeMap<u32, UplinkInfo> {
    let mut infos = BTreeMap::new();
    for link in links.iter().filter(|l| uplinks.iter().any(|u| u.as_str() == l.name)) {
        let source = sources.get(&link.index);
        let usual =
            |of: fn(&UplinkSources) -> &Sources| source.and_then(|s| of(s).usual).map_or(Ip::UNSPECIFIED, Ip::from);
        let has_others = source.is_some_and(|s| s.entries(link.index).next().is_some());
        infos.insert(
            link.index,
            UplinkInfo {
                addr4: usual(|s| &s.v4),
                addr6: usual(|s| &s.v6),
                mtu: link.mtu,
                mac: link.mac.unwrap_or_default(),
                flags: if has_others { UPLINK_SOURCES } else { 0 } | if link.carrier { 0 } else { UPLINK_NO_CARRIER },
                pool_id: 0,
            },
        );
    }
    for pool in pools.filter(|pool| !pool.on_parent) {
        let flags = if pool.borrowed { UPLINK_POOL | UPLINK_BORROWED } else { UPLINK_POOL };
        let (mtu, mac, pool_id) = (pool.mtu, pool.mac.0, pool.id);
        infos.insert(pool.index, UplinkInfo { mtu, mac, flags, pool_id, ..UplinkInfo::default() });
    }
    infos
}

#[cfg(test)]
mod tests;
