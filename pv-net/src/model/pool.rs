//! Pools: a network on the device that containers get interfaces and addresses in.

use super::{Attachment, IfName, NameServer, PoolDhcp6, PoolName, PoolRa};
use ipnetwork::{Ipv4Network, Ipv6Network};
use pv_net_common::endpoint::{
    POOL_BRIDGED, POOL_HOST_ALL, POOL_HOST_SERVICES, POOL_NAT, POOL_OPEN, POOL_PRIVATE, POOL_SHARED, POOL_SLAAC,
};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A pool's IPv4 side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet4 {
    /// The network; its address has no host bits.
    pub net: Ipv4Network,
    /// The gateway: a host address inside `net`.
    pub gateway: Ipv4Addr,
    /// First and last address for DHCP clients; managed containers never get these.
    pub dhcp_range: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// A pool's IPv6 side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet6 {
    /// The network; its address has no host bits.
    pub net: Ipv6Network,
    /// The gateway: a host address inside `net`.
    pub gateway: Ipv6Addr,
}

/// What a pool's interfaces are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// A Linux bridge that carries the gateway addresses.
    Bridge {
        /// The bridge's name.
        bridge: IfName,
    },
    /// Interfaces with their own MACs beside the device's on `parent`.
    Macvlan {
        /// The link they sit on.
        parent: IfName,
        /// How they reach each other.
        mode: MacvlanMode,
    },
    /// Interfaces that share the parent's MAC.
    Ipvlan {
        /// The link they sit on.
        parent: IfName,
        /// The layer at which they are told apart.
        mode: IpvlanMode,
    },
}

/// The kind of the pairs that connect containers with a pool's bridge: one end is a port of the bridge, the other one is in
/// the container's namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairKind {
    /// Veth, which every kernel has.
    #[default]
    Veth,
    /// Netkit in mode L2: Linux 6.12, the first whose netkit links can be given a MAC.
    Netkit,
}

impl PairKind {
    /// Its name in rtnetlink.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }

    /// The kind with this name in rtnetlink; `None` for links that are no pairs.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [Self::Veth, Self::Netkit].into_iter().find(|kind| kind.name() == name)
    }
}

/// Ipvlan's modes, as `ip link` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    /// Layer 2: frames are switched.
    L2,
    /// Layer 3: packets are routed in the parent's namespace.
    L3,
    /// Layer 3, with the netfilter and connection tracking of the parent's namespace.
    L3s,
}

/// Macvlan's modes, as `ip link` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    /// Containers reach each other on the device.
    Bridge,
    /// Containers cannot reach each other.
    Private,
    /// Traffic between containers goes through the external switch.
    Vepa,
    /// One container takes the parent over.
    Passthru,
}

/// What containers of a pool may reach on the device itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostAccess {
    /// Nothing.
    None,
    /// The pool's DNS and DHCP, ping and published ports.
    #[default]
    Services,
    /// Everything.
    All,
}

/// Who chooses the addresses of a pool's containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolIpam {
    /// pv-net, from the pool's networks.
    #[default]
    HostLocal,
    /// The parent's network: its DHCP server, and its router by advertisements.
    Dhcp,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// What its interfaces are made of.
    pub kind: PoolKind,
    /// Who chooses the addresses of its containers.
    pub ipam: PoolIpam,
    /// IPv4, where the pool has it; a pool that chooses addresses has at least one family.
    pub v4: Option<Subnet4>,
    /// IPv6, where the pool has it.
    pub v6: Option<Subnet6>,
    /// Whether what leaves by an uplink is masqueraded.
    pub nat: bool,
    /// What connects its containers with its bridge, from their next start on; without meaning for other pools.
    pub link: PairKind,
    /// MTU of its interfaces in bytes; the uplink's unless set.
    pub mtu: Option<u32>,
    /// TCP segments of up to 256 KiB on its interfaces, where the kernel has them.
    pub big_tcp: bool,
    /// It is closed to other pools. Two pools that are not isolated reach each other.
    pub isolated: bool,
    /// Whether a container may join it by an annotation.
    pub annotations: bool,
    /// What its containers may reach on the device.
    pub host_access: HostAccess,
    /// Flows that each of its containers may have in the flow table at once.
    pub max_flows: u32,
    /// How its gateway answers DNS questions; `None` when it does not.
    pub dns: Option<Arc<PoolDns>>,
    /// What it advertises as a router; nothing where this is none.
    pub ra: Option<Arc<PoolRa>>,
    /// How its gateway answers DHCPv6; it does not where this is none.
    pub dhcp6: Option<Arc<PoolDhcp6>>,
    /// What its gateway tells clients of DHCPv4; it is no server where this is none.
    pub dhcp: Option<Arc<PoolDhcp>>,
}

/// DHCPv4 of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDhcp {
    /// How long a lease lasts, in seconds.
    pub lease_time: u32,
    /// Addresses of the range that clients behind one port of the bridge may have at once.
    pub leases_per_port: u32,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// Routes beside the one to the gateway, each with its next hop in the pool's network.
    pub routes: Vec<(Ipv4Network, Ipv4Addr)>,
    /// Address of the API of a captive portal (RFC 8910).
    pub captive_portal: Option<String>,
    /// More options by their number, 1 to 255 octets each, for clients that ask for them.
    pub options: BTreeMap<u8, Vec<u8>>,
}

