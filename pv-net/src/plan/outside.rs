//! The device's own addresses and its uplinks, as the programs know them. Pure.

use super::PoolLink;
use crate::model::IfName;
use ipnetwork::IpNetwork;
use pv_net_common::endpoint::UPLINK_POOL;
use pv_net_common::{Ip, UplinkInfo};
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
    /// It is the loopback link, pv-net made it, or it is a port of another link: nothing leaves the device by it.
    pub inner: bool,
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
    let leads_out = |link: &LinkState| is_default(link) || link.mac.is_some() && has_address(link);
    let mut found: Vec<&LinkState> =
        links.iter().filter(|l| !l.inner && !bridges.contains(l.name.as_str()) && leads_out(l)).collect();
    found.sort_by_key(|l| (!is_default(l), l.index));
    found
}

/// Whether an address means something beyond its link.
fn is_known(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

/// All addresses of the device.
#[must_use]
pub fn locals(addresses: &[(u32, IpNetwork)]) -> BTreeSet<Ip> {
    addresses.iter().map(|(_, a)| Ip::from(a.ip())).collect()
}

/// The uplinks that are set down: IPv4 addresses stay on them, but no packet leaves or comes.
#[must_use]
pub fn set_down(links: &[LinkState], uplinks: &BTreeSet<IfName>) -> BTreeSet<u32> {
    let is_uplink = |link: &&LinkState| uplinks.iter().any(|u| u.as_str() == link.name);
    links.iter().filter(is_uplink).filter(|link| !link.up).map(|link| link.index).collect()
}

/// The entries for the uplinks, and for the pools' bridges.
#[must_use]
pub fn uplink_infos<'a>(
    links: &[LinkState],
    addresses: &[(u32, IpNetwork)],
    uplinks: &BTreeSet<IfName>,
    pools: impl Iterator<Item = &'a PoolLink>,
) -> BTreeMap<u32, UplinkInfo> {
    let mut infos = BTreeMap::new();
    for link in links.iter().filter(|l| uplinks.iter().any(|u| u.as_str() == l.name)) {
        let of_link = || addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, a)| a.ip());
        let addr4 = of_link().find(|a| a.is_ipv4() && !a.is_loopback());
        let addr6 = of_link().find(|a| matches!(a, IpAddr::V6(a) if !a.is_unicast_link_local() && !a.is_loopback()));
        let zero = Ip::UNSPECIFIED;
        infos.insert(
            link.index,
            UplinkInfo {
                addr4: addr4.map_or(zero, Ip::from),
                addr6: addr6.map_or(zero, Ip::from),
                mtu: link.mtu,
                mac: link.mac.unwrap_or_default(),
                flags: 0,
            },
        );
    }
    for pool in pools {
        let info = UplinkInfo { mtu: pool.mtu, mac: pool.mac.0, flags: UPLINK_POOL, ..UplinkInfo::default() };
        infos.insert(pool.index, info);
    }
    infos
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mac;

    fn link(index: u32, name: &str) -> LinkState {
        LinkState { index, name: name.to_owned(), mac: Some([2; 6]), mtu: 1500, up: true, inner: false }
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
    fn only_uplinks_that_are_down_are_set_down() {
        let links =
            [link(2, "wan0"), LinkState { up: false, ..link(3, "lan0") }, LinkState { up: false, ..link(4, "x") }];
        let uplinks = ["wan0", "lan0"].map(|name| name.parse().expect("name")).into();
        assert_eq!(set_down(&links, &uplinks), BTreeSet::from([3]));
    }

    #[test]
    fn an_uplink_masquerades_with_its_first_global_addresses() {
        let first = LinkState { mtu: 1400, ..link(4, "eth0") };
        let other = LinkState { mac: None, ..link(5, "eth1") };
        let addresses = [
            (5, net("203.0.113.1/24")),
            (4, net("fe80::1/64")),
            (4, net("192.0.2.7/24")),
            (4, net("192.0.2.8/24")),
            (4, net("2001:db8::7/64")),
        ];
        let uplinks = BTreeSet::from(["eth0".parse().expect("name")]);
        let pool = PoolLink { index: 9, mac: Mac([1; 6]), mtu: 1500, id: 1 };
        let infos = uplink_infos(&[first, other], &addresses, &uplinks, std::iter::once(&pool));
        assert_eq!(infos.keys().copied().collect::<Vec<_>>(), [4, 9]);
        assert_eq!(IpAddr::from(infos[&4].addr4).to_string(), "192.0.2.7");
        assert_eq!(IpAddr::from(infos[&4].addr6).to_string(), "2001:db8::7");
        assert_eq!((infos[&4].mtu, infos[&9].flags), (1400, UPLINK_POOL));
        assert_eq!(locals(&addresses).len(), 5);
    }
}
