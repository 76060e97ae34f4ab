//! Kinds of links that a device may have as an uplink instead of a network card, as in a pod or a system container.
//! Each is made together with a host beyond it.

use crate::{Device, Namespace, link};
use anyhow::{Context, Result};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoNetkit, IpVlanMode, LinkMessage, MacVlanMode, NetkitMode};
use rtnetlink::{LinkBridge, LinkIpVlan, LinkMacVlan, LinkMessageBuilder, LinkNetkit, LinkUnspec, LinkVlan, LinkVrf};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// A kind of link, with its mode where the kind has modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An 802.1Q VLAN on another link of the device: [`TRUNK`].
    Vlan,
    /// A macvlan on the node's link: it has its own MAC.
    Macvlan,
    /// An ipvlan on the node's link, mode L2: it has that link's MAC.
    IpvlanL2,
    /// An ipvlan in mode L3: the node routes for it, and it does not answer ARP.
    IpvlanL3,
    /// An ipvlan in mode L3S: as L3, and incoming packets pass the node's filters too.
    IpvlanL3s,
    /// A netkit pair in mode L2: like veth.
    NetkitL2,
    /// A netkit pair in mode L3: without MACs.
    NetkitL3,
    /// A veth link that is a port of [`VRF`], and so has a routing table of its own.
    VrfPort,
}

/// The link of the device that [`Kind::Vlan`] is on.
pub const TRUNK: &str = "trunk0";
const VLAN_ID: u16 = 100;
/// The VRF of the device that [`Kind::VrfPort`] is in.
pub const VRF: &str = "vrf0";
const VRF_TABLE: u32 = 100;

/// The device's addresses on the link.
const DEVICE: [&str; 2] = ["198.51.100.1/24", "2001:db8:2::1/64"];
/// Addresses of the node that owns the parent link; it routes for ipvlan in mode L3.
const NODE: [&str; 2] = ["198.51.100.5/24", "2001:db8:2::5/64"];
/// The host's addresses.
const HOST: [&str; 2] = ["198.51.100.9/24", "2001:db8:2::9/64"];

/// The host beyond such a link.
pub struct Beyond {
    /// The host.
    pub host: Namespace,
    /// The namespace with the parent link; the device's link goes when it goes.
    _node: Option<Namespace>,
}

impl Beyond {
    /// The host's address and the device's, a pair a family.
    pub const PAIRS: [(IpAddr, IpAddr); 2] = [
        (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1))),
        (
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)),
        ),
    ];

    /// Connects `link` of the device with a host; none when the kernel does not know the kind.
    ///
    /// # Errors
    /// When a link cannot be made for another reason.
    pub fn of(kind: Kind, device: &Device, link: &str) -> Result<Option<Self>> {
        match Self::connect(kind, device, link) {
            Ok(made) => Ok(Some(made)),
            Err(why) if link::is_unknown_kind(&why) => Ok(None),
            Err(why) => Err(why).with_context(|| format!("{kind:?} {link}")),
        }
    }

    fn connect(kind: Kind, device: &Device, name: &str) -> Result<Self> {
        let host = Namespace::new("beyond")?;
        match kind {
            Kind::NetkitL2 | Kind::NetkitL3 => {
                let mode = if kind == Kind::NetkitL2 { NetkitMode::L2 } else { NetkitMode::L3 };
                let file = File::open(device.ns.path())?;
                link::make(&host, netkit(mode, name, &file))?;
                link::configure(&host, "eth0", &HOST)?;
                link::configure(&device.ns, name, &DEVICE)?;
                Ok(Self { host, _node: None })
            }
            Kind::Vlan => {
                device.ns.connect((TRUNK, &[]), &host, ("eth0", &[]))?;
                for (ns, under, name, addresses) in
                    [(&device.ns, TRUNK, name, &DEVICE), (&host, "eth0", "eth0.100", &HOST)]
                {
                    let (index, _) = link::of_name(ns, under)?;
                    link::make(ns, LinkVlan::new(name, index, VLAN_ID).build())?;
                    link::configure(ns, name, addresses)?;
                }
                Ok(Self { host, _node: None })
            }
            Kind::VrfPort => {
                link::pair(&device.ns, name, &host, "eth0")?;
                link::configure(&host, "eth0", &HOST)?;
                // Done before the addresses are set: a link that becomes a port loses its IPv6 addresses.
                link::make(&device.ns, LinkVrf::new(VRF, VRF_TABLE).up().build())?;
                link::enslave(&device.ns, name, VRF)?;
                link::configure(&device.ns, name, &DEVICE)?;
                Ok(Self { host, _node: None })
            }
            Kind::Macvlan | Kind::IpvlanL2 | Kind::IpvlanL3 | Kind::IpvlanL3s => {
                let node = Namespace::new("node")?;
                node.connect(("eth0", &NODE), &host, ("eth0", &HOST))?;
                let (under, mac) = link::of_name(&node, "eth0")?;
                let file = File::open(device.ns.path())?;
                link::make(&node, on_a_parent(kind, name, under, &file))?;
                link::configure(&device.ns, name, &DEVICE)?;
                if matches!(kind, Kind::IpvlanL3 | Kind::IpvlanL3s) {
                    let (eth0, _) = link::of_name(&host, "eth0")?;
                    for (_, address) in Self::PAIRS {
                        link::neighbour(&host, eth0, address, mac)?;
                    }
                }
                Ok(Self { host, _node: Some(node) })
            }
        }
    }
}

/// Makes a bridge in [`VRF`], for a pool.
///
/// # Errors
/// When the bridge cannot be made, or not be put into the VRF.
pub fn bridge_in_vrf(device: &Device, name: &str) -> Result<()> {
    link::make(&device.ns, LinkBridge::new(name).build())?;
    link::enslave(&device.ns, name, VRF)
}

impl Kind {
    /// The name of the kind in rtnetlink.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vlan => "vlan",
            Self::Macvlan => "macvlan",
            Self::IpvlanL2 | Self::IpvlanL3 | Self::IpvlanL3s => "ipvlan",
            Self::NetkitL2 | Self::NetkitL3 => "netkit",
            Self::VrfPort => "vrf",
        }
    }
}

/// A link named `name` in the namespace `file`. Its parent is the link with index `under` in the namespace where it is
/// made.
fn on_a_parent(kind: Kind, name: &str, under: u32, file: &File) -> LinkMessage {
    let mode = match kind {
        Kind::IpvlanL3 => IpVlanMode::L3,
        Kind::IpvlanL3s => IpVlanMode::L3S,
        _ => IpVlanMode::L2,
    };
    if kind == Kind::Macvlan {
        return LinkMacVlan::new(name, under, MacVlanMode::Bridge).setns_by_fd(file.as_raw_fd()).build();
    }
    LinkIpVlan::new(name, under, mode).setns_by_fd(file.as_raw_fd()).build()
}

/// The primary end of a netkit pair, `eth0` in the namespace where it is made; its peer is `name` in the namespace
/// `file`, as in a pod.
fn netkit(mode: NetkitMode, name: &str, file: &File) -> LinkMessage {
    let peer = LinkUnspec::new_with_name(name).setns_by_fd(file.as_raw_fd()).build();
    let parts = vec![InfoNetkit::Mode(mode), InfoNetkit::Peer(peer)];
    LinkMessageBuilder::<LinkNetkit>::new_with_info_kind(InfoKind::Netkit)
        .name("eth0")
        .set_info_data(InfoData::Netkit(parts))
        .build()
}
