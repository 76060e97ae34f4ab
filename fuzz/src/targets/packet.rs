//! The headers of a packet, compared with a reading by `etherparse`: both must accept the same packets and agree on
//! them.

use super::own;
use etherparse::{Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice};
use etherparse::{TcpHeaderSlice, UdpHeaderSlice};
use pv_net_common::headers::{Bytes, ETH_LEN, ETH_P_IP, ETH_P_IPV6, Frame, Headers, MAX_EXTENSIONS, Plain};
use std::cell::Cell;
use std::net::IpAddr;

const ETHERNET: usize = ETH_LEN as usize;

/// Target `packet`. The input is a frame.
pub fn check(input: &[u8]) {
    for gso in [false, true] {
        let (ours, furthest) = ours(input, gso);
        assert_eq!(ours, reference(input, gso), "GSO: {gso}");
        if let Some(packet) = &ours {
            assert!(furthest <= packet.end, "read up to {furthest}, and the packet ends at {}", packet.end);
        }
        // The packet is complete by its own length, so any padding behind it must make no difference.
        if let Some(end) = own_end(input).filter(|end| *end <= input.len()) {
            for padding in [&[][..], &[0x11; 40], &[0xff; 61], &input[end..end.max(input.len() / 2)]] {
                assert_eq!(self::ours(&[&input[..end], padding].concat(), gso).0, ours, "other padding");
            }
        }
    }
}

/// What is compared.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ttl: u8,
    /// Source and destination, or the echo identifier twice.
    ports: Option<(u16, u16)>,
    /// TCP flags, or the type of ICMP and IGMP.
    info: u8,
    fragment: bool,
    later: bool,
    /// Identification of a fragment.
    id: Option<u32>,
    /// Offsets of the upper layer and of the packet's end, bytes.
    l4: usize,
    end: usize,
}

/// Measures how far a frame is read.
struct Watched<'a> {
    frame: Bytes<'a>,
    furthest: Cell<usize>,
}

impl Frame for Watched<'_> {
    fn len(&self) -> u32 {
        self.frame.len()
    }

    fn is_gso(&self) -> bool {
        self.frame.is_gso()
    }

    fn read<T: Plain>(&self, offset: u32) -> Option<T> {
        self.load(offset)
    }

    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let end = offset as usize + size_of::<T>();
        self.furthest.set(self.furthest.get().max(end));
        self.frame.load(offset)
    }
}

/// Our reading, and how far it went.
fn ours(bytes: &[u8], gso: bool) -> (Option<Packet>, usize) {
    let frame = Watched { frame: Bytes { bytes, gso }, furthest: Cell::new(0) };
    let mut headers = Headers::default();
    let done = match ether_type(bytes) {
        Some(ETH_P_IP) => headers.parse_v4(&frame),
        Some(ETH_P_IPV6) => headers.parse_v6(&frame),
        _ => return (None, 0),
    };
    let h = headers;
    if done.is_ok() {
        assert_eq!(h.v4, h.key.src.is_v4() && h.key.dst.is_v4(), "one family's addresses are never the other's");
        assert_eq!(h.proto as u32, h.key.proto);
        assert!(h.fragment || !h.later);
        assert!(!h.tracked || h.ports && !h.fragment);
        assert!(h.ports || (h.key.sport_be, h.key.dport_be) == (0, 0));
    }
    let packet = Packet {
        src: IpAddr::from(h.key.src),
        dst: IpAddr::from(h.key.dst),
        proto: h.proto,
        ttl: h.ttl,
        ports: h.ports.then(|| (u16::from_be(h.key.sport_be), u16::from_be(h.key.dport_be))),
        info: h.l4_info,
        fragment: h.fragment,
        later: h.later,
        id: h.fragment.then(|| if h.v4 { u16::from_be(h.id_be as u16).into() } else { u32::from_be(h.id_be) }),
        l4: h.l4 as usize,
        end: h.end as usize,
    };
    (done.ok().map(|()| packet), frame.furthest.get())
}

fn ether_type(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(12..ETHERNET)?.try_into().ok()?))
}

/// Where the packet ends by its own length field; `None` without one.
fn own_end(bytes: &[u8]) -> Option<usize> {
    let ip = bytes.get(ETHERNET..)?;
    let at = |at: usize| Some(usize::from(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?)));
    match ether_type(bytes)? {
        ETH_P_IP => at(2).filter(|total| *total > 0).map(|total| ETHERNET + total),
        ETH_P_IPV6 => at(4).filter(|payload| *payload > 0).map(|payload| ETHERNET + 40 + payload),
        _ => None,
    }
}

/// The other reading.
fn reference(bytes: &[u8], gso: bool) -> Option<Packet> {
    let ip = bytes.get(ETHERNET..)?;
    match ether_type(bytes)? {
        ETH_P_IP => four(ip, gso),
        ETH_P_IPV6 => six(ip, gso),
        _ => None,
    }
}

