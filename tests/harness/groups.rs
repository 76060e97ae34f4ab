//! Multicast groups: the MACs of their frames, and IGMP and MLD messages.

use crate::frame;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The MAC of all hosts of a link.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Types of IGMP (RFC 3376, RFC 4286) and MLD (RFC 2710, RFC 3810, RFC 4286) messages.
pub const IGMP_QUERY: u8 = 0x11;
/// IGMPv2 report.
pub const IGMP_REPORT: u8 = 0x16;
/// Multicast router advertisement over IPv4.
pub const IGMP_ROUTER: u8 = 0x30;
/// MLD query.
pub const MLD_QUERY: u8 = 130;
/// MLDv1 report.
pub const MLD_REPORT: u8 = 131;
/// Multicast router advertisement over IPv6.
pub const MLD_ROUTER: u8 = 151;

/// The destination MAC of frames to this group (RFC 1112 section 6.4, RFC 2464 section 7), or to the broadcast address.
#[must_use]
pub fn mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(Ipv4Addr::BROADCAST) => BROADCAST,
        IpAddr::V4(a) => {
            let [_, b, c, d] = a.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(a) => {
            let o = a.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    }
}

/// An IGMP message about `group`, with a router alert (RFC 2113) and TTL 1; `rest` follows the group.
#[must_use]
pub fn igmp(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, group: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 100, 0, 0][..], &group.octets(), rest].concat();
    let check = frame::checksum(&[&message]);
    message[2..4].copy_from_slice(&check);
    let mut packet = frame::with_options(&frame::ipv4(src, dst, 2, &message));
    packet[8] = 1;
    frame::fix_ipv4(&mut packet);
    packet
}

/// An MLD message about `group` with hop limit 1, without the router alert that it should have; `rest` follows the
/// group.
#[must_use]
pub fn mld(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, group: Ipv6Addr, rest: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0x27, 0x10, 0, 0][..], &group.octets(), rest].concat();
    let mut packet = frame::icmp(src.into(), dst.into(), &message);
    packet[7] = 1;
    packet
}

/// The solicited-node group of `addr` (RFC 4291 section 2.7.1): neighbour solicitations for it are sent there.
#[must_use]
pub fn solicited(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = addr.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}