/// DNS of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolDns {
    /// Servers for names that are not the device's; those of the device when there are none.
    pub upstream: Vec<NameServer>,
    /// Domains, in lower case, that have servers of their own.
    pub zones: BTreeMap<String, Vec<NameServer>>,
    /// Domains, in lower case, whose names may have private addresses although outside servers say so.
    pub private_names: Vec<String>,
}

impl Pool {
    /// Its settings as flags for the programs: `POOL_OPEN` and the like.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let open = if self.isolated { 0 } else { POOL_OPEN };
        let nat = if self.nat { POOL_NAT } else { 0 };
        let host = match self.host_access {
            HostAccess::None => 0,
            HostAccess::Services => POOL_HOST_SERVICES,
            HostAccess::All => POOL_HOST_ALL,
        };
        let on_parent = match self.kind {
            PoolKind::Macvlan { mode: MacvlanMode::Bridge, .. } => POOL_BRIDGED,
            PoolKind::Macvlan { mode: MacvlanMode::Private, .. } => POOL_PRIVATE,
            PoolKind::Ipvlan { .. } => POOL_SHARED,
            PoolKind::Macvlan { .. } | PoolKind::Bridge { .. } => 0,
        };
        let slaac = if self.ra.as_ref().is_some_and(|ra| ra.mode.is_autonomous()) { POOL_SLAAC } else { 0 };
        open | nat | host | on_parent | slaac
    }

    /// Its networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = ipnetwork::IpNetwork> {
        let v4 = self.v4.iter().map(|s| s.net.into());
        v4.chain(self.v6.iter().map(|s| s.net.into()))
    }

    /// Its networks if nobody but the pool is in them, IPv4 first. A macvlan or ipvlan pool shares the network of its
    /// parent, whose other hosts are outside.
    pub fn own_networks(&self) -> impl Iterator<Item = ipnetwork::IpNetwork> {
        self.networks().filter(|_| matches!(self.kind, PoolKind::Bridge { .. }))
    }

    /// The pool as the interface `attachment` sees it: where the parent's network chooses addresses, with the networks that
    /// it has given to this interface.
    #[must_use]
    pub fn seen_by(&self, attachment: &Attachment) -> Cow<'_, Self> {
        if self.ipam == PoolIpam::HostLocal {
            return Cow::Borrowed(self);
        }
        let network = attachment.network.clone().unwrap_or_default();
        let v4 = network.v4.and_then(|given| {
            let net = Ipv4Network::new(given.address, given.prefix).ok()?;
            let net = Ipv4Network::new(net.network(), net.prefix()).ok()?;
            Some(Subnet4 { net, gateway: given.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED), dhcp_range: None })
        });
        let v6 = network.v6.and_then(|given| {
            let net = Ipv6Network::new(given.address, given.prefix).ok()?;
            let net = Ipv6Network::new(net.network(), net.prefix()).ok()?;
            Some(Subnet6 { net, gateway: given.gateway.unwrap_or(Ipv6Addr::UNSPECIFIED) })
        });
        Cow::Owned(Self { v4, v6, ..self.clone() })
    }

    /// The link that its interfaces sit on, and how they reach each other, for a macvlan pool.
    #[must_use]
    pub fn macvlan(&self) -> Option<(&IfName, MacvlanMode)> {
        match &self.kind {
            PoolKind::Macvlan { parent, mode } => Some((parent, *mode)),
            PoolKind::Bridge { .. } | PoolKind::Ipvlan { .. } => None,
        }
    }

    /// The link that its interfaces sit on, for a macvlan or ipvlan pool.
    #[must_use]
    pub fn parent(&self) -> Option<&IfName> {
        match &self.kind {
            PoolKind::Macvlan { parent, .. } | PoolKind::Ipvlan { parent, .. } => Some(parent),
            PoolKind::Bridge { .. } => None,
        }
    }

    /// Whether its interfaces have the MAC of their parent.
    #[must_use]
    pub fn shares_mac(&self) -> bool {
        matches!(self.kind, PoolKind::Ipvlan { .. })
    }

    /// Its gateway addresses with the prefix length of their networks, IPv4 first. A network that is
    /// [`seen_by`](Self::seen_by) an interface may have none.
    pub fn gateways(&self) -> impl Iterator<Item = ipnetwork::IpNetwork> {
        let v4 = self.v4.iter().filter_map(|s| Ipv4Network::new(s.gateway, s.net.prefix()).ok().map(Into::into));
        let v6 = self.v6.iter().filter_map(|s| Ipv6Network::new(s.gateway, s.net.prefix()).ok().map(Into::into));
        v4.chain(v6).filter(|gateway: &ipnetwork::IpNetwork| !gateway.ip().is_unspecified())
    }

    /// Its type, as `device.json` names it.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self.kind {
            PoolKind::Bridge { .. } => "bridge",
            PoolKind::Macvlan { .. } => "macvlan",
            PoolKind::Ipvlan { .. } => "ipvlan",
        }
    }

    /// The bridge's name, for a bridge pool.
    #[must_use]
    pub fn bridge(&self) -> Option<&IfName> {
        match &self.kind {
            PoolKind::Bridge { bridge } => Some(bridge),
            PoolKind::Macvlan { .. } | PoolKind::Ipvlan { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PairKind;

    #[test]
    fn only_pairs_have_two_ends() {
        for (name, kind) in
            [("veth", Some(PairKind::Veth)), ("netkit", Some(PairKind::Netkit)), ("macvlan", None), ("bridge", None)]
        {
            assert_eq!(PairKind::of(name), kind, "{name}");
        }
    }
}
