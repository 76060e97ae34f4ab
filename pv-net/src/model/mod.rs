//! The types of the device's network. Every value of these types is valid; the unchecked form is in [`crate::config`].
//!
//! Pure: no I/O, no clock.

pub mod alias;
mod container;
mod default_route;
mod dhcp6;
#[cfg(test)]
pub mod fixture;
mod name;
mod name_server;
mod offer;
mod policy;
mod pool;
mod port;
mod proto;
mod ra;
mod sockets;
mod start;
mod terms;
mod timeouts;
mod uplink_filter;

pub use container::{Attachment, Container, ContainerKind, Interface, NetnsRef, NetworkMode};
pub use default_route::{Candidate, DefaultRoutes, default_routes, main_interface, reached_at};
pub use dhcp6::PoolDhcp6;
pub use name::{ContainerName, IfName, InvalidName, Mac, PoolName, RuleName};
pub use name_server::NameServer;
pub use offer::Offer;
pub use policy::{Action, PortMatch, Rule, Selector};
pub use pool::{
    HostAccess, IpvlanMode, MacvlanMode, PairKind, Pool, PoolDhcp, PoolDns, PoolIpam, PoolKind, Subnet4, Subnet6,
};
pub use port::{PortMapping, Transport};
pub use proto::proto_name;
pub use ra::{PoolRa, RaMode, RouterPreference};
pub use sockets::{Peer, Sockets};
pub use start::{
    Ending, HealthCommand, LxcSpec, OciSpec, RunState, RunStatus, RuntimeSpec, Start, Startable, WasmCli, WasmSpec,
};
pub use terms::{Asker, Given, Network, Terms, Terms4, Terms6};
pub use timeouts::FlowTimeouts;
pub use uplink_filter::{RateLimit, UplinkFilter, XdpChoice, XdpMode};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The device-wide configuration (`device.json`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// DNS domain of the containers; `pv.local` unless set.
    pub domain: String,
    /// The loopback address where the device's own programs are told container names; none unless set.
    pub dns_on_device: Option<IpAddr>,
    /// A file with the certificates of the authorities that are trusted for servers with TLS; the system's unless set.
    pub dns_ca_file: Option<PathBuf>,
    /// Links to the outside, in the order they are preferred.
    pub uplinks: Vec<IfName>,
    /// What is dropped on the uplinks before the stack sees it.
    pub uplink_filter: Option<UplinkFilter>,
    /// Pools by name.
    pub pools: BTreeMap<PoolName, Pool>,
    /// The rules between containers, pools and networks, in the order of `network.policies`.
    pub policies: Vec<Rule>,
    /// Entries of the flow table (two a flow).
    pub flow_table: u32,
    /// How long flows may be silent.
    pub flow_timeouts: FlowTimeouts,
    /// JSON paths of accepted settings that this version does not act on yet; shown as conditions.
    pub inactive: Vec<String>,
}
