//! The steps of a plan. An [`Op`] is data that says what to change in the kernel.
//!
//! Each step is idempotent, has a text for people (`text`), and can name the steps that undo it (`undo`).

mod found;
mod text;
mod undo;

use super::{Bridge, DeviceIf, Entry, HostRoute, PortMapPrefix, range_of};
use crate::model::{IfName, Mac, XdpMode};
use ipnetwork::IpNetwork;
use pv_net_common::flow::FLOW_REPLY;
use pv_net_common::{EndpointInfo, FlowEntry, FlowKey, InterfaceInfo, Ip, PortMapTarget};

/// A place for a program, other than on a container's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookPoint {
    /// At the ingress of an uplink.
    Uplink,
    /// At the ingress of a pool's bridge.
    Bridge,
    /// At the egress and the ingress of the device's own interface on a parent.
    DeviceIf,
    /// XDP on an uplink, before the stack: the uplinks' filter.
    Filter(XdpMode),
}

/// A sysctl of a link, `net.FAMILY.conf.LINK.KEY`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkSysctl {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The link.
    pub link: IfName,
    /// The setting's name.
    pub key: &'static str,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a link's entry in the map `interfaces`: what the container behind it may send.
    SetInterface {
        /// The link, for people.
        host_if: String,
        /// Its index.
        index: u32,
        /// The entry.
        info: Box<InterfaceInfo>,
    },
    /// Remove a link's entry from `interfaces`: its programs then drop all that comes from it or goes to it.
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
    /// Remove the pins of the programs of a link that is gone.
    DetachPrograms {
        /// Its index.
        index: u32,
    },
    /// Make a link a port of its bridge.
    Enslave {
        /// The link.
        host_if: IfName,
        /// Its index.
        index: u32,
        /// Index of the bridge.
        bridge: u32,
        /// The container's MAC: the bridge gets a static entry for it, so that no other port can claim it.
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
    /// Give a renamed link its own name back.
    Rename {
        /// Its present name.
        link: String,
        /// Its index.
        index: u32,
        /// Its own name.
        name: IfName,
    },
    /// Delete a link.
    DeleteLink {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
    },
    /// Write the entry of a container's address in the map `endpoints`.
    SetEndpoint {
        /// The address.
        addr: Ip,
        /// The entry.
        info: EndpointInfo,
    },
    /// Remove an address from `endpoints`.
    RemoveEndpoint {
        /// The address.
        addr: Ip,
    },
    /// End the flows of addresses that no container has any more.
    EndFlows {
        /// The addresses.
        addresses: Vec<Ip>,
    },
    /// Make a pool's bridge, down and without an address.
    MakeBridge(Box<Bridge>),
    /// Delete the bridge of that name, if pv-net made it.
    DeleteBridge {
        /// Its name.
        name: IfName,
    },
    /// Make the device's own interface on a parent, down and without an address.
    MakeDeviceIf(Box<DeviceIf>),
    /// Delete the interface of that name, if it is such a one.
    DeleteDeviceIf {
        /// Its name.
        name: IfName,
    },
    /// Add a route to a container.
    AddRoute {
        /// The link that it leads to, for people.
        link: String,
        /// The route.
        route: HostRoute,
    },
    /// Remove a route to a container.
    RemoveRoute {
        /// The link that it leads to, for people.
        link: String,
        /// The route.
        route: HostRoute,
    },
    /// Set a bridge's MAC, so that it does not follow the MACs of its ports.
    SetMac {
        /// The bridge.
        link: String,
        /// Its index.
        index: u32,
        /// The MAC.
        mac: Mac,
    },
    /// Set a link's MTU.
    SetMtu {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
        /// The MTU in bytes.
        mtu: u32,
    },
    /// Write a link's `ifalias`.
    SetAlias {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
        /// The text.
        alias: String,
    },
    /// Add an address to a bridge, or to the device's own interface on a parent.
    AddAddress {
        /// The link.
        link: String,
        /// Its index.
        index: u32,
        /// The address, with its network's prefix length.
        address: IpNetwork,
        /// IPv6: it is for connections that name it, and brings no route to its network.
        deprecated: bool,
    },
    /// Remove an address from a bridge.
    RemoveAddress {
        /// The bridge.
        link: String,
        /// Its index.
        index: u32,
        /// The address, with its network's prefix length.
        address: IpNetwork,
    },
    /// Write a sysctl of a link.
    SetSysctl {
        /// Which one.
        sysctl: LinkSysctl,
        /// Its value.
        value: String,
    },
    /// Put a program on an uplink or a bridge.
    Hook {
        /// The place.
        at: HookPoint,
        /// The link.
        link: IfName,
        /// Its index.
        index: u32,
    },
    /// Take a program off an uplink or a bridge.
    Unhook {
        /// The place.
        at: HookPoint,
        /// The link.
        link: String,
        /// Its index.
        index: u32,
    },
    /// Write an entry of a table, replacing one with the same key.
    Set(Entry),
    /// Remove an entry of a table.
    Remove(Entry),
    /// Set the beginning of masquerade's port range.
    SetNatRange {
        /// First port of the range.
        first: u16,
    },
    /// Write `ip_local_reserved_ports`: the kernel chooses none of these ports for the device's own connections.
    ReservePorts {
        /// The list, as the kernel writes it.
        list: String,
    },
    /// End the flows that went by uplinks that are gone, or used addresses of the device that are gone.
    EndUplinkFlows {
        /// Indexes of the uplinks.
        uplinks: Vec<u32>,
        /// The addresses.
        addresses: Vec<Ip>,
    },
    /// End the flows of published ports that are not published any more, or lead elsewhere now.
    EndPortFlows {
        /// The entries as they were.
        ports: Vec<(PortMapPrefix, PortMapTarget)>,
    },
    /// Have the way out of every flow looked up again on its next packet.
    RenewRoutes,
}

