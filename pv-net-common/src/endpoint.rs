//! Container interfaces as the programs see them.

use crate::{Ip, LinkId};

/// Key of the `endpoints` map: a container's address. Pools never overlap, so an address is unique on the device; a
/// link-local one is made unique by [`Ip::of_pool`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// A container's address.
    pub addr: Ip,
}

const _: () = assert!(size_of::<EndpointKey>() == 16);

/// Value of the `endpoints` map: where a container's address is, and what a packet to it needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointInfo {
    /// The container's interface.
    pub link: LinkId,
    /// The pool's number, stable while the daemon's state lives.
    pub pool_id: u32,
    /// [`POOL_OPEN`] and its like.
    pub pool_flags: u32,
    /// The container's identity: a number given to its name.
    pub identity: u32,
    /// The container's MAC.
    pub mac: [u8; 6],
    /// MAC of the pool's bridge: source of what is routed into the pool.
    pub gateway_mac: [u8; 6],
    /// Largest IP packet that the interface takes, bytes.
    pub mtu: u32,
}

const _: () = assert!(size_of::<EndpointInfo>() == 32);

/// Set in `pool_flags`: the pool is open (`isolated: false`).
pub const POOL_OPEN: u32 = 1;
/// Set in `pool_flags`: what leaves by an uplink is masqueraded.
pub const POOL_NAT: u32 = 2;
/// Set in `pool_flags`: containers reach the device's services (`host_access: services`).
pub const POOL_HOST_SERVICES: u32 = 4;
/// Set in `pool_flags`: containers reach all of the device (`host_access: all`).
pub const POOL_HOST_ALL: u32 = 8;
/// Set in `pool_flags`: a macvlan pool whose containers reach each other on the device (mode `bridge`).
pub const POOL_BRIDGED: u32 = 16;
/// Set in `pool_flags` of the device's own interface beside the macvlan interfaces of containers. It is in no pool.
pub const POOL_DEVICE: u32 = 32;
/// Set in `pool_flags`: a macvlan pool whose containers reach only other hosts (mode `private`).
pub const POOL_PRIVATE: u32 = 64;
/// Set in `pool_flags`: the device advertises networks in the pool, of which other hosts make addresses (SLAAC).
pub const POOL_SLAAC: u32 = 128;

/// Set in `pool_flags`: an ipvlan pool. Its interfaces have the MAC of their parent, and are told apart by addresses.
pub const POOL_SHARED: u32 = 256;

/// Value of the `interfaces` map, keyed by [`LinkId`]: what its container may send.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceInfo {
    /// The container's IPv4 address, or all zero.
    pub addr4: Ip,
    /// The container's IPv6 address, or all zero.
    pub addr6: Ip,
    /// The container's link-local address.
    pub link_local: Ip,
    /// The pool's IPv4 network, or all zero.
    pub net4: Ip,
    /// The pool's IPv6 network, or all zero.
    pub net6: Ip,
    /// Mask of `net6`.
    pub mask6: Ip,
    /// The pool's IPv4 gateway, or all zero: the source of ICMP errors.
    pub gateway4: Ip,
    /// The pool's IPv6 gateway, or all zero: the source of ICMPv6 errors.
    pub gateway6: Ip,
    /// The pool's number.
    pub pool_id: u32,
    /// [`POOL_OPEN`] and its like.
    pub pool_flags: u32,
    /// The container's identity.
    pub identity: u32,
    /// Largest IP packet that the interface takes, bytes.
    pub mtu: u32,
    /// Mask of `net4`, network byte order.
    pub mask4_be: u32,
    /// Index of the pool's bridge: routes are looked up as if the packet came in there.
    pub bridge: u32,
    /// Flows that the container may have in the flow table by this link; 0: as many as there is room for.
    pub max_flows: u32,
    /// The container's MAC.
    pub mac: [u8; 6],
    /// MAC of the pool's bridge.
    pub gateway_mac: [u8; 6],
}

const _: () = assert!(size_of::<InterfaceInfo>() == 168);

/// Value of the `uplinks` map, keyed by the link's index: where traffic leaves the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkInfo {
    /// Its IPv4 address that masquerade uses where `sources` has no other, or all zero.
    pub addr4: Ip,
    /// Its IPv6 address, likewise.
    pub addr6: Ip,
    /// MTU, bytes.
    pub mtu: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// [`UPLINK_POOL`] and its like.
    pub flags: u16,
    /// The number of the pool whose bridge it is.
    pub pool_id: u32,
}

const _: () = assert!(size_of::<UplinkInfo>() == 48);

/// Key of the `senders` map: a MAC from which frames may leave by the parent of macvlan interfaces. The value is the
/// [`LinkId`] of the container's interface that has it, an index for the device's own interface beside them, or
/// [`LinkId::OUTSIDE`] for another link of the device. The MAC of an ipvlan interface's lease is in no frame, but its
/// link-local address follows from it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderKey {
    /// Index of the parent.
    pub parent: u32,
    /// The MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<SenderKey>() == 12);

