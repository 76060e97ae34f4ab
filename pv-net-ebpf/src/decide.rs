//! Whether a flow may be: the rules, then the defaults.

use crate::{
    maps::{endpoint, is_local},
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP},
};
use pv_net_common::{
    DropReason, EndpointInfo, FlowEntry, FlowKey, Ip,
    endpoint::{POOL_HOST_ALL, POOL_HOST_SERVICES, POOL_OPEN},
    flow::FLOW_REPLY,
};

const DNS_BE: u16 = 53_u16.to_be();
const DHCP_BE: u16 = 67_u16.to_be();
const DHCPV6_BE: u16 = 547_u16.to_be();

/// A flow as policy sees it: by who opens it and where it really ends.
pub struct Ask {
    pub src: Ip,
    pub dst: Ip,
    pub proto: u32,
    pub dport_be: u16,
    /// It came by a published port.
    pub service: bool,
}

impl Ask {
    /// What the entry that a packet with `key` hit was decided for.
    #[inline(always)]
    pub fn of_entry(key: &FlowKey, entry: &FlowEntry) -> Self {
        if entry.flags & FLOW_REPLY != 0 {
            return Self {
                src: entry.dst,
                dst: key.src,
                proto: key.proto,
                dport_be: key.sport_be,
                service: entry.src != key.src,
            };
        }
        Self { src: key.src, dst: entry.dst, proto: key.proto, dport_be: entry.dport_be, service: entry.dst != key.dst }
    }

    /// Whether the flow may be.
    #[inline(always)]
    pub fn allowed(&self) -> Result<(), DropReason> {
        match (endpoint(self.src), endpoint(self.dst)) {
            (Some(from), Some(to)) => self.between(from, to),
            (Some(from), None) if is_local(self.dst) => self.to_device(from),
            (None, Some(_)) if !self.service && !is_local(self.src) => Err(DropReason::Unpublished),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn between(&self, from: &EndpointInfo, to: &EndpointInfo) -> Result<(), DropReason> {
        if from.pool_id == to.pool_id || self.service || from.pool_flags & to.pool_flags & POOL_OPEN != 0 {
            return Ok(());
        }
        Err(DropReason::PoolIsolated)
    }

    /// `host_access`: what answers at the gateway for the pool's own sake, and ping.
    #[inline(always)]
    fn to_device(&self, from: &EndpointInfo) -> Result<(), DropReason> {
        if from.pool_flags & POOL_HOST_ALL != 0 {
            return Ok(());
        }
        let (tcp, udp) = (self.proto == IPPROTO_TCP as u32, self.proto == IPPROTO_UDP as u32);
        let ping = self.proto == IPPROTO_ICMP as u32 || self.proto == IPPROTO_ICMPV6 as u32;
        let named = ((tcp || udp) && self.dport_be == DNS_BE)
            || (udp && (self.dport_be == DHCP_BE || self.dport_be == DHCPV6_BE));
        if from.pool_flags & POOL_HOST_SERVICES != 0 && (ping || named) {
            return Ok(());
        }
        Err(DropReason::HostAccess)
    }
}
