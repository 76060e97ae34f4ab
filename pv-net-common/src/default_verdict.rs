//! The verdict on a flow about which no rule says anything: it follows from the settings of the pools at its ends. The
//! programs and `pv-net policy explain` both use it.

use crate::DropReason;
use crate::endpoint::{POOL_HOST_ALL, POOL_HOST_SERVICES, POOL_OPEN};
use crate::ip_proto::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};

const TCP: u32 = IPPROTO_TCP as u32;
const UDP: u32 = IPPROTO_UDP as u32;
const ICMP: u32 = IPPROTO_ICMP as u32;
const ICMPV6: u32 = IPPROTO_ICMPV6 as u32;

const DNS_BE: u16 = 53_u16.to_be();
const DHCP_BE: u16 = 67_u16.to_be();
const DHCPV6_BE: u16 = 547_u16.to_be();

/// Where an end of a flow is. `P` is what tells pools apart: a number in the programs, a name elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<P> {
    /// In a pool: a container, or another address of its networks.
    Pool {
        /// Which one.
        pool: P,
        /// [`POOL_OPEN`] and its like.
        flags: u32,
    },
    /// On the device itself, by the gateway of the sender's pool: an address of its bridge, or a group on the link.
    Gateway,
    /// On the device itself, by another address.
    Device,
    /// Outside.
    World,
}

/// Whether a flow is allowed where no rule applies. `published`: the flow is to a published port. A container that
/// names such a port by an address of the device asks for the device, so `to` is [`Place::Device`] then.
///
/// # Errors
/// The reason for which the first packet is dropped.
#[inline(always)]
pub fn default_verdict<P: PartialEq>(
    from: Place<P>,
    to: Place<P>,
    proto: u32,
    port_be: u16,
    published: bool,
) -> Result<(), DropReason> {
    match (from, to) {
        (Place::Pool { pool, flags }, Place::Pool { pool: other, flags: others }) => {
            if pool == other || flags & others & POOL_OPEN != 0 { Ok(()) } else { Err(DropReason::PoolIsolated) }
        }
        (Place::Pool { flags, .. }, at @ (Place::Device | Place::Gateway)) => {
            let all = flags & POOL_HOST_ALL != 0;
            let services = flags & POOL_HOST_SERVICES != 0;
            let by_gateway = at == Place::Gateway;
            if all || services && (published || is_ping(proto) || by_gateway && is_gateways(proto, port_be)) {
                Ok(())
            } else {
                Err(DropReason::HostAccess)
            }
        }
        (Place::World, Place::Pool { .. }) if !published => Err(DropReason::Unpublished),
        _ => Ok(()),
    }
}

/// Whether this is a ping, which every address of the device answers.
#[inline(always)]
fn is_ping(proto: u32) -> bool {
    proto == ICMP || proto == ICMPV6
}

/// Whether this is a service that a pool's gateway offers to the pool: DNS, DHCP or DHCPv6.
#[inline(always)]
fn is_gateways(proto: u32, port_be: u16) -> bool {
    let (tcp, udp) = (proto == TCP, proto == UDP);
    ((tcp || udp) && port_be == DNS_BE) || (udp && (port_be == DHCP_BE || port_be == DHCPV6_BE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_settings_decide() {
        let pool = |pool: &'static str, flags| Place::Pool { pool, flags };
        let closed = pool("closed", POOL_HOST_SERVICES);
        let open = pool("open", POOL_OPEN | POOL_HOST_ALL);
        let other = pool("other", POOL_OPEN);
        let (gateway, device, world) = (Place::Gateway, Place::Device, Place::World);
        let isolated = Err(DropReason::PoolIsolated);
        let (host_access, unpublished) = (Err(DropReason::HostAccess), Err(DropReason::Unpublished));
        for (name, from, to, proto, port, published, want) in [
            ("within a pool", closed, closed, TCP, 80, false, Ok(())),
            ("from an isolated pool", closed, open, TCP, 80, false, isolated),
            ("to an isolated pool", open, closed, TCP, 80, true, isolated),
            ("between open pools", open, other, TCP, 80, false, Ok(())),
            ("outside", closed, world, TCP, 80, false, Ok(())),
            ("from outside", world, open, TCP, 80, false, unpublished),
            ("from outside, published", world, closed, TCP, 80, true, Ok(())),
            ("DNS", closed, gateway, UDP, 53, false, Ok(())),
            ("DNS over TCP", closed, gateway, TCP, 53, false, Ok(())),
            ("DNS is not ICMP's", other, gateway, ICMP, 53, false, host_access),
            ("DHCP", closed, gateway, UDP, 67, false, Ok(())),
            ("DHCPv6", closed, gateway, UDP, 547, false, Ok(())),
            ("DHCP is not TCP", closed, gateway, TCP, 67, false, host_access),
            ("DHCPv6 is not TCP", closed, gateway, TCP, 547, false, host_access),
            ("ping", closed, gateway, ICMP, 0, false, Ok(())),
            ("ping over IPv6", closed, device, ICMPV6, 0, false, Ok(())),
            ("ssh", closed, gateway, TCP, 22, false, host_access),
            ("another protocol", closed, gateway, 132, 53, false, host_access),
            ("DNS by another address", closed, device, UDP, 53, false, host_access),
            ("DNS by another address over TCP", closed, device, TCP, 53, false, host_access),
            ("DHCP by another address", closed, device, UDP, 67, false, host_access),
            ("DHCPv6 by another address", closed, device, UDP, 547, false, host_access),
            ("ping of another address", closed, device, ICMP, 0, false, Ok(())),
            ("published at the gateway", closed, gateway, TCP, 8080, true, Ok(())),
            ("all of the gateway", open, gateway, TCP, 22, false, Ok(())),
            ("published on the device", closed, device, TCP, 8080, true, Ok(())),
            ("all of the device", open, device, TCP, 22, false, Ok(())),
            ("none of the device", other, gateway, UDP, 53, false, host_access),
            ("none of it, published", other, device, TCP, 8080, true, host_access),
            ("from the device", device, closed, TCP, 22, false, Ok(())),
            ("not ours", world, device, TCP, 22, false, Ok(())),
            ("not ours either", device, world, TCP, 22, false, Ok(())),
        ] {
            assert_eq!(default_verdict(from, to, proto, u16::to_be(port), published), want, "{name}");
        }
    }
}