/// Set in the flags of a link that is the bridge of a pool, no uplink.
pub const UPLINK_POOL: u16 = 1;
/// Set in the flags of an uplink for which `sources` has entries.
pub const UPLINK_SOURCES: u16 = 2;
/// Set in the flags of an uplink without a carrier.
pub const UPLINK_NO_CARRIER: u16 = 4;

/// Key of the `sources` map: where masquerade uses another address of an uplink than the usual one. An LPM key, the
/// link is always whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// The uplink's index.
    pub link: u32,
    /// IPv6: the destination. IPv4: the next hop.
    pub to: Ip,
}

const _: () = assert!(size_of::<SourceKey>() == 20);

/// Bits of a [`SourceKey`].
pub const SOURCE_BITS: u32 = 160;
/// Entries of the `sources` map.
pub const MAX_SOURCES: u32 = 8_192;
/// Set in the flags of a pool's bridge that pv-net did not make: hosts other than containers may be on it.
pub const UPLINK_BORROWED: u16 = 8;

/// Value in the `locals` map: an address of the device.
pub const LOCAL_ADDRESS: u32 = 1;
/// Value in the `locals` map: the broadcast address of a network that the device is in.
pub const LOCAL_BROADCAST: u32 = 2;

/// The packet mark (`SO_MARK`) of what a container sends and a program has decided, on its way to the bridge or the
/// device's stack. `pv_from_bridge` removes the mark before the device's stack sees the packet. None of its bits is one
/// that kube-proxy acts on (0x4000, 0x8000).
pub const MARK_CONTAINER: u32 = 0x7076_0e01;
/// The mark of such a packet to a group, or to another host on the bridge, that the device itself must not receive.
pub const MARK_NOT_FOR_DEVICE: u32 = 0x7076_0e02;
/// On the ingress of a parent of macvlan interfaces: programs of pv-net have put the packet there, and it has not come by
/// the wire.
pub const MARK_RETURNED: u32 = 0x7076_0e03;
/// The `tc_index` of what a container with a macvlan or ipvlan interface sends and its program has let pass, and of frames
/// to groups that have come by a parent. The kernel copies frames to groups from one ipvlan interface to others past the
/// parent, without their mark.
pub const INDEX_CHECKED: u32 = 0x7076;

/// Entries of the `networks` map: networks of pools.
pub const MAX_NETWORKS: u32 = 1_024;

/// Key of the `port_map` map: a published port or a part of a published range. An LPM key: address and protocol are
/// always whole, the prefix ends in the port. The unspecified address of a family stands for all of the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMapKey {
    /// The device's address.
    pub addr: Ip,
    /// IP protocol number.
    pub proto_be: u16,
    /// Port, network byte order.
    pub port_be: u16,
}

const _: () = assert!(size_of::<PortMapKey>() == 20);

/// Set in the protocol of a key with the unspecified address: the port is published on at least one address of the
/// family. No packet and no socket has such a protocol number; only the bind hook looks such keys up. The value is used
/// for its identity alone.
pub const PORT_MAP_SOMEWHERE: u16 = 0x200;

/// Bits of a [`PortMapKey`] before the port.
pub const PORT_MAP_PREFIX: u32 = 144;

/// Value of the `port_map` map: the container's side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortMapTarget {
    /// The container's address.
    pub addr: Ip,
    /// First port of the published range.
    pub first_port: u16,
    /// The container's port that it leads to; the others follow one by one.
    pub target_port: u16,
    /// The container's identity.
    pub identity: u32,
}

const _: () = assert!(size_of::<PortMapTarget>() == 24);

/// Key of the `sock_origins` map: a socket of the device, and the container's address and port that it was connected
/// to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SockKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The container's address.
    pub addr: Ip,
    /// The container's port, network byte order.
    pub port_be: u32,
    /// IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<SockKey>() == 32);

/// Value of the `sock_origins` map: what the program on the device asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockOrigin {
    /// The address that it named.
    pub addr: Ip,
    /// The port that it named, network byte order.
    pub port_be: u32,
}

const _: () = assert!(size_of::<SockOrigin>() == 20);

/// Entries of the `port_map` map.
pub const MAX_PORT_MAPPINGS: u32 = 4_096;
/// Entries of the `locals` map: the device's own addresses. The map allocates entries on demand. A device with many
/// veths has a link-local address for each.
pub const MAX_LOCALS: u32 = 16_384;
/// Entries of the `uplinks` map, likewise.
pub const MAX_UPLINKS: u32 = 1_024;
/// Entries of the `sock_origins` map, an LRU.
pub const MAX_SOCKETS: u32 = 2_048;
