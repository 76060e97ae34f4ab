//! Reads a frame as the RFCs describe it: headers lie within the packet's own length, and bytes behind it do not count.

use crate::frame::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const IGMP: u8 = 2;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;

/// Why ARP is not read.
pub(crate) const ARP_UNREADABLE: &str = "ARP that is not of Ethernet and IPv4";
/// How many extension headers pv-net reads at most.
const MOST_HEADERS: usize = 6;

/// A frame as it is read.
#[derive(Debug)]
pub(crate) struct Reading {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// VLAN ids of its tags, the outer one first.
    pub tags: Vec<u16>,
    pub content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Arp(Arp),
    Ip(Packet),
    /// ARP or IP whose fields contradict each other.
    Unreadable(&'static str),
    Other,
}

#[derive(Debug)]
pub(crate) struct Arp {
    pub op: u16,
    pub sender: ([u8; 6], Ipv4Addr),
    pub target: Ipv4Addr,
}

/// An IP packet.
#[derive(Debug)]
pub(crate) struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub hops: u8,
    pub proto: u8,
    pub fragment: Option<Fragment>,
    pub transport: Transport,
    /// The packet has nothing unusual: every kernel accepts it.
    pub plain: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub id: u32,
    /// In octets.
    pub offset: u16,
}

impl Fragment {
    pub(crate) fn is_first(self) -> bool {
        self.offset == 0
    }
}

#[derive(Debug)]
pub(crate) enum Transport {
    Tcp {
        ports: (u16, u16),
        flags: u8,
    },
    Udp {
        ports: (u16, u16),
    },
    Icmp {
        kind: u8,
        id: u16,
        body: Vec<u8>,
    },
    Igmp {
        kind: u8,
    },
    Other,
    /// The transport header is in an earlier fragment.
    Later,
}

impl Packet {
    /// Source and destination port.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp { ports, .. } | Transport::Udp { ports } => Some(ports),
            _ => None,
        }
    }

    /// Type of an ICMPv6 message.
    pub(crate) fn icmp6(&self) -> Option<u8> {
        match self.transport {
            Transport::Icmp { kind, .. } if self.proto == ICMP6 => Some(kind),
            _ => None,
        }
    }

    /// Type of an ICMP message.
    pub(crate) fn icmp4(&self) -> Option<u8> {
        match self.transport {
            Transport::Icmp { kind, .. } if self.proto == ICMP => Some(kind),
            _ => None,
        }
    }

    /// Whether the packet goes to a DHCP client's port, whoever sends it.
    pub(crate) fn is_dhcp_answer(&self) -> bool {
        let client = if self.src.is_ipv4() { 68 } else { 546 };
        matches!(self.transport, Transport::Udp { ports: (_, to) } if to == client)
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self.icmp4(), Some(3 | 4 | 5 | 11 | 12)) || matches!(self.icmp6(), Some(1..=4))
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a frame; none when it has no whole Ethernet header.
pub(crate) fn read(frame: &[u8]) -> Option<Reading> {
    let (dst, src) = (frame.get(..6)?.try_into().ok()?, frame.get(6..12)?.try_into().ok()?);
    let mut rest = &frame[12..];
    let mut tags = Vec::new();
    let mut kind = be16(rest.get(..2)?, 0);
    rest = &rest[2..];
    while matches!(kind, 0x8100 | 0x88a8) {
        let Some(tag) = rest.get(..4) else { return Some(Reading { dst, src, tags, content: Content::Other }) };
        tags.push(be16(tag, 0) & 0xfff);
        kind = be16(tag, 2);
        rest = &rest[4..];
    }
    let content = match kind {
        0x0806 => arp(rest).map_or(Content::Unreadable(ARP_UNREADABLE), Content::Arp),
        0x0800 => ipv4(rest).map_or_else(Content::Unreadable, Content::Ip),
        0x86dd => ipv6(rest).map_or_else(Content::Unreadable, Content::Ip),
        _ => Content::Other,
    };
    Some(Reading { dst, src, tags, content })
}

/// The frame without the bytes behind the end of its packet: a kernel cuts them off before its sockets see the packet.
pub(crate) fn without_padding(frame: &[u8]) -> &[u8] {
    let Some(Reading { tags, content: Content::Ip(packet), .. }) = read(frame) else { return frame };
    let head = 14 + 4 * tags.len();
    let length = be16(frame, head + if packet.src.is_ipv4() { 2 } else { 4 });
    let length = usize::from(length) + if packet.src.is_ipv4() { 0 } else { 40 };
    &frame[..head + length]
}

fn arp(bytes: &[u8]) -> Option<Arp> {
    let bytes = bytes.get(..28)?;
    let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let sender_mac = bytes[8..14].try_into().ok()?;
    (bytes[..6] == [0, 1, 8, 0, 6, 4]).then(|| Arp {
        op: be16(bytes, 6),
        sender: (sender_mac, address(14)),
        target: address(24),
    })
}

