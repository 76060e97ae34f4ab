//! Container interfaces as the programs see them.

use crate::Ip;

/// Key of the `endpoints` map: a container's address. Pools never overlap, so it is unique on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// A container's address.
    pub addr: Ip,
}

const _: () = assert!(size_of::<EndpointKey>() == 16);

/// Where an address is, and what a packet to it needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Host-side link of the container's interface.
    pub ifindex: u32,
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

/// Value of the `interfaces` map, keyed by the host-side link's index: what its container may send.
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
    /// The container's MAC.
    pub mac: [u8; 6],
    /// MAC of the pool's bridge.
    pub gateway_mac: [u8; 6],
}

const _: () = assert!(size_of::<InterfaceInfo>() == 140);
