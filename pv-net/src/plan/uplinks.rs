//! The device's own addresses and its uplinks, as the programs know them. Pure.

use super::uplink_filter::prefix;
use super::{PoolLink, Sources, UplinkSources};
use crate::model::{IfName, Pool, PoolKind, PoolName};
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
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// It is the loopback link, pv-net made it, or it is a port of another link: nothing leaves the device by it.
    pub inner: bool,
    /// No program sees what comes in by it.
    pub unseen: Option<Unseen>,
    /// Name of the VRF that it is a port of.
    pub vrf: Option<String>,
}

/// Links whose packets pass no program at their ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// An ipvlan in mode l3s.
    L3s,
    /// A VRF: its ports are what packets come in by.
    Vrf,
}

/// Why a link cannot be an uplink, as a condition says it; none when it can.
#[must_use]
pub const fn unfit(link: &LinkState) -> Option<&'static str> {
    if link.mac.is_none() {
        // Its frames have no Ethernet header, that the programs read first.
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

/// What does not work by an uplink in a VRF, as a condition says it: routes for containers are looked up in the table of
/// their pool's bridge. `bridges` are those, with their pools.
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

/// The links that lead out of the device, when nobody has said which: those of default routes, in front, and Ethernet
/// links that have an address which is known beyond the link. `bridges` are those of pools.
#[must_use]
pub fn ways_out<'a>(
    links: &'a [LinkState],
    addresses: &[(u32, IpNetwork)],
    default_routes: &BTreeSet<u32>,
    bridges: &BTreeSet<&str>,
) -> Vec<&'a LinkState> {
    let is_default = |link: &LinkState| default_routes.contains(&link.index);
    let has_address = |link: &LinkState| addresses.iter().any(|(index, a)| *index == link.index && is_known(a.ip()));
    // A VRF often has an address, for the programs in it.
    let is_card = |link: &LinkState| link.mac.is_some() && link.unseen != Some(Unseen::Vrf);
    let leads_out = |link: &LinkState| is_default(link) || is_card(link) && has_address(link);
    let mut found: Vec<&LinkState> =
        links.iter().filter(|l| !l.inner && !bridges.contains(l.name.as_str()) && leads_out(l)).collect();
    found.sort_by_key(|l| (!is_default(l), l.index));
    found
}