fn four(ip: &[u8], gso: bool) -> Option<Packet> {
    let header = Ipv4HeaderSlice::from_slice(ip).ok()?;
    let total = if header.total_len() == 0 && gso { ip.len() } else { usize::from(header.total_len()) };
    let header_len = header.slice().len();
    let payload = ip.get(..total)?.get(header_len..)?;
    let offset = usize::from(header.fragments_offset().value()) * 8;
    let packet = Packet {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        proto: header.protocol().0,
        ttl: header.ttl(),
        ports: None,
        info: 0,
        fragment: header.is_fragmenting_payload(),
        later: offset > 0,
        id: header.is_fragmenting_payload().then(|| header.identification().into()),
        l4: ETHERNET + header_len,
        end: ETHERNET + total,
    };
    upper(packet, payload, offset)
}

fn six(ip: &[u8], gso: bool) -> Option<Packet> {
    let header = Ipv6HeaderSlice::from_slice(ip).ok()?;
    let len = usize::from(header.payload_length());
    let all = &ip[40..];
    let mut payload = if len == 0 && gso { all } else { all.get(..len)? };
    let end = ETHERNET + 40 + payload.len();
    let (src, dst) = (header.source_addr(), header.destination_addr());
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return None;
    }
    let (mut next, mut fragment) = (header.next_header().0, None);
    let mut walked = 0;
    while matches!(next, 0 | 43 | 44 | 51 | 60) {
        walked += 1;
        if walked > MAX_EXTENSIONS {
            return None;
        }
        let len;
        (next, len) = match next {
            44 => {
                let h = Ipv6FragmentHeaderSlice::from_slice(payload).ok()?;
                if fragment.is_some() {
                    return None;
                }
                fragment = Some((h.identification(), usize::from(h.fragment_offset().value()) * 8));
                (h.next_header().0, h.slice().len())
            }
            // The length as the kernel computes it (`ipv6_authlen`); etherparse requires more than the header needs.
            51 => (*payload.first()?, (usize::from(*payload.get(1)?) + 2) * 4),
            _ => {
                let h = Ipv6RawExtHeaderSlice::from_slice(payload).ok()?;
                (h.next_header().0, h.slice().len())
            }
        };
        payload = payload.get(len..)?;
        // The contents of a later fragment begin somewhere within the packet.
        if fragment.is_some_and(|(_, offset)| offset > 0) {
            break;
        }
    }
    let offset = fragment.map_or(0, |f| f.1);
    let packet = Packet {
        src: src.into(),
        dst: dst.into(),
        proto: next,
        ttl: header.hop_limit(),
        ports: None,
        info: 0,
        fragment: fragment.is_some(),
        later: offset > 0,
        id: fragment.map(|f| f.0),
        l4: end - payload.len(),
        end,
    };
    upper(packet, payload, offset)
}

/// A first fragment must have its whole header, and a later one must not begin within a TCP header.
fn upper(mut packet: Packet, payload: &[u8], offset: usize) -> Option<Packet> {
    const TCP: u8 = 6;
    if offset > 0 {
        return (packet.proto != TCP || offset >= 20).then_some(packet);
    }
    match (packet.proto, packet.src.is_ipv4()) {
        (TCP, _) => {
            let h = TcpHeaderSlice::from_slice(payload).ok()?;
            packet.ports = Some((h.source_port(), h.destination_port()));
            packet.info = h.slice()[13];
        }
        (17, _) => {
            let h = UdpHeaderSlice::from_slice(payload).ok()?;
            packet.ports = Some((h.source_port(), h.destination_port()));
        }
        (proto @ (1 | 2 | 58), four) => {
            let h = payload.get(..8)?;
            packet.info = h[0];
            let echo = matches!((proto, four, h[0]), (1, true, 0 | 8) | (58, false, 128 | 129));
            packet.ports = echo.then(|| u16::from_be_bytes([h[4], h[5]])).map(|id| (id, id));
        }
        _ => {}
    }
    Some(packet)
}

/// Headers, to be put before others.
pub fn words() -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = [
        // EtherTypes.
        &[0x08, 0x00][..],
        &[0x86, 0xdd],
        &[0x81, 0x00],
        // Beginnings of IP headers.
        &[0x45, 0x00, 0x00, 0x28],
        &[0x46, 0x00, 0x00, 0x2c],
        &[0x60, 0, 0, 0, 0, 0x14, 0x06, 64],
        // Extension headers: options, routing, fragment, authentication.
        &[60, 0, 1, 4, 0, 0, 0, 0],
        &[43, 0, 0, 0, 0, 0, 0, 0],
        &[44, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 0, 1, 0, 0, 0, 9],
        &[17, 0, 0, 8, 0, 0, 0, 9],
        &[51, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        // The first twelve octets of an IPv4-mapped address.
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        // Flags and offsets of fragments.
        &[0x20, 0x00],
        &[0x00, 0x01],
        &[0x1f, 0xff],
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    words.extend(own(&["\x06", "\x11", "\x01", "\x3a", "\x02"]));
    words
}
