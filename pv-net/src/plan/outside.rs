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
}

/// All addresses of the device.
#[must_use]
pub fn locals(addresses: &[(u32, IpNetwork)]) -> BTreeSet<Ip> {
    addresses.iter().map(|(_, a)| Ip::from(a.ip())).collect()
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

    #[test]
    fn an_uplink_masquerades_with_its_first_global_addresses() {
        let link = LinkState { index: 4, name: "eth0".to_owned(), mac: Some([2; 6]), mtu: 1400 };
        let other = LinkState { index: 5, name: "eth1".to_owned(), mac: None, mtu: 1500 };
        let net = |text: &str| text.parse::<IpNetwork>().expect("net");
        let addresses = [
            (5, net("203.0.113.1/24")),
            (4, net("fe80::1/64")),
            (4, net("192.0.2.7/24")),
            (4, net("192.0.2.8/24")),
            (4, net("2001:db8::7/64")),
        ];
        let uplinks = BTreeSet::from(["eth0".parse().expect("name")]);
        let pool = PoolLink { index: 9, mac: Mac([1; 6]), mtu: 1500, id: 1 };
        let infos = uplink_infos(&[link, other], &addresses, &uplinks, std::iter::once(&pool));
        assert_eq!(infos.keys().copied().collect::<Vec<_>>(), [4, 9]);
        assert_eq!(IpAddr::from(infos[&4].addr4).to_string(), "192.0.2.7");
        assert_eq!(IpAddr::from(infos[&4].addr6).to_string(), "2001:db8::7");
        assert_eq!((infos[&4].mtu, infos[&9].flags), (1400, UPLINK_POOL));
        assert_eq!(locals(&addresses).len(), 5);
    }
}
