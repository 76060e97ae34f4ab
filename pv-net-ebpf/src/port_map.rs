//! Published ports.

use crate::maps::PORT_MAP;
use aya_ebpf::btf_maps::lpm_trie::Key;
use pv_net_common::{
    FlowKey, Ip, PortMapKey, PortMapTarget,
    endpoint::{PORT_MAP_PREFIX, PORT_MAP_SOMEWHERE},
};

/// Where a published port leads.
pub struct Target {
    pub addr: Ip,
    pub port_be: u16,
}

/// The container behind port `port_be` of the device's address `addr`. A port published on this address wins over one
/// published on all addresses.
#[inline(always)]
pub fn target(addr: Ip, proto: u32, port_be: u16) -> Option<Target> {
    let mapping = find(addr, proto, port_be).or_else(|| find(all(addr), proto, port_be))?;
    let offset = u16::from_be(port_be).wrapping_sub(mapping.first_port);
    Some(Target { addr: mapping.addr, port_be: mapping.target_port.wrapping_add(offset).to_be() })
}

/// Identity of the container that publishes a port on which a socket wants to bind: on the socket's address or on all
/// addresses. For a socket on all addresses, a port published on any address counts.
#[inline(always)]
pub fn publisher(addr: Ip, proto: u32, port_be: u16) -> Option<u32> {
    let all = all(addr);
    let found = find(addr, proto, port_be).or_else(|| find(all, proto, port_be));
    let found = if found.is_none() && addr.words_be == all.words_be {
        find(all, proto | u32::from(PORT_MAP_SOMEWHERE), port_be)
    } else {
        found
    };
    found.map(|mapping| mapping.identity)
}

/// The unspecified address of the family: in `port_map` it stands for all addresses.
#[inline(always)]
fn all(addr: Ip) -> Ip {
    if addr.is_v4() { Ip::from_v4_be(0) } else { Ip::UNSPECIFIED }
}

/// The target of the packet with this key.
#[inline(always)]
pub fn of(key: &FlowKey) -> Option<Target> {
    target(key.dst, key.proto, key.dport_be)
}

#[inline(always)]
fn find(addr: Ip, proto: u32, port_be: u16) -> Option<&'static PortMapTarget> {
    let key = Key::new(PORT_MAP_PREFIX + 16, PortMapKey { addr, proto_be: (proto as u16).to_be(), port_be });
    PORT_MAP.get(&key)
}
