//! Published ports.

use crate::maps::SERVICES;
use aya_ebpf::btf_maps::lpm_trie::Key;
use pv_net_common::{
    FlowKey, Ip, Service, ServiceKey,
    endpoint::{SERVICE_PREFIX, SERVICE_SOMEWHERE},
};

/// Where a published port leads.
pub struct Target {
    pub addr: Ip,
    pub port_be: u16,
}

/// The container behind port `port_be` of the device's address `addr`: published on it, or on all addresses.
#[inline(always)]
pub fn target(addr: Ip, proto: u32, port_be: u16) -> Option<Target> {
    let service = find(addr, proto, port_be).or_else(|| find(all(addr), proto, port_be))?;
    let offset = u16::from_be(port_be).wrapping_sub(service.first_port);
    Some(Target { addr: service.addr, port_be: service.target_port.wrapping_add(offset).to_be() })
}

/// Identity of the container that a socket bound to this port would be in the way of: it publishes the port on that
/// address or on all; for a socket on all addresses, on any.
#[inline(always)]
pub fn publisher(addr: Ip, proto: u32, port_be: u16) -> Option<u32> {
    let all = all(addr);
    let found = find(addr, proto, port_be).or_else(|| find(all, proto, port_be));
    let found = if found.is_none() && addr.words_be == all.words_be {
        find(all, proto | u32::from(SERVICE_SOMEWHERE), port_be)
    } else {
        found
    };
    found.map(|service| service.identity)
}

/// What stands for all addresses of the family.
#[inline(always)]
fn all(addr: Ip) -> Ip {
    if addr.is_v4() { Ip::from_v4_be(0) } else { Ip::UNSPECIFIED }
}

/// The target of a packet's destination.
#[inline(always)]
pub fn of(key: &FlowKey) -> Option<Target> {
    target(key.dst, key.proto, key.dport_be)
}

#[inline(always)]
fn find(addr: Ip, proto: u32, port_be: u16) -> Option<&'static Service> {
    let key = Key::new(SERVICE_PREFIX + 16, ServiceKey { addr, proto_be: (proto as u16).to_be(), port_be });
    SERVICES.get(&key)
}