impl Op {
    /// The index of the container's link that this step helps to open: the link must not carry packets when the step
    /// fails. `None` for steps that only close or remove something.
    #[must_use]
    pub const fn opens(&self) -> Option<u32> {
        match self {
            Self::SetInterface { index, .. }
            | Self::AttachPrograms { index, .. }
            | Self::Enslave { index, .. }
            | Self::SetUp { index, .. } => Some(*index),
            Self::SetEndpoint { info, .. } => info.link.index(),
            Self::RemoveInterface { .. }
            | Self::DetachPrograms { .. }
            | Self::Release { .. }
            | Self::SetDown { .. }
            | Self::Rename { .. }
            | Self::DeleteLink { .. }
            | Self::RemoveEndpoint { .. }
            | Self::EndFlows { .. }
            | Self::MakeBridge(_)
            | Self::DeleteBridge { .. }
            | Self::MakeDeviceIf(_)
            | Self::DeleteDeviceIf { .. }
            | Self::AddRoute { .. }
            | Self::RemoveRoute { .. }
            | Self::SetMac { .. }
            | Self::SetMtu { .. }
            | Self::SetAlias { .. }
            | Self::AddAddress { .. }
            | Self::RemoveAddress { .. }
            | Self::SetSysctl { .. }
            | Self::Hook { .. }
            | Self::Unhook { .. }
            | Self::Set(_)
            | Self::Remove(_)
            | Self::SetNatRange { .. }
            | Self::ReservePorts { .. }
            | Self::EndUplinkFlows { .. }
            | Self::EndPortFlows { .. }
            | Self::RenewRoutes => None,
        }
    }

    /// Whether this step removes an entry of a table. Flows that used the entry are ended both before and after it.
    #[must_use]
    pub const fn removes(&self) -> bool {
        matches!(self, Self::Remove(_))
    }

    /// Whether this step ends the flow of which one direction is given.
    #[must_use]
    pub fn ends(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        let has = |addresses: &[Ip]| [key.src, key.dst, entry.src, entry.dst].iter().any(|a| addresses.contains(a));
        match self {
            Self::EndFlows { addresses } => has(addresses),
            Self::EndUplinkFlows { uplinks, addresses } => uplinks.contains(&entry.ifindex) || has(addresses),
            Self::EndPortFlows { ports } => ports.iter().any(|(prefix, former)| goes_by(key, entry, prefix, former)),
            _ => false,
        }
    }
}

/// Whether one direction of a flow used this entry of `port_map`.
fn goes_by(key: &FlowKey, entry: &FlowEntry, prefix: &PortMapPrefix, former: &PortMapTarget) -> bool {
    let (host_port, target, translated) = if entry.flags & FLOW_REPLY == 0 {
        (key.dport_be, entry.dst, key.dst != entry.dst)
    } else {
        (entry.sport_be, key.src, key.src != entry.src)
    };
    translated && target == former.addr && range_of(prefix).contains(&u16::from_be(host_port))
}
