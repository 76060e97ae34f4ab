//! What the API shows of the daemon's state.

use super::{Daemon, UplinkView};
use crate::failure::Failure;
use crate::kernel::bpf::FlowRecord;
use crate::model::{ContainerName, PoolKind, PoolName};
use pv_net_common::flow::FLOW_REPLY;
use pv_net_common::ip_proto::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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

/// One direction of a flow.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or echo identifier.
    pub sport: u16,
    /// Destination port, or echo identifier.
    pub dport: u16,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub proto: String,
    /// Link that it comes in on.
    pub interface: String,
    /// Container that sends.
    pub container: Option<String>,
    /// `original` or `reply`.
    pub direction: String,
    /// Packets forwarded by the entry.
    pub packets: u64,
    /// Bytes forwarded by the entry.
    pub bytes: u64,
    /// `opening`, `established` or `closing`.
    pub state: String,
    /// Seconds since the last packet; none when there was none in this direction yet.
    pub age: Option<f64>,
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusView {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// What it took over from an earlier one.
    pub adopted: AdoptedView,
    /// Policy generation in the kernel.
    pub generation: u32,
    /// `tcx` or `clsact`; none while nothing is loaded.
    pub hook: Option<String>,
    /// Counters.
    pub data_plane: DataPlaneView,
    /// Uplinks.
    pub uplinks: Vec<UplinkView>,
    /// Pools.
    pub pools: usize,
    /// Attached containers.
    pub containers: usize,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// What was taken over.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AdoptedView {
    /// The maps were there.
    pub maps: bool,
    /// The programs were, the same that the daemon would have loaded.
    pub programs: bool,
    /// Host-side links that it put its programs on.
    pub links: usize,
    /// Containers that were attached.
    pub containers: usize,
}

/// Counters of the data plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DataPlaneView {
    /// Packets by path.
    pub stats: BTreeMap<String, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<String, u64>,
}

impl Daemon {
    /// All pools.
    #[must_use]
    pub fn pool_views(&self) -> Vec<PoolView> {
        self.device
            .pools
            .values()
            .map(|pool| {
                let (used, size) = self.state.ipam.usage(pool);
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
                    mtu: self.pools.get(&pool.name).map(|l| l.mtu),
                    used,
                    size: u64::try_from(size).unwrap_or(u64::MAX),
                    conditions: self.conditions_of_pool(&pool.name).cloned().collect(),
                }
            })
            .collect()
    }

    fn conditions_of_pool(&self, pool: &PoolName) -> impl Iterator<Item = &String> {
        self.pool_conditions.get(pool).into_iter().chain(self.pool_overlaps.get(pool).into_iter().flatten())
    }

    /// All leases.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseView> {
        self.state
            .ipam
            .leases()
            .map(|l| LeaseView {
                pool: l.key.pool.to_string(),
                container: l.key.container.to_string(),
                interface: l.key.interface.to_string(),
                ipv4_address: l.ipv4,
                ipv6_address: l.ipv6,
                mac_address: l.mac.to_string(),
                r#static: l.fixed,
            })
            .collect()
    }

    /// The flow table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows(&mut self) -> Result<Vec<FlowView>, Failure> {
        let Some(plane) = &mut self.plane else { return Ok(Vec::new()) };
        let records = plane.flows()?;
        Ok(records.iter().map(|r| self.flow(r)).collect())
    }

    fn flow(&self, record: &FlowRecord) -> FlowView {
        let link = self.links.get(&record.key.ifindex);
        FlowView {
            src: record.key.src.into(),
            dst: record.key.dst.into(),
            sport: u16::from_be(record.key.sport_be),
            dport: u16::from_be(record.key.dport_be),
            proto: proto_name(record.key.proto),
            interface: link.map_or_else(|| record.key.ifindex.to_string(), |(_, name)| name.to_string()),
            container: link.map(|(container, _)| container.to_string()),
            direction: if record.entry.flags & FLOW_REPLY == 0 { "original" } else { "reply" }.to_owned(),
            packets: record.entry.packets,
            bytes: record.entry.bytes,
            state: record.state.label().to_owned(),
            age: record.age_secs.map(|secs| (secs * 1000.0).round() / 1000.0),
        }
    }

    /// Counters by name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<DataPlaneView, Failure> {
        let Some(plane) = &self.plane else { return Ok(DataPlaneView::default()) };
        Ok(DataPlaneView {
            stats: plane.stats()?.into_iter().map(|(s, n)| (s.label().to_owned(), n)).collect(),
            drops: plane.drops()?.into_iter().map(|(r, n)| (r.label().to_owned(), n)).collect(),
        })
    }

    /// The daemon as a whole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn status(&self) -> Result<StatusView, Failure> {
        let mut conditions = self.start_conditions.clone();
        conditions.extend(self.uplink_conditions.iter().cloned());
        conditions.extend(self.port_conditions.iter().cloned());
        conditions.extend(self.declared_conditions.iter().chain(&self.policy.condition).cloned());
        conditions.extend(self.filter_conditions.iter().chain(&self.firewall_conditions).cloned());
        for pool in self.device.pools.keys() {
            conditions.extend(self.conditions_of_pool(pool).map(|why| format!("pool {pool}: {why}")));
        }
        conditions.extend(self.device.inactive.iter().map(|p| format!("{p}: accepted, not acted on yet")));
        Ok(StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            adopted: AdoptedView {
                maps: self.adopted.maps,
                programs: self.adopted.programs,
                links: self.adopted.links.len(),
                containers: self.adopted_containers,
            },
            generation: self.plane.as_ref().map_or(Ok(0), crate::kernel::bpf::DataPlane::generation)?,
            hook: self.plane.as_ref().map(|p| p.hook().label().to_owned()),
            data_plane: self.counters()?,
            uplinks: self.uplink_views()?,
            pools: self.device.pools.len(),
            containers: self.state.containers.len(),
            conditions,
        })
    }

    /// The container behind link `index`, for events.
    #[must_use]
    pub fn container_at(&self, index: u32) -> Option<(&ContainerName, &crate::model::IfName)> {
        self.links.get(&index).map(|(container, host_if)| (container, host_if))
    }
}

/// `tcp` for 6, and so on.
#[must_use]
pub fn proto_name(proto: u32) -> String {
    match u8::try_from(proto) {
        Ok(IPPROTO_ICMP) => "icmp".to_owned(),
        Ok(IPPROTO_TCP) => "tcp".to_owned(),
        Ok(IPPROTO_UDP) => "udp".to_owned(),
        Ok(IPPROTO_ICMPV6) => "icmpv6".to_owned(),
        _ => proto.to_string(),
    }
}
