//! Pools, leases and published ports.

use crate::ipam::{self, ClientLease};
use crate::model::{Pool, PoolIpam, Terms, Terms4};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// `bridge`, `macvlan` or `ipvlan`.
    pub r#type: String,
    /// Who chooses the addresses of its containers: `host-local`, pv-net; `dhcp`, the network of its parent.
    pub ipam: PoolIpam,
    /// Its bridge.
    pub bridge: Option<String>,
    /// Kind of the links to its bridge that containers get at their next start: `veth` or `netkit`.
    pub link: Option<String>,
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
    /// Whether containers may join it by an annotation.
    pub annotations: bool,
    /// MTU in bytes, when its bridge is there.
    pub mtu: Option<u32>,
    /// Leases.
    pub used: u64,
    /// Addresses for containers in the smaller family; no more than 2^64 - 1 is said.
    pub size: u64,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// A lease: of a container's interface, or of a client of DHCP that is not managed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// The pool.
    pub pool: String,
    /// The container; none for a client.
    pub container: Option<String>,
    /// The interface; none for a client.
    pub interface: Option<String>,
    /// The client's identifier (RFC 2132 section 9.14, RFC 4361), hexadecimal; none for a container.
    pub client: Option<String>,
    /// The name that the client gave.
    pub hostname: Option<String>,
    /// IPv4 address.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6_address: Option<Ipv6Addr>,
    /// MAC; none for a client that did not tell.
    pub mac_address: Option<String>,
    /// An address was asked for by name.
    pub r#static: bool,
    /// When the lease ends, in seconds since 1970 (UTC), for a client's and for one that the network of the pool's parent
    /// has given a container; none for another of a container, that ends when it is detached.
    pub expires: Option<u64>,
    /// The DHCP server that has given a container's IPv4 address, where the network of the pool's parent chooses it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server: Option<Ipv4Addr>,
    /// The router that has advertised the network of a container's IPv6 address, where that of the parent chooses it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub router: Option<Ipv6Addr>,
    /// How far such a lease of IPv4 is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<LeaseState>,
}

/// How far a lease is that a DHCP server has given (RFC 2131 section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// It lasts.
    Bound,
    /// The server is asked to go on with it.
    Renewing,
    /// Any server is asked to go on with it.
    Rebinding,
    /// It is over.
    Expired,
}

impl LeaseState {
    fn of(terms: &Terms4, now: u64) -> Self {
        match terms {
            _ if terms.expires <= now => Self::Expired,
            _ if terms.rebind <= now => Self::Rebinding,
            _ if terms.renew <= now => Self::Renewing,
            _ => Self::Bound,
        }
    }
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
        r#type: pool.type_name().to_owned(),
        ipam: pool.ipam,
        bridge: pool.bridge().map(ToString::to_string),
        link: pool.bridge().map(|_| pool.link.name().to_owned()),
        subnet: pool.v4.as_ref().map(|s| s.net.to_string()),
        gateway: pool.v4.as_ref().map(|s| s.gateway),
        subnet6: pool.v6.as_ref().map(|s| s.net.to_string()),
        gateway6: pool.v6.as_ref().map(|s| s.gateway),
        nat: pool.nat,
        isolated: pool.isolated,
        annotations: pool.annotations,
        mtu: status.and_then(|s| s.link.as_ref()).map(|l| l.mtu),
        used: used as u64,
        size: u64::try_from(ipam::size(pool)).unwrap_or(u64::MAX),
        conditions: status.map(|s| s.conditions.clone()).unwrap_or_default(),
    }
}

/// All leases: those of containers, and of `clients` those that are not over at `now`, in seconds since 1970 (UTC).
#[must_use]
pub fn leases(snapshot: &Snapshot, clients: &[Arc<ClientLease>], now: u64) -> Vec<LeaseView> {
    let container = |l: &ipam::Lease| LeaseView {
        expires: l.terms.as_deref().and_then(Terms::expires),
        server: l.terms.as_ref().and_then(|terms| Some(terms.v4.as_ref()?.server)),
        router: l.terms.as_ref().and_then(|terms| Some(terms.v6.as_ref()?.router)),
        state: l.terms.as_ref().and_then(|terms| Some(LeaseState::of(terms.v4.as_ref()?, now))),
        pool: l.key.pool.to_string(),
        container: Some(l.key.container.to_string()),
        interface: Some(l.key.interface.to_string()),
        ipv4_address: l.ipv4,
        ipv6_address: l.ipv6,
        mac_address: Some(l.mac.to_string()),
        r#static: l.fixed,
        ..LeaseView::default()
    };
    let client = |l: &ClientLease| LeaseView {
        pool: l.pool.to_string(),
        client: Some(l.client.to_string()),
        hostname: l.hostname.clone(),
        ipv4_address: if let IpAddr::V4(address) = l.address { Some(address) } else { None },
        ipv6_address: if let IpAddr::V6(address) = l.address { Some(address) } else { None },
        mac_address: l.mac.map(|mac| mac.to_string()),
        expires: Some(l.expires),
        ..LeaseView::default()
    };
    let clients = clients.iter().filter(|lease| !lease.is_over(now));
    snapshot.leases.iter().map(|lease| container(lease)).chain(clients.map(|lease| client(lease))).collect()
}

/// All published ports that lead somewhere, one entry an address family.
#[must_use]
pub fn ports(snapshot: &Snapshot) -> Vec<PortView> {
    let mut all = Vec::new();
    for (name, published) in snapshot.reachable() {
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
