//! Published ports.

use crate::maps::SERVICES;
use aya_ebpf::btf_maps::lpm_trie::Key;
use pv_net_common::{FlowKey, Ip, Service, ServiceKey, endpoint::SERVICE_PREFIX};

/// Where a published port leads.
pub struct Target {
    pub addr: Ip,
    pub port_be: u16,
}

/// The container behind port `port_be` of the device's address `addr`: published on it, or on all addresses.
#[inline(always)]
pub fn target(addr: Ip, proto: u32, port_be: u16) -> Option<Target> {
    let all = if addr.is_v4() { Ip::from_v4_be(0) } else { Ip::UNSPECIFIED };
    let service = find(addr, proto, port_be).or_else(|| find(all, proto, port_be))?;
    let offset = u16::from_be(port_be).wrapping_sub(service.first_port);
    Some(Target { addr: service.addr, port_be: service.target_port.wrapping_add(offset).to_be() })
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
