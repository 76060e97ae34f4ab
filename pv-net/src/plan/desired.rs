//! What should exist for the attached containers.

use crate::model::{Attachment, IfName, Mac, Pool};
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip};
use std::collections::BTreeMap;

/// A pool's place in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLink {
    /// Index of its bridge.
    pub index: u32,
    /// MAC of its bridge.
    pub mac: Mac,
    /// MTU of its interfaces, bytes.
    pub mtu: u32,
    /// Its number in the maps.
    pub id: u32,
    /// Somebody else made it.
    pub borrowed: bool,
}

/// What should exist for one interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host-side link.
    pub host_if: IfName,
    /// Index of the bridge that it is a port of.
    pub bridge: u32,
    /// What its container may send.
    pub info: InterfaceInfo,
    /// Its addresses, as the map has them.
    pub addresses: Vec<Ip>,
}

/// Everything that should exist, by host-side link.
pub type Desired = BTreeMap<IfName, Endpoint>;

/// What `attachment` in `pool` asks for.
#[must_use]
pub fn endpoint(attachment: &Attachment, pool: &Pool, link: &PoolLink, identity: u32) -> Endpoint {
    let zero = Ip::UNSPECIFIED;
    let info = InterfaceInfo {
        addr4: attachment.ipv4.map_or(zero, Ip::from),
        addr6: attachment.ipv6.map_or(zero, Ip::from),
        link_local: Ip::link_local(attachment.mac.0),
        net4: pool.v4.as_ref().map_or(zero, |s| s.net.network().into()),
        net6: pool.v6.as_ref().map_or(zero, |s| s.net.network().into()),
        gateway4: pool.v4.as_ref().map_or(zero, |s| s.gateway.into()),
        gateway6: pool.v6.as_ref().map_or(zero, |s| s.gateway.into()),
        pool_id: link.id,
        pool_flags: pool.flags(),
        identity,
        mtu: link.mtu,
        mask4_be: pool.v4.as_ref().map_or(0, |s| u32::from(s.net.mask()).to_be()),
        mask6: pool.v6.as_ref().map_or(zero, |s| s.net.mask().into()),
        bridge: link.index,
        max_flows: pool.max_flows,
        mac: attachment.mac.0,
        gateway_mac: link.mac.0,
    };
    let own = [info.addr4, info.addr6].into_iter().filter(|a| !a.is_unspecified());
    let addresses = own.chain([info.link_local.of_pool(link.id)]).collect();
    Endpoint { host_if: attachment.host_if.clone(), bridge: link.index, info, addresses }
}

impl Endpoint {
    /// The entry of the `endpoints` map, when the host-side link has `index`.
    #[must_use]
    pub fn at(&self, index: u32) -> EndpointInfo {
        EndpointInfo {
            ifindex: index,
            pool_id: self.info.pool_id,
            pool_flags: self.info.pool_flags,
            identity: self.info.identity,
            mac: self.info.mac,
            gateway_mac: self.info.gateway_mac,
            mtu: self.info.mtu,
        }
    }
}
