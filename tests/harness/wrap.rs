//! Wraps packets in VLAN tags or IPv6 extension headers, cuts them into fragments, and adds bytes behind their end.

use crate::frame::fix_ipv4;

/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A kind of IPv6 extension header (RFC 8200 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Padding for each hop.
    HopByHop,
    /// A router alert (RFC 2711) as MLD has it.
    RouterAlert,
    /// A routing header with no segments left.
    Routing,
    /// Padding for the destination.
    Destination,
    /// An authentication header (RFC 4302) with twelve bytes of value.
    Authentication,
    /// The only fragment of its packet (RFC 6946).
    AtomicFragment,
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop | Self::RouterAlert => 0,
            Self::Routing => 43,
            Self::AtomicFragment => 44,
            Self::Authentication => 51,
            Self::Destination => 60,
        }
    }

    fn header(self, next: u8) -> Vec<u8> {
        match self {
            Self::HopByHop | Self::Destination => vec![next, 0, 1, 4, 0, 0, 0, 0],
            Self::RouterAlert => vec![next, 0, 5, 2, 0, 0, 1, 0],
            Self::Routing | Self::AtomicFragment => vec![next, 0, 0, 0, 0, 0, 0, 9],
            Self::Authentication => [&[next, 4][..], &[0; 22]].concat(),
        }
    }
}

/// The frame with tags behind its MACs, the outer one first. A tag is an EtherType, and priority and VLAN id.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    frame[..12].iter().copied().chain(tags).chain(frame[12..].iter().copied()).collect()
}

/// The frame with `bytes` behind the packet's end, as a card pads short frames.
#[must_use]
pub fn padded(frame: &[u8], bytes: &[u8]) -> Vec<u8> {
    [frame, bytes].concat()
}

/// The IPv6 packet with extension headers, the outer one first.
///
/// # Panics
/// When it is no IPv6 packet.
#[must_use]
pub fn extended(packet: &[u8], headers: &[Extension]) -> Vec<u8> {
    assert_eq!(packet[0] >> 4, 6, "only IPv6 has extension headers");
    let (mut next, mut chain) = (packet[6], Vec::new());
    for header in headers.iter().rev() {
        chain = [header.header(next), chain].concat();
        next = header.number();
    }
    let mut all = [&packet[..40], &chain, &packet[40..]].concat();
    all[6] = next;
    set_length(&mut all);
    all
}

/// The packet in fragments (RFC 791, RFC 8200 section 4.5) that begin at these offsets behind the IP header, 0 the
/// first of them. Extension headers are cut like what follows them.
///
/// # Panics
/// When an offset is no multiple of 8, or beyond the end.
#[must_use]
pub fn fragments(packet: &[u8], id: u32, starts: &[usize]) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let header = if v6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
    let body = &packet[header..];
    let ends = starts.iter().skip(1).copied().chain([body.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| fragment(&packet[..header], &body[*start..end], id, *start, end < body.len()))
        .collect()
}

/// One fragment with this IP header. `piece` is its payload, and `start` the offset of that; `more` says whether
/// fragments follow.
///
/// # Panics
/// When the offset is no multiple of 8.
#[must_use]
pub fn fragment(header: &[u8], piece: &[u8], id: u32, start: usize, more: bool) -> Vec<u8> {
    assert_eq!(start % 8, 0, "fragments begin at multiples of 8");
    let start = u16::try_from(start).expect("an offset within a packet");
    if header[0] >> 4 == 6 {
        let offset = (start | u16::from(more)).to_be_bytes();
        let mut all = [header, &[header[6], 0], &offset, &id.to_be_bytes(), piece].concat();
        all[6] = Extension::AtomicFragment.number();
        set_length(&mut all);
        return all;
    }
    let mut all = [header, piece].concat();
    all[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    all[6..8].copy_from_slice(&((start / 8) | (u16::from(more) << 13)).to_be_bytes());
    set_length(&mut all);
    all
}

/// Makes the packet's length field, and an IPv4 header's checksum, those of its bytes.
fn set_length(packet: &mut [u8]) {
    let v6 = packet[0] >> 4 == 6;
    let length = u16::try_from(packet.len() - if v6 { 40 } else { 0 }).unwrap_or(u16::MAX).to_be_bytes();
    let at = if v6 { 4 } else { 2 };
    packet[at..at + 2].copy_from_slice(&length);
    if !v6 {
        fix_ipv4(packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame, verify};
    use std::net::IpAddr;

    const V4: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 2]];

    fn v6() -> [IpAddr; 2] {
        ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().expect("an address"))
    }

    #[test]
    fn fragments_are_the_packet() {
        let [a, b] = V4.map(IpAddr::from);
        for (src, dst) in [(a, b), v6().into()] {
            let packet = frame::udp((src, 1), (dst, 2), &[7; 100]);
            let header = if src.is_ipv4() { 20 } else { 40 };
            let own = if src.is_ipv4() { 20 } else { 48 };
            let pieces = fragments(&packet, 5, &[0, 8, 64]);
            let together: Vec<u8> = pieces.iter().flat_map(|p| p[own..].to_vec()).collect();
            assert_eq!(together, packet[header..], "{src}");
            let lengths = pieces.iter().map(|p| p.len() - own).collect::<Vec<_>>();
            assert_eq!(lengths, [8, 56, 44], "{src}");
        }
    }

    #[test]
    fn extended_packets_have_right_lengths_and_sums() {
        use Extension::*;
        let [src, dst] = v6();
        let plain = frame::udp((src, 1), (dst, 2), b"pv");
        let all = extended(&plain, &[RouterAlert, Destination, Routing, AtomicFragment, Destination]);
        assert_eq!(all.len(), plain.len() + 40);
        assert_eq!(usize::from(u16::from_be_bytes([all[4], all[5]])), all.len() - 40);
        assert_eq!((all[6], all[40], all[48], all[56], all[64], all[72]), (0, 60, 43, 44, 60, 17));
        assert_eq!(extended(&plain, &[]), plain);
    }

    #[test]
    fn tags_stand_behind_the_macs() {
        let [src, dst] = V4.map(IpAddr::from);
        let plain = frame::ethernet([2; 6], [4; 6], frame::IPV4, &frame::udp((src, 1), (dst, 2), b"pv"));
        let twice = tagged(&plain, &[(SERVICE_VLAN, 0), (VLAN, 0x2007)]);
        assert_eq!(twice[12..22], [0x88, 0xa8, 0, 0, 0x81, 0, 0x20, 7, 8, 0]);
        assert!(verify::frame(&tagged(&plain, &[]), false, false).is_ok());
    }
}