/// RFC 791.
fn ipv4(bytes: &[u8]) -> Result<Packet, &'static str> {
    let head = bytes.get(..20).ok_or("an IPv4 header that is cut")?;
    let (length, total) = (usize::from(head[0] & 0xf) * 4, usize::from(be16(head, 2)));
    if head[0] >> 4 != 4 || length < 20 || total < length || total > bytes.len() {
        return Err("lengths of an IPv4 header that contradict each other");
    }
    let address = |at: usize| IpAddr::from([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (src, dst, proto) = (address(12), address(16), head[9]);
    let (more, offset) = (head[6] & 0x20 != 0, be16(head, 6) & 0x1fff);
    let fragment = (more || offset != 0).then(|| Fragment { id: be16(head, 4).into(), offset: offset * 8 });
    let body = &bytes[length..total];
    let transport = transport(proto, body, fragment)?;
    let options_are_plain = bytes[20..length].iter().all(|option| *option <= 1);
    let plain = checksum(&[&bytes[..length]]) == [0, 0] && options_are_plain && head[6] & 0x80 == 0;
    let plain = plain && (fragment.is_some() || is_whole(proto, body, &pseudo(src, dst, proto, body.len())));
    Ok(Packet { src, dst, hops: head[8], proto, fragment, transport, plain })
}

/// RFC 8200.
fn ipv6(bytes: &[u8]) -> Result<Packet, &'static str> {
    let head = bytes.get(..40).ok_or("an IPv6 header that is cut")?;
    let length = usize::from(be16(head, 4));
    if head[0] >> 4 != 6 || 40 + length > bytes.len() {
        return Err("lengths of an IPv6 header that contradict each other");
    }
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 16] = head[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets).into()
    };
    let (src, dst) = (address(8), address(24));
    let (mut proto, mut body) = (head[6], &bytes[40..40 + length]);
    let (mut fragment, mut headers) = (None, 0);
    let cut = "an extension header that is cut";
    while matches!(proto, 0 | 43 | 44 | 51 | 60) {
        headers += 1;
        let start = body.get(..8).ok_or(cut)?;
        let length = match proto {
            44 => 8,
            51 => (usize::from(start[1]) + 2) * 4,
            _ => (usize::from(start[1]) + 1) * 8,
        };
        let next = start[0];
        if proto == 44 {
            let offset = be16(start, 2) & 0xfff8;
            fragment = Some(Fragment { id: u32::from_be_bytes([start[4], start[5], start[6], start[7]]), offset });
        }
        body = body.get(length..).ok_or(cut)?;
        proto = next;
        if headers > MOST_HEADERS {
            return Err("more extension headers than anybody needs");
        }
        if fragment.is_some_and(|f| !f.is_first()) {
            break;
        }
    }
    let transport = transport(proto, body, fragment)?;
    let fragments_only = headers == usize::from(fragment.is_some());
    let plain = fragments_only
        && (fragment.is_some() || is_whole(proto, body, &pseudo(src, dst, proto, body.len())))
        && (length != 0 || proto == 59);
    Ok(Packet { src, dst, hops: head[7], proto, fragment, transport, plain })
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, length: usize) -> Vec<u8> {
    if proto == ICMP || proto == IGMP { Vec::new() } else { crate::frame::pseudo(src, dst, proto, length) }
}

/// Whether checksum and length of a transport header are right.
fn is_whole(proto: u8, body: &[u8], pseudo: &[u8]) -> bool {
    match proto {
        UDP if usize::from(be16(body, 4)) != body.len() => false,
        UDP if be16(body, 6) == 0 => false,
        TCP | UDP | ICMP | IGMP | ICMP6 => checksum(&[pseudo, body]) == [0, 0],
        _ => true,
    }
}

/// Reads the transport header. The first fragment contains all of it (RFC 1858, RFC 7112), as does a packet in one
/// piece; later fragments contain nothing of it.
fn transport(proto: u8, body: &[u8], fragment: Option<Fragment>) -> Result<Transport, &'static str> {
    if fragment.is_some_and(|f| !f.is_first()) {
        let inside = proto == TCP && fragment.is_some_and(|f| f.offset < 20);
        return if inside {
            Err("a later fragment that rewrites the TCP header (RFC 3128)")
        } else {
            Ok(Transport::Later)
        };
    }
    let whole = |length: usize| body.get(..length).ok_or("a transport header that is cut");
    Ok(match proto {
        TCP => {
            let head = whole(20)?;
            let length = usize::from(head[12] >> 4) * 4;
            if length < 20 {
                return Err("a TCP header shorter than it can be");
            }
            whole(length)?;
            Transport::Tcp { ports: (be16(head, 0), be16(head, 2)), flags: head[13] & 0x3f }
        }
        UDP => {
            let head = whole(8)?;
            Transport::Udp { ports: (be16(head, 0), be16(head, 2)) }
        }
        ICMP | ICMP6 => {
            let head = whole(8)?;
            Transport::Icmp { kind: head[0], id: be16(head, 4), body: body[8..].to_vec() }
        }
        IGMP => Transport::Igmp { kind: whole(8)?[0] },
        _ => Transport::Other,
    })
}
