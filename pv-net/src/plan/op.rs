//! The steps: data, that says what is to be changed in the kernel.
//!
//! Each is idempotent, and knows which steps take it back again.

use super::Observed;
use crate::model::{IfName, Mac};
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip};
use std::fmt;
use std::net::IpAddr;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Say what the container behind a link may send.
    SetInterface {
        /// The link, for people.
        host_if: String,
        /// Its index.
        index: u32,
        /// The entry.
        info: Box<InterfaceInfo>,
    },
    /// Forget a link: its programs pass nothing that comes from it or goes to it.
    RemoveInterface {
        /// Its index.
        index: u32,
    },
    /// Put the programs on a container's link.
    AttachPrograms {
        /// The link.
        host_if: IfName,
        /// Its index.
        index: u32,
    },
    /// Forget the programs of a link that is gone.
    DetachPrograms {
        /// The link.
        host_if: String,
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
    /// Make a link a port of no bridge.
    Release {
        /// The link.
        host_if: IfName,
        /// Its index.
        index: u32,
    },
    /// Set a link up.
    SetUp {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
    },
    /// Set a link down.
    SetDown {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
    },
    /// Delete a link.
    DeleteLink {
        /// The link.
        link: String,
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
    /// End the flows of addresses that are nobody's any more.
    EndFlows {
        /// The addresses.
        addresses: Vec<Ip>,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetInterface { host_if, index, .. } => write!(f, "interface {index} ({host_if}) guarded"),
            Self::RemoveInterface { index } => write!(f, "interface {index} removed"),
            Self::AttachPrograms { host_if, .. } => write!(f, "programs on {host_if}"),
            Self::DetachPrograms { host_if } => write!(f, "programs of {host_if} forgotten"),
            Self::Enslave { host_if, bridge, .. } => write!(f, "{host_if} port of bridge {bridge}"),
            Self::Release { host_if, .. } => write!(f, "{host_if} port of no bridge"),
            Self::SetUp { link, .. } => write!(f, "{link} up"),
            Self::SetDown { link, .. } => write!(f, "{link} down"),
            Self::DeleteLink { link, .. } => write!(f, "{link} deleted"),
            Self::SetEndpoint { addr, info } => write!(f, "endpoint {} at {}", IpAddr::from(*addr), info.ifindex),
            Self::RemoveEndpoint { addr } => write!(f, "endpoint {} removed", IpAddr::from(*addr)),
            Self::EndFlows { addresses } => {
                let all: Vec<String> = addresses.iter().map(|a| IpAddr::from(*a).to_string()).collect();
                write!(f, "flows of {} ended", all.join(", "))
            }
        }
    }
}

impl Op {
    /// The container's link that depends on this step: it must not carry packets when the step fails. None for steps
    /// that only close or forget something.
    #[must_use]
    pub const fn opens(&self) -> Option<u32> {
        match self {
            Self::SetInterface { index, .. }
            | Self::AttachPrograms { index, .. }
            | Self::Enslave { index, .. }
            | Self::SetUp { index, .. } => Some(*index),
            Self::SetEndpoint { info, .. } => Some(info.ifindex),
            Self::RemoveInterface { .. }
            | Self::DetachPrograms { .. }
            | Self::Release { .. }
            | Self::SetDown { .. }
            | Self::DeleteLink { .. }
            | Self::RemoveEndpoint { .. }
            | Self::EndFlows { .. } => None,
        }
    }

    /// The steps that lead back to `before`, what the kernel held before this one. None when nothing was changed, or
    /// when there is no way back: a link that was deleted, or a flow that was ended. A link that is up keeps its
    /// programs.
    #[must_use]
    pub fn undo(&self, before: &Observed) -> Vec<Self> {
        let back = match self {
            Self::SetInterface { host_if, index, .. } => Some(match before.interfaces.get(index) {
                Some(info) => Self::SetInterface { host_if: host_if.clone(), index: *index, info: Box::new(*info) },
                None => Self::RemoveInterface { index: *index },
            }),
            Self::RemoveInterface { index } => before.interfaces.get(index).map(|info| Self::SetInterface {
                host_if: before.link(*index).map_or_else(|| index.to_string(), |l| l.name.clone()),
                index: *index,
                info: Box::new(*info),
            }),
            Self::AttachPrograms { host_if, .. } => {
                let was_open = before.links.get(host_if.as_str()).is_some_and(|l| l.up);
                let keep = before.hooks.is_none() || before.is_guarded(host_if.as_str()) || was_open;
                (!keep).then(|| Self::DetachPrograms { host_if: host_if.to_string() })
            }
            Self::DetachPrograms { host_if } => before
                .links
                .get(host_if)
                .filter(|_| before.is_guarded(host_if))
                .and_then(|link| Some(Self::AttachPrograms { host_if: host_if.parse().ok()?, index: link.index })),
            Self::Enslave { host_if, index, mac, .. } => before.link(*index).map(|l| match l.controller {
                Some(bridge) => Self::Enslave { host_if: host_if.clone(), index: *index, bridge, mac: *mac },
                None => Self::Release { host_if: host_if.clone(), index: *index },
            }),
            Self::Release { host_if, index } => before.link(*index).and_then(|l| {
                let mac = before.interfaces.get(index).map_or(Mac([0; 6]), |info| Mac(info.mac));
                Some(Self::Enslave { host_if: host_if.clone(), index: *index, bridge: l.controller?, mac })
            }),
            Self::SetUp { link, index } => {
                let was_down = before.link(*index).is_some_and(|l| !l.up);
                was_down.then(|| Self::SetDown { link: link.clone(), index: *index })
            }
            Self::SetDown { link, index } => {
                let was_up = before.link(*index).is_some_and(|l| l.up);
                was_up.then(|| Self::SetUp { link: link.clone(), index: *index })
            }
            Self::SetEndpoint { addr, .. } => Some(match before.endpoints.get(addr) {
                Some(info) => Self::SetEndpoint { addr: *addr, info: *info },
                None => Self::RemoveEndpoint { addr: *addr },
            }),
            Self::RemoveEndpoint { addr } => {
                before.endpoints.get(addr).map(|info| Self::SetEndpoint { addr: *addr, info: *info })
            }
            Self::DeleteLink { .. } | Self::EndFlows { .. } => None,
        };
        back.into_iter().collect()
    }
}
