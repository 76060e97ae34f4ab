//! Frames built by hand, with right checksums unless a test breaks them.

use anyhow::{Context, Result};
use pv_net_common::csum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherTypes.
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// IPv6.
pub const IPV6: u16 = 0x86dd;

/// Parses six octets such as `02:00:00:00:00:01`.
///
/// # Errors
/// When the text is no MAC.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let octets: Vec<u8> = text.split(':').map(|o| u8::from_str_radix(o, 16)).collect::<Result<_, _>>()?;
    octets.try_into().ok().with_context(|| text.to_owned())
}

/// Internet checksum (RFC 1071) of `parts` one after the other; each but the last must have an even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    (!csum::fold(sum)).to_be_bytes()
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(src: [u8; 6], dst: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with TTL 64 and no options.
#[must_use]
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = [0x45, 0, length[0], length[1], 0x12, 0x34, 0, 0, 64, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let check = checksum(&[&header]);
    header[10..12].copy_from_slice(&check);
    [&header[..], payload].concat()
}

/// An IPv6 packet with hop limit 64.
#[must_use]
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6_hops(src, dst, next, 64, payload)
}

/// An IPv6 packet with this hop limit.
#[must_use]
pub fn ipv6_hops(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next, hops];
    [&header[..], &src.octets(), &dst.octets(), payload].concat()
}

/// The EtherType of an IP packet.
#[must_use]
pub fn kind(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }
}

/// An IP packet of either family.
///
/// # Panics
/// When the families differ.
#[must_use]
pub fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, proto, payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(src, dst, proto, payload),
        _ => panic!("{src} and {dst} are of different families"),
    }
}

/// The same IPv4 packet with two words of options.
#[must_use]
pub fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut all = [&packet[..20], &[0x94, 4, 0, 0, 1, 1, 1, 0], &packet[20..]].concat();
    all[0] = 0x47;
    let length = u16::from_be_bytes([all[2], all[3]]) + 8;
    all[2..4].copy_from_slice(&length.to_be_bytes());
    fix_ipv4(&mut all);
    all
}

/// Makes an IPv4 header's checksum right again.
pub fn fix_ipv4(packet: &mut [u8]) {
    let end = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].copy_from_slice(&[0, 0]);
    let check = checksum(&[&packet[..end]]);
    packet[10..12].copy_from_slice(&check);
}

pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let octets = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    [&octets(src)[..], &octets(dst), &length, &[0, 0, 0, proto]].concat()
}

pub(crate) fn with_checksum(mut segment: Vec<u8>, at: usize, pseudo: &[u8]) -> Vec<u8> {
    let check = checksum(&[pseudo, &segment]);
    segment[at..at + 2].copy_from_slice(&check);
    segment
}

/// A UDP packet (RFC 768).
#[must_use]
pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let head = [src.1.to_be_bytes(), dst.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    let segment = [&head[..], payload].concat();
    let pseudo = pseudo(src.0, dst.0, 17, segment.len());
    ip(src.0, dst.0, 17, &with_checksum(segment, 6, &pseudo))
}

/// A TCP packet (RFC 9293) with these flags, sequence number 1000 and acknowledgement 2000.
#[must_use]
pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_numbered(src, dst, [1000, 2000], flags, payload)
}

/// The same with this sequence number and this acknowledgement.
#[must_use]
pub fn tcp_numbered(src: (IpAddr, u16), dst: (IpAddr, u16), numbers: [u32; 2], flags: u8, payload: &[u8]) -> Vec<u8> {
    let head = [
        &src.1.to_be_bytes()[..],
        &dst.1.to_be_bytes(),
        &numbers[0].to_be_bytes(),
        &numbers[1].to_be_bytes(),
        &[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0],
    ]
    .concat();
    let segment = [&head[..], payload].concat();
    let pseudo = pseudo(src.0, dst.0, 6, segment.len());
    ip(src.0, dst.0, 6, &with_checksum(segment, 16, &pseudo))
}

/// An ICMP or ICMPv6 message by the addresses' family, its checksum filled in.
#[must_use]
pub fn icmp(src: IpAddr, dst: IpAddr, message: &[u8]) -> Vec<u8> {
    let proto = if src.is_ipv4() { 1 } else { 58 };
    let pseudo = if src.is_ipv4() { Vec::new() } else { pseudo(src, dst, proto, message.len()) };
    ip(src, dst, proto, &with_checksum(message.to_vec(), 2, &pseudo))
}

/// An echo request.
#[must_use]
pub fn echo(src: IpAddr, dst: IpAddr, id: u16, sequence: u16) -> Vec<u8> {
    let kind = if src.is_ipv4() { 8 } else { 128 };
    let (id, sequence) = (id.to_be_bytes(), sequence.to_be_bytes());
    icmp(src, dst, &[kind, 0, 0, 0, id[0], id[1], sequence[0], sequence[1], b'p', b'v'])
}

/// An ARP packet for Ethernet and IPv4 (RFC 826); `op` is 1 for a request and 2 for an answer.
#[must_use]
pub fn arp(op: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4][..], &op.to_be_bytes(), &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

/// A neighbour solicitation (135) or advertisement (136) for `target` with one link-layer option (RFC 4861).
#[must_use]
pub fn neighbour(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let option = if kind == 135 { 1 } else { 2 };
    let message = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[option, 1], &mac].concat();
    let pseudo = pseudo(src.into(), dst.into(), 58, message.len());
    ipv6_hops(src, dst, 58, 255, &with_checksum(message, 2, &pseudo))
}
