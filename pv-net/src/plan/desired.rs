//! What should exist for the attached containers.

use crate::model::{Attachment, IfName, Mac, Pool, PoolIpam};
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip, LinkId};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// The kernel's side of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLink {
    /// Index of its bridge.
    pub index: u32,
    /// MAC of its bridge.
    pub mac: Mac,
    /// MTU of its interfaces, bytes.
    pub mtu: u32,
    /// Its number in the maps (`pool_id`).
    pub id: u32,
    /// The bridge was not made by pv-net, so others than containers may be on it.
    pub borrowed: bool,
    /// There is no bridge: index and MAC are those of the link that the pool's macvlan or ipvlan interfaces sit on.
    pub on_parent: bool,
}

/// The desired state of one interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host-side link.
    pub host_if: IfName,
    /// Index of the bridge that it is a port of.
    pub bridge: u32,
    /// What its container may send.
    pub info: InterfaceInfo,
    /// Its addresses as keys of the `endpoints` map.
    pub addresses: Vec<Ip>,
}

/// The desired state of all containers' links, by host-side link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Interfaces that are to work.
    pub endpoints: BTreeMap<IfName, Endpoint>,
    /// Interfaces whose traffic is to be stopped, with the reason. Their programs stay attached.
    pub held: BTreeMap<IfName, String>,
}

/// Why an attached interface does not fit `pool` any more: one of its addresses is outside the pool's present networks.
/// `None` when it fits.
#[must_use]
pub fn misplaced(attachment: &Attachment, pool: &Pool) -> Option<String> {
    let pool = &*pool.seen_by(attachment);
    let v4 = attachment.ipv4.filter(|a| pool.v4.as_ref().is_none_or(|s| !s.net.contains(*a)));
    let v6 = attachment.ipv6.filter(|a| pool.v6.as_ref().is_none_or(|s| !s.net.contains(*a)));
    let stray: Vec<String> =
        v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from)).map(|a| a.to_string()).collect();
    (!stray.is_empty()).then(|| format!("pool {} has other networks than {}", pool.name, stray.join(" and ")))
}

/// The source of ICMP errors of who has no IPv4 address of his own (RFC 7600): the programs' answers to a container without a
/// gateway on the device. Receivers drop those from 0.0.0.0. Nobody has this address.
const DUMMY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The desired state of `attachment` in `pool`.
#[must_use]
pub fn endpoint(attachment: &Attachment, pool: &Pool, link: &PoolLink, identity: u32) -> Endpoint {
    let zero = Ip::UNSPECIFIED;
    // A gateway that a parent's network has chosen is for the routes inside alone: the programs would open services of the
    // device at it if it were an address of the device.
    let is_given = pool.ipam == PoolIpam::Dhcp;
    let pool = &*pool.seen_by(attachment);
    let info = InterfaceInfo {
        addr4: attachment.ipv4.map_or(zero, Ip::from),
        addr6: attachment.ipv6.map_or(zero, Ip::from),
        link_local: Ip::link_local(attachment.mac.0),
        net4: pool.v4.as_ref().map_or(zero, |s| s.net.network().into()),
        net6: pool.v6.as_ref().map_or(zero, |s| s.net.network().into()),
        gateway4: pool.v4.as_ref().map_or(zero, |s| if is_given { DUMMY4.into() } else { s.gateway.into() }),
        gateway6: pool.v6.as_ref().filter(|_| !is_given).map_or(zero, |s| s.gateway.into()),
        pool_id: link.id,
        pool_flags: pool.flags(),
        identity,
        mtu: link.mtu,
        mask4_be: pool.v4.as_ref().map_or(0, |s| u32::from(s.net.mask()).to_be()),
        mask6: pool.v6.as_ref().map_or(zero, |s| s.net.mask().into()),
        bridge: link.index,
        max_flows: pool.max_flows,
        mac: if pool.shares_mac() { link.mac.0 } else { attachment.mac.0 },
        gateway_mac: link.mac.0,
    };
    let addresses = addresses(attachment, link.id);
    Endpoint { host_if: attachment.host_if.clone(), bridge: link.index, info, addresses }
}

/// The addresses of `attachment` as keys of the `endpoints` map, in the pool with number `pool_id`.
#[must_use]
pub fn addresses(attachment: &Attachment, pool_id: u32) -> Vec<Ip> {
    let own = attachment.ipv4.map(Ip::from).into_iter().chain(attachment.ipv6.map(Ip::from));
    own.chain([Ip::link_local(attachment.mac.0).of_pool(pool_id)]).collect()
}

impl Endpoint {
    /// The value in the `endpoints` map, when the host-side link has index `index`.
    #[must_use]
    pub fn at(&self, index: u32) -> EndpointInfo {
        EndpointInfo {
            link: LinkId::of_index(index),
            pool_id: self.info.pool_id,
            pool_flags: self.info.pool_flags,
            identity: self.info.identity,
            mac: self.info.mac,
            gateway_mac: self.info.gateway_mac,
            mtu: self.info.mtu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Given, Network, PoolKind};
    use crate::plan::fixture;
    use std::net::Ipv6Addr;

    #[test]
    fn an_ipvlan_interface_has_its_parents_mac_and_a_link_local_address_of_its_own() {
        let parent = "wan0".parse().expect("name");
        let kind = PoolKind::Ipvlan { parent, mode: crate::model::IpvlanMode::L2 };
        let pool = Pool { kind, ..fixture::pool(false) };
        let link = PoolLink { index: 5, mac: Mac([2; 6]), mtu: 1500, id: 1, borrowed: true, on_parent: true };
        let attachment = fixture::attachment(7);
        let wanted = endpoint(&attachment, &pool, &link, 1);
        assert_eq!((wanted.info.mac, wanted.at(9).mac), ([2; 6], [2; 6]));
        assert_eq!(wanted.info.link_local, Ip::link_local(attachment.mac.0));
        assert_eq!(wanted.info.link_local.link_local_mac(), attachment.mac.0, "the parent knows it by that");
        assert!(wanted.info.pool_flags & pv_net_common::endpoint::POOL_SHARED != 0);
        assert!(wanted.addresses.contains(&Ip::link_local(attachment.mac.0).of_pool(1)));
    }

    #[test]
    fn the_programs_do_not_know_a_gateway_that_a_network_has_chosen() {
        let (gateway4, gateway6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
        let address6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
        let v4 = Given::bare([192, 0, 2, 7].into(), 24, Some(gateway4));
        let v6 = Given::bare(address6, 64, Some(gateway6));
        let attachment = Attachment {
            ipv4: Some(v4.address),
            ipv6: Some(v6.address),
            network: Some(Network { v4: Some(v4), v6: Some(v6) }),
            ..fixture::attachment(7)
        };
        let kind = PoolKind::Bridge { bridge: "pvbr0".parse().expect("name") };
        let pool = Pool { ipam: PoolIpam::Dhcp, kind, v4: None, v6: None, ..fixture::pool(false) };
        assert_eq!(pool.seen_by(&attachment).gateways().count(), 2, "the routes inside do");
        let link = PoolLink { index: 5, mac: Mac([2; 6]), mtu: 1500, id: 1, borrowed: true, on_parent: true };
        let info = endpoint(&attachment, &pool, &link, 1).info;
        assert_eq!((info.gateway4, info.gateway6), (DUMMY4.into(), Ip::UNSPECIFIED));
        assert_eq!((info.addr4, info.addr6), (Ip::from(Ipv4Addr::new(192, 0, 2, 7)), Ip::from(address6)));
    }
}