/// Networks of the device's links that `pools` overlap: what containers send there never leaves the pool, and what the
/// device sends there may go to either. `bridges` are those of pools, whose networks are the pools' own.
#[must_use]
pub fn overlaps<'a>(
    pools: impl Iterator<Item = &'a Pool>,
    links: &[LinkState],
    addresses: &[(u32, IpNetwork)],
    bridges: &BTreeSet<&str>,
) -> BTreeMap<PoolName, Vec<String>> {
    let mut found = BTreeMap::<PoolName, Vec<String>>::new();
    // Interfaces of other pools are meant to be in the network of their parent.
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

/// Whether an address means something beyond its link.
fn is_known(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

/// All addresses of the device, and the broadcast addresses of its networks, with their kind.
#[must_use]
pub fn locals(addresses: &[(u32, IpNetwork)]) -> BTreeMap<Ip, u32> {
    let broadcasts = addresses.iter().filter_map(|(_, a)| match a {
        // A network of two has none (RFC 3021).
        IpNetwork::V4(net) if net.prefix() < 31 => Some((Ip::from(net.broadcast()), LOCAL_BROADCAST)),
        _ => None,
    });
    // An address that is both is the device's.
    broadcasts.chain(addresses.iter().map(|(_, a)| (Ip::from(a.ip()), LOCAL_ADDRESS))).collect()
}

/// The networks of `pools`, as prefixes of the `networks` map, with the index of their bridge; 0 when there is none.
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

/// As many of the device's addresses as the programs can know while they still know as many others, and how many are
/// left out. Link-local ones go first: a container reaches none but that of its own pool's bridge.
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

/// The uplinks that are set down: IPv4 addresses stay on them, but no packet leaves or comes.
#[must_use]
pub fn set_down(links: &[LinkState], uplinks: &BTreeSet<IfName>) -> BTreeSet<u32> {
    let is_uplink = |link: &&LinkState| uplinks.iter().any(|u| u.as_str() == link.name);
    links.iter().filter(is_uplink).filter(|link| !link.up).map(|link| link.index).collect()
}

/// The entries for the uplinks, and for the pools' bridges. `sources` are the uplinks' by index.
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
    for pool in pools {
        let flags = if pool.borrowed { UPLINK_POOL | UPLINK_BORROWED } else { UPLINK_POOL };
        let (mtu, mac, pool_id) = (pool.mtu, pool.mac.0, pool.id);
        infos.insert(pool.index, UplinkInfo { mtu, mac, flags, pool_id, ..UplinkInfo::default() });
    }
    infos
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mac;
    use crate::plan::Candidate;

    fn link(index: u32, name: &str) -> LinkState {
        LinkState {
            index,
            name: name.to_owned(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            carrier: true,
            inner: false,
            unseen: None,
            vrf: None,
        }
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("net")
    }

    #[test]
    fn links_with_an_address_or_a_default_route_lead_out() {
        let links = [
            LinkState { inner: true, mac: None, ..link(1, "lo") },
            link(2, "lan0"),
            link(3, "wan0"),
            link(4, "docker0"),
            link(5, "pvbr3"),
            LinkState { inner: true, ..link(6, "port0") },
            LinkState { mac: None, ..link(7, "wg0") },
            LinkState { mac: None, ..link(8, "wwan0") },
            link(9, "idle0"),
            link(10, "local0"),
            link(11, "lan6"),
            LinkState { unseen: Some(Unseen::Vrf), ..link(12, "vrf0") },
        ];
        let addresses = [
            (1, net("192.0.2.255/32")),
            (2, net("10.1.0.1/24")),
            (4, net("172.17.0.1/16")),
            (5, net("10.0.3.1/24")),
            (6, net("10.2.0.1/24")),
            (7, net("10.9.0.1/24")),
            (10, net("fe80::1/64")),
            (10, net("169.254.3.1/16")),
            (11, net("fd00:1::1/64")),
            (12, net("10.8.0.1/32")),
        ];
        let names = |default_routes: &[u32]| {
            let found = ways_out(&links, &addresses, &default_routes.iter().copied().collect(), &["pvbr3"].into());
            found.iter().map(|l| l.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[3]), ["wan0", "lan0", "docker0", "lan6"]);
        // Without an Ethernet header it is nothing that programs can read; a default route deserves that it is said.
        assert_eq!(names(&[8, 1, 5]), ["wwan0", "lan0", "docker0", "lan6"]);
    }

    #[test]
    fn pools_that_overlap_a_network_of_the_device_are_found() {
        let text = r#"{"network": {"pools": {
            "mine": {"bridge": "pvbr3", "subnet": "172.17.3.0/24", "subnet6": "fd00:5056::/64"},
            "other": {"bridge": "pvbr4", "subnet": "10.0.4.0/24"},
            "direct": {"type": "macvlan", "parent": "wan0", "subnet": "172.17.9.0/24"}
        }}}"#;
        let device = crate::config::parse_device("device.json", text).expect("valid");
        let links = [
            LinkState { inner: true, mac: None, ..link(1, "lo") },
            link(2, "docker0"),
            link(3, "pvbr3"),
            LinkState { mac: None, ..link(4, "wg0") },
            LinkState { inner: true, ..link(5, "pv-port") },
            link(6, "wan0"),
        ];
        let found = |addresses: &[(u32, &str)]| {
            let addresses: Vec<_> = addresses.iter().map(|(index, a)| (*index, net(a))).collect();
            let bridges = ["pvbr3", "pvbr4"].into();
            let found = overlaps(device.pools.values(), &links, &addresses, &bridges);
            found.into_iter().map(|(pool, why)| format!("{pool}: {}", why.join("; "))).collect::<Vec<_>>().join("\n")
        };
        for (name, addresses, said) in [
            ("its own bridge", [(3, "172.17.3.1/24"), (3, "fd00:5056::1/64")], ""),
            ("loopback, and a port", [(1, "172.17.3.7/32"), (5, "172.17.3.8/24")], ""),
            ("elsewhere", [(2, "172.18.0.1/16"), (6, "fd00:5057::1/64")], ""),
            ("link-local", [(6, "169.254.0.1/16"), (6, "fe80::1/64")], ""),
            (
                "docker",
                [(2, "172.17.0.1/16"), (6, "192.0.2.1/24")],
                "mine: 172.17.3.0/24 overlaps 172.17.0.0/16 of link docker0",
            ),
            (
                "a part of it",
                [(4, "10.0.4.129/28"), (6, "192.0.2.1/24")],
                "other: 10.0.4.0/24 overlaps 10.0.4.128/28 of link wg0",
            ),
            ("IPv6", [(6, "fd00::1/16"), (6, "192.0.2.1/24")], "mine: fd00:5056::/64 overlaps fd00::/16 of link wan0"),
        ] {
            let found = found(&addresses);
            assert!(found.starts_with(said) && found.is_empty() == said.is_empty(), "{name}: {found}");
        }
    }

    #[test]
    fn a_link_that_programs_cannot_read_is_unfit() {
        assert_eq!(unfit(&link(2, "eth0")), None);
        assert_eq!(unfit(&LinkState { mac: None, ..link(2, "wwan0") }), Some("is not an Ethernet link"));
        for (unseen, word) in [(Unseen::L3s, "l3s"), (Unseen::Vrf, "VRF")] {
            let why = unfit(&LinkState { unseen: Some(unseen), ..link(2, "eth0") });
            assert!(why.is_some_and(|why| why.contains(word)), "{why:?}");
        }
    }

    #[test]
    fn an_uplink_in_a_vrf_without_a_pools_bridge_is_said() {
        let within = |index, name, vrf: &str| LinkState { vrf: Some(vrf.to_owned()), ..link(index, name) };
        let links = [link(2, "eth0"), within(3, "eth1", "red"), link(4, "pvbr4"), within(5, "pvbr5", "red")];
        let names = ["a", "b", "c"].map(|name| name.parse::<PoolName>().expect("name"));
        let [a, b, c] = &names;
        let said = |uplink: usize, bridges: &[(&PoolName, u32)]| {
            let why = apart(&links[uplink], &links, bridges);
            why.map(|why| why.split(':').next().unwrap_or_default().to_owned())
        };
        assert_eq!(said(0, &[(a, 4), (b, 5)]), None);
        assert_eq!(said(1, &[(b, 5)]), None);
        assert_eq!(said(1, &[(a, 4), (b, 5)]).as_deref(), Some("is in VRF red, and pool a is not"));
        assert_eq!(said(1, &[(a, 4), (c, 2)]).as_deref(), Some("is in VRF red, and pools a, c are not"));
    }

    #[test]
    fn only_uplinks_that_are_down_are_set_down() {
        let links =
            [link(2, "wan0"), LinkState { up: false, ..link(3, "lan0") }, LinkState { up: false, ..link(4, "x") }];
        let uplinks = ["wan0", "lan0"].map(|name| name.parse().expect("name")).into();
        assert_eq!(set_down(&links, &uplinks), BTreeSet::from([3]));
    }

    #[test]
    fn of_too_many_addresses_link_local_ones_are_left_out_first() {
        let room = MAX_LOCALS / 2;
        let global = |n: u32| Ip::from(std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)));
        let link_local = |n: u32| Ip::from(std::net::Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(n)));
        for (globals, link_locals, left_out, kept) in
            [(1, room - 1, 0, room - 1), (room - 1, 3, 2, 1), (room + 4, 3, 7, 0)]
        {
            let all = (0..globals).map(global).chain((0..link_locals).map(link_local));
            let all = all.map(|a| (a, LOCAL_ADDRESS)).collect();
            let (fit, excess) = fitting(all);
            assert_eq!((fit.len(), excess), (room as usize, left_out));
            assert_eq!(fit.keys().filter(|a| a.is_link_local()).count(), kept as usize);
        }
    }

    #[test]
    fn an_uplink_masquerades_with_its_own_addresses() {
        let first = LinkState { mtu: 1400, ..link(4, "eth0") };
        let other = LinkState { mac: None, ..link(5, "eth1") };
        let candidates = ["192.0.2.7/24", "2001:db8::7/64", "fd00:1::7/64"].map(|a| Candidate {
            address: net(a),
            avoided: false,
            temporary: false,
            secondary: false,
        });
        let sources = |n: usize| BTreeMap::from([(4, UplinkSources::new(&candidates[..n], false))]);
        let uplinks = BTreeSet::from(["eth0".parse().expect("name")]);
        let pool = PoolLink { index: 9, mac: Mac([1; 6]), mtu: 1500, id: 1, borrowed: false };
        let links = [first, other];
        let infos = |n: usize| uplink_infos(&links, &sources(n), &uplinks, std::iter::once(&pool));
        let two = infos(2);
        assert_eq!(two.keys().copied().collect::<Vec<_>>(), [4, 9]);
        assert_eq!(IpAddr::from(two[&4].addr4).to_string(), "192.0.2.7");
        assert_eq!(IpAddr::from(two[&4].addr6).to_string(), "2001:db8::7");
        assert_eq!((two[&4].mtu, two[&4].flags, two[&9].flags), (1400, 0, UPLINK_POOL));
        // Unique local ones have an entry of their own.
        assert_eq!(infos(3)[&4], UplinkInfo { flags: UPLINK_SOURCES, ..two[&4] });
    }

    #[test]
    fn broadcast_addresses_are_local_too() {
        let all = ["192.0.2.7/24", "203.0.113.1/31", "2001:db8::7/64"].map(|a| (4, net(a)));
        let kinds: BTreeMap<String, u32> =
            locals(&all).into_iter().map(|(a, kind)| (IpAddr::from(a).to_string(), kind)).collect();
        let want = [
            ("192.0.2.255", LOCAL_BROADCAST),
            ("192.0.2.7", LOCAL_ADDRESS),
            ("2001:db8::7", LOCAL_ADDRESS),
            ("203.0.113.1", LOCAL_ADDRESS),
        ];
        assert_eq!(kinds, want.map(|(a, kind)| (a.to_owned(), kind)).into());
    }
}
