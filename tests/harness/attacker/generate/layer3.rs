//! The IP headers: options and extension headers, fragments, wrong lengths, and decoy headers behind the packet's end.

use super::super::mark;
use super::{Maker, Numbered};
use crate::frame;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How a datagram is cut.
#[derive(Clone, Copy)]
enum Cut {
    InOrder,
    LaterOnly,
    LaterFirst,
    Tiny,
    Overlapping,
}

/// Where a piece is in its datagram, in octets, and whether more follow.
#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    offset: usize,
    more: bool,
}

impl Maker<'_> {
    /// The packets of one shot.
    pub(super) fn packets(&mut self, src: IpAddr, dst: IpAddr) -> Vec<Numbered> {
        let number = self.next;
        let hops = self.hops();
        let (mut proto, mut payload) = self.payload(src, dst);
        if src.is_ipv6() && self.random.chance(14) {
            (proto, payload) = self.extended(proto, &payload);
        }
        if self.random.chance(14) {
            return self.fragments(src, dst, hops, proto, &payload);
        }
        let mut packet = self.packet(src, dst, hops, proto, &payload, None);
        if self.random.chance(7) {
            self.wrong_length(&mut packet);
        }
        if self.random.chance(7) {
            self.decoy(&mut packet);
        }
        vec![(number, packet)]
    }

    /// Hop limit: neighbour discovery needs 255; a traceroute has a small one.
    fn hops(&mut self) -> u8 {
        self.random.weighted(&[(8, 64), (10, 255), (1, 0), (1, 1), (1, 2)])
    }

    fn packet(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        hops: u8,
        proto: u8,
        payload: &[u8],
        piece: Option<Piece>,
    ) -> Vec<u8> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(src, dst, hops, proto, payload, piece),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(src, dst, hops, proto, payload, piece),
            _ => unreachable!("addresses of one family"),
        }
    }

    fn ipv4(
        &mut self,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        hops: u8,
        proto: u8,
        payload: &[u8],
        piece: Option<Piece>,
    ) -> Vec<u8> {
        let mut packet = frame::ipv4(src, dst, proto, payload);
        packet[8] = hops;
        if let Some(piece) = piece {
            packet[4..6].copy_from_slice(&piece.id.to_be_bytes()[2..]);
            let units = u16::try_from(piece.offset / 8).unwrap_or(0) | if piece.more { 0x2000 } else { 0 };
            packet[6..8].copy_from_slice(&units.to_be_bytes());
        } else if self.random.chance(20) {
            packet[6] = self.random.pick(&[0x40, 0x80, 0xc0]);
        }
        if self.random.chance(6) {
            let options =
                self.random.pick(&[[1, 1, 1, 0], [0x94, 4, 0, 0], [0x83, 3, 4, 0], [7, 3, 4, 0], [0x44, 4, 5, 0]]);
            packet.splice(20..20, options);
            packet[0] = 0x46;
            let length = u16::from_be_bytes([packet[2], packet[3]]) + 4;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
        }
        frame::fix_ipv4(&mut packet);
        packet
    }

    /// The payload behind one extension header, a few, or more than pv-net reads.
    fn extended(&mut self, proto: u8, payload: &[u8]) -> (u8, Vec<u8>) {
        let (mut next, mut packet) = (proto, payload.to_vec());
        let headers = self.random.pick(&[1, 1, 2, 3, 5, 8, 12]);
        for n in (0..headers).rev() {
            let kind = if n == 0 { self.random.pick(&[0, 60, 43, 51]) } else { self.random.pick(&[60, 60, 43, 51]) };
            // Padding (PadN); AH counts its length in words of four octets, less two. A routing header of an unknown
            // type.
            let head = match kind {
                51 => [next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1].to_vec(),
                43 => [next, 0, 253, 0, 0, 0, 0, 0].to_vec(),
                _ => [next, 0, 1, 4, 0, 0, 0, 0].to_vec(),
            };
            packet = [head, packet].concat();
            next = kind;
        }
        (next, packet)
    }

    fn fragments(&mut self, src: IpAddr, dst: IpAddr, hops: u8, proto: u8, payload: &[u8]) -> Vec<Numbered> {
        let kind = self.random.weighted(&[
            (5, Cut::InOrder),
            (2, Cut::LaterOnly),
            (1, Cut::LaterFirst),
            (2, Cut::Tiny),
            (1, Cut::Overlapping),
        ]);
        let mut whole = payload.to_vec();
        whole.resize(whole.len().next_multiple_of(8), b'.');
        // The first fragment has the payload's mark, the later one has the next mark.
        let number = self.next;
        let rest = [&self.mark()[..], &[b'.'; 20]].concat();
        let id = u32::try_from(self.random.below(4096)).unwrap_or(0);
        let first_length =
            if matches!(kind, Cut::Tiny) { self.random.pick(&[8, 16]).min(whole.len()) } else { whole.len() };
        let offset = if matches!(kind, Cut::Overlapping) { 8 } else { first_length };
        let later = [&whole[first_length..], &rest].concat();
        let first =
            self.packet(src, dst, hops, proto, &whole[..first_length], Some(Piece { id, offset: 0, more: true }));
        let later = self.packet(src, dst, hops, proto, &later, Some(Piece { id, offset, more: false }));
        match kind {
            Cut::LaterOnly => vec![(number, later)],
            Cut::LaterFirst => vec![(number, later), (number - 1, first)],
            Cut::InOrder | Cut::Tiny | Cut::Overlapping => vec![(number - 1, first), (number, later)],
        }
    }

    /// Makes the packet's length field too small, too large or zero.
    fn wrong_length(&mut self, packet: &mut [u8]) {
        let v4 = packet[0] >> 4 == 4;
        let at = if v4 { 2 } else { 4 };
        let right = u16::from_be_bytes([packet[at], packet[at + 1]]);
        let head = if v4 { 20 } else { 0 };
        let cut = u16::try_from(self.random.below(24)).unwrap_or(0);
        let wrong = self.random.pick(&[0, head, head + cut, right.saturating_sub(cut), right + 1, right + 400]);
        packet[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        if v4 && self.random.chance(15) {
            packet[0] = 0x40 | self.random.pick(&[0, 4, 6, 15]);
        }
        if v4 && packet.len() >= 60 {
            frame::fix_ipv4(packet);
        }
    }

    /// Bytes behind the end of the packet, where a careless reader finds a header.
    fn decoy(&mut self, packet: &mut Vec<u8>) {
        let decoy = self.random.pick(&[
            [0, 80, 0, 80, 0, 0, 3, 232],
            [134, 0, 0, 0, 64, 0, 7, 8],
            [0x50, 0x10, 1, 1, 0, 0, 0, 0],
        ]);
        packet.extend(decoy);
        packet.extend(mark::of(self.next.saturating_sub(1)));
    }
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, hops: u8, proto: u8, payload: &[u8], piece: Option<Piece>) -> Vec<u8> {
    let Some(Piece { id, offset, more }) = piece else { return frame::ipv6_hops(src, dst, proto, hops, payload) };
    let units = u16::try_from(offset).unwrap_or(0) & 0xfff8 | u16::from(more);
    let head = [&[proto, 0][..], &units.to_be_bytes(), &id.to_be_bytes()].concat();
    frame::ipv6_hops(src, dst, 44, hops, &[&head[..], payload].concat())
}
