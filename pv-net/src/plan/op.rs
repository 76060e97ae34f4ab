//! Steps, and how they follow from what is desired and observed.

use super::{Desired, Endpoint};
use crate::model::{IfName, Mac};
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A host-side link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its index.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
}

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Host-side links of containers.
    pub links: BTreeMap<IfName, ObservedLink>,
    /// The `interfaces` map.
    pub interfaces: BTreeMap<u32, InterfaceInfo>,
    /// The `endpoints` map.
    pub endpoints: BTreeMap<Ip, EndpointInfo>,
    /// Links with a program.
    pub hooks: BTreeSet<String>,
}

/// One step. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Say what the container behind a link may send.
    SetInterface {
        /// The link, for people.
        host_if: IfName,
        /// Its index.
        index: u32,
        /// The entry.
        info: Box<InterfaceInfo>,
    },
    /// Put the program on a link.
    AttachProgram {
        /// The link.
        host_if: IfName,
    },
    /// Make a link a port of its bridge.
    Enslave {
        /// The link.
        host_if: IfName,
        /// Its index.
        index: u32,
        /// Index of the bridge.
        bridge: u32,
        /// The MAC that is behind the link, and no other.
        mac: Mac,
    },
    /// Set a link up.
    SetUp {
        /// The link.
        host_if: IfName,
        /// Its index.
        index: u32,
    },
    /// Say where an address is.
    SetEndpoint {
        /// The address.
        addr: Ip,
        /// The entry.
        info: EndpointInfo,
    },
    /// Forget an address.
    RemoveEndpoint {
        /// The address.
        addr: Ip,
    },
    /// Forget a link.
    RemoveInterface {
        /// Its index.
        index: u32,
    },
    /// Take the program off a link that is gone or not a container's.
    DetachProgram {
        /// The link.
        host_if: String,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetInterface { host_if, index, .. } => write!(f, "interface {index} ({host_if}) guarded"),
            Self::AttachProgram { host_if } => write!(f, "program on {host_if}"),
            Self::Enslave { host_if, bridge, .. } => write!(f, "{host_if} port of bridge {bridge}"),
            Self::SetUp { host_if, .. } => write!(f, "{host_if} up"),
            Self::SetEndpoint { addr, info } => write!(f, "endpoint {} at {}", IpAddr::from(*addr), info.ifindex),
            Self::RemoveEndpoint { addr } => write!(f, "endpoint {} removed", IpAddr::from(*addr)),
            Self::RemoveInterface { index } => write!(f, "interface {index} removed"),
            Self::DetachProgram { host_if } => write!(f, "no program on {host_if}"),
        }
    }
}

/// The steps that bring up `endpoint` behind link `link`. The guard and the program are there before the link is up,
/// and the link is up before others are sent to it.
#[must_use]
pub fn endpoint_ops(endpoint: &Endpoint, link: &ObservedLink) -> Vec<Op> {
    let (host_if, index) = (&endpoint.host_if, link.index);
    let mut ops = vec![
        Op::SetInterface { host_if: host_if.clone(), index, info: Box::new(endpoint.info) },
        Op::AttachProgram { host_if: host_if.clone() },
    ];
    if link.controller != Some(endpoint.bridge) {
        ops.push(Op::Enslave { host_if: host_if.clone(), index, bridge: endpoint.bridge, mac: Mac(endpoint.info.mac) });
    }
    if !link.up {
        ops.push(Op::SetUp { host_if: host_if.clone(), index });
    }
    ops.extend(endpoint.addresses.iter().map(|addr| Op::SetEndpoint { addr: *addr, info: endpoint.at(index) }));
    ops
}

/// The steps from `observed` to `desired`: what is missing is added before what is too much is removed. A desired
/// endpoint whose link is gone is no step: only its container can bring the link back.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut addresses = BTreeSet::new();
    let mut indices = BTreeSet::new();
    for endpoint in desired.values() {
        let Some(link) = observed.links.get(&endpoint.host_if) else { continue };
        indices.insert(link.index);
        addresses.extend(endpoint.addresses.iter().copied());
        ops.extend(endpoint_ops(endpoint, link).into_iter().filter(|op| !is_done(op, observed)));
    }
    let stale = observed.endpoints.keys().filter(|a| !addresses.contains(a));
    ops.extend(stale.map(|addr| Op::RemoveEndpoint { addr: *addr }));
    let stale = observed.interfaces.keys().filter(|i| !indices.contains(i));
    ops.extend(stale.map(|index| Op::RemoveInterface { index: *index }));
    let wanted =
        |name: &String| observed.links.keys().any(|l| l.as_str() == name) && desired.keys().any(|d| d.as_str() == name);
    let stale = observed.hooks.iter().filter(|h| !wanted(h));
    ops.extend(stale.map(|host_if| Op::DetachProgram { host_if: host_if.clone() }));
    ops
}

fn is_done(op: &Op, observed: &Observed) -> bool {
    match op {
        Op::SetInterface { index, info, .. } => observed.interfaces.get(index) == Some(info.as_ref()),
        Op::AttachProgram { host_if } => observed.hooks.contains(host_if.as_str()),
        Op::SetEndpoint { addr, info } => observed.endpoints.get(addr) == Some(info),
        _ => false,
    }
}
