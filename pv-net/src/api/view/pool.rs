//! Pools, leases and published ports.

use crate::ipam;
use crate::model::{Pool, PoolKind};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// `bridge`, `macvlan` or `ipvlan`.
    pub r#type: String,
    /// Its bridge.
    pub bridge: Option<String>,
    /// IPv4 network.
    pub subnet: Option<String>,
    /// IPv4 gateway.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 network.
    pub subnet6: Option<String>,
    /// IPv6 gateway.
    pub gateway6: Option<Ipv6Addr>,
    /// Whether it masquerades.
    pub nat: bool,
    /// Whether it is closed to other pools.
    pub isolated: bool,
    /// MTU in bytes, when its bridge is there.
    pub mtu: Option<u32>,
    /// Leases.
    pub used: u64,
    /// Addresses for containers in the smaller family; no more than 2^64 - 1 is said.
    pub size: u64,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// The pool.
    pub pool: String,
    /// The container.
    pub container: String,
    /// The interface.
    pub interface: String,
    /// IPv4 address.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6_address: Option<Ipv6Addr>,
    /// MAC.
    pub mac_address: String,
    /// An address was asked for by name.
    pub r#static: bool,
}

/// A published port or range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortView {
    /// The container.
    pub container: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// The device's address; the unspecified one stands for all of its family.
    pub host_address: IpAddr,
    /// First port of the device.
    pub host_port: u16,
    /// Last port of the device; the same for a single one.
    pub host_port_end: u16,
    /// The container's address.
    pub container_address: IpAddr,
    /// The container's first port.
    pub container_port: u16,
}

/// All pools.
#[must_use]
pub fn pools(snapshot: &Snapshot) -> Vec<PoolView> {
    snapshot.device.pools.values().map(|pool| view(pool, snapshot)).collect()
}

fn view(pool: &Pool, snapshot: &Snapshot) -> PoolView {
    let status = snapshot.pools.get(&pool.name);
    let used = snapshot.leases.iter().filter(|l| l.key.pool == pool.name).count();
    PoolView {
        name: pool.name.to_string(),
        r#type: match pool.kind {
            PoolKind::Bridge { .. } => "bridge",
            PoolKind::Macvlan { .. } => "macvlan",
            PoolKind::Ipvlan { .. } => "ipvlan",
        }
        .to_owned(),
        bridge: pool.bridge().map(ToString::to_string),
        subnet: pool.v4.as_ref().map(|s| s.net.to_string()),
        gateway: pool.v4.as_ref().map(|s| s.gateway),
        subnet6: pool.v6.as_ref().map(|s| s.net.to_string()),
        gateway6: pool.v6.as_ref().map(|s| s.gateway),
        nat: pool.nat,
        isolated: pool.isolated,
        mtu: status.and_then(|s| s.link.as_ref()).map(|l| l.mtu),
        used: used as u64,
        size: u64::try_from(ipam::size(pool)).unwrap_or(u64::MAX),
        conditions: status.map(|s| s.conditions.clone()).unwrap_or_default(),
    }
}

/// All leases.
#[must_use]
pub fn leases(snapshot: &Snapshot) -> Vec<LeaseView> {
    let view = |l: &ipam::Lease| LeaseView {
        pool: l.key.pool.to_string(),
        container: l.key.container.to_string(),
        interface: l.key.interface.to_string(),
        ipv4_address: l.ipv4,
        ipv6_address: l.ipv6,
        mac_address: l.mac.to_string(),
        r#static: l.fixed,
    };
    snapshot.leases.iter().map(|lease| view(lease)).collect()
}

/// All published ports, one entry an address family.
#[must_use]
pub fn ports(snapshot: &Snapshot) -> Vec<PortView> {
    let mut all = Vec::new();
    for (name, published) in snapshot.published() {
        let mapping = &published.mapping;
        all.extend(published.pairs().map(|(host, target)| PortView {
            container: name.to_string(),
            proto: mapping.transport.to_string(),
            host_address: host,
            host_port: *mapping.host_ports.start(),
            host_port_end: *mapping.host_ports.end(),
            container_address: target,
            container_port: mapping.container_port,
        }));
    }
    all
}
