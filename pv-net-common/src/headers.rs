//! Reading the headers of a frame: Ethernet, IPv4 or IPv6 with its extension headers, and the upper layer's first
//! bytes.
//!
//! The programs and the host's tests and fuzzers run the same code; a [`Frame`] is where the bytes come from. A header
//! counts only where it lies within the IP packet's own length: what is behind it in the frame is padding.

use crate::ip_proto::{
    IPPROTO_AH, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP,
    IPPROTO_ROUTING, IPPROTO_TCP, IPPROTO_UDP,
};
use crate::{DropReason, FlowKey, Ip};

/// Bytes of an Ethernet header.
pub const ETH_LEN: u32 = 14;
/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of ARP.
pub const ETH_P_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of a service VLAN tag (IEEE 802.1ad).
pub const ETH_P_8021AD: u16 = 0x88a8;

/// TCP: the sender has no more data.
pub const TCP_FIN: u8 = 0x01;
/// TCP: a connection opens.
pub const TCP_SYN: u8 = 0x02;
/// TCP: the connection is reset.
pub const TCP_RST: u8 = 0x04;
/// TCP: the acknowledgement number counts.
pub const TCP_ACK: u8 = 0x10;

/// The number of IPv6 extension headers that are read; a packet with more is refused.
pub const MAX_EXTENSIONS: u32 = 6;

/// Bytes of a TCP header without options.
const TCP_LEN: u32 = 20;

/// Whether `next` is the number of an IPv6 extension header, behind which another header follows.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_AH | IPPROTO_DSTOPTS)
}

/// Types of which any bytes are a valid value.
///
/// # Safety
/// The type must consist of integers, without padding.
pub unsafe trait Plain: Copy {}
// SAFETY: arrays of integers.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u32; N] {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: integers, without padding (asserted below).
unsafe impl Plain for V4 {}
// SAFETY: as above.
unsafe impl Plain for V6 {}

/// Where the bytes of a frame come from.
pub trait Frame {
    /// Bytes of the frame.
    fn len(&self) -> u32;

    /// Whether the frame is several segments in one (GSO). Its length fields may be zero then.
    fn is_gso(&self) -> bool;

    /// The `T` at `offset`, which must be a constant; `None` when the frame is too short.
    fn read<T: Plain>(&self, offset: u32) -> Option<T>;

    /// The `T` at any `offset`; `None` when the frame is too short.
    fn load<T: Plain>(&self, offset: u32) -> Option<T>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct V4 {
    version_ihl: u8,
    tos: u8,
    total_len_be: u16,
    id_be: u16,
    fragment_be: u16,
    ttl: u8,
    proto: u8,
    check: u16,
    src: u32,
    dst: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct V6 {
    version: u8,
    class_flow: [u8; 3],
    payload_len_be: u16,
    next: u8,
    hop_limit: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

const _: () = assert!(size_of::<V4>() == 20 && size_of::<V6>() == 40);

/// What the headers of an IP packet say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Addresses, ports and protocol; ports are zero unless `ports`. The link is the caller's to fill in.
    pub key: FlowKey,
    /// Whether the key names a flow: the protocol is TCP, UDP or ICMP echo. For a fragment the caller sets it.
    pub tracked: bool,
    /// The packet is a fragment.
    pub fragment: bool,
    /// This is a fragment that does not have the upper layer's header.
    pub later: bool,
    /// The key's ports are the packet's.
    pub ports: bool,
    /// Identification of a fragmented packet, as it stands in the packet.
    pub id_be: u32,
    /// The IPv4 header's checksum, as it stands in the packet.
    pub check: u16,
    /// IPv4, and "don't fragment" is not set.
    pub may_cut: bool,
    /// IPv4, not IPv6.
    pub v4: bool,
    /// The upper layer's protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, or the ICMP or IGMP type.
    pub l4_info: u8,
    /// Offset of the upper-layer header from the frame's start, bytes.
    pub l4: u32,
    /// Offset of the IP packet's end from the frame's start, bytes. What follows is padding.
    pub end: u32,
}

type Read = Result<(), DropReason>;

impl Headers {
    /// Reads the IPv4 header and what is behind it (RFC 791).
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when the headers are too short, contradict each other or could be read in two ways.
    #[inline(always)]
    pub fn parse_v4(&mut self, frame: &impl Frame) -> Read {
        let ip: V4 = frame.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        let header = (ip.version_ihl as u32 & 0xf) * 4;
        let total = u16::from_be(ip.total_len_be) as u32;
        if ip.version_ihl >> 4 != 4 || header < 20 {
            return Err(DropReason::Malformed);
        }
        // A BIG TCP packet does not fit its own length field and has zero there (kernel 6.3).
        self.end = if total == 0 && frame.is_gso() { frame.len() } else { ETH_LEN + total };
        self.l4 = ETH_LEN + header;
        if self.end > frame.len() || self.l4 > self.end {
            return Err(DropReason::Malformed);
        }
        self.v4 = true;
        self.ttl = ip.ttl;
        self.proto = ip.proto;
        self.key.proto = ip.proto as u32;
        self.key.src = Ip::from_v4_be(ip.src);
        self.key.dst = Ip::from_v4_be(ip.dst);
        let fragment = u16::from_be(ip.fragment_be);
        self.fragment = fragment & 0x3fff != 0;
        self.id_be = ip.id_be as u32;
        self.check = ip.check;
        self.may_cut = fragment & 0x4000 == 0;
        let offset = (fragment & 0x1fff) as u32 * 8;
        if offset != 0 {
            return self.later(offset);
        }
        if header == 20 { self.parse_l4::<true>(frame, ETH_LEN + 20) } else { self.parse_l4::<false>(frame, self.l4) }
    }

    /// Reads the IPv6 header, walks the extension headers and reads what is behind them (RFC 8200).
    ///
    /// # Errors
    /// As [`Headers::parse_v4`].
    #[inline(always)]
    pub fn parse_v6(&mut self, frame: &impl Frame) -> Read {
        let ip: V6 = frame.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        let payload = u16::from_be(ip.payload_len_be) as u32;
        if ip.version >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        // Zero in a GSO packet: a jumbogram, as BIG TCP makes them.
        self.end = if payload == 0 && frame.is_gso() { frame.len() } else { ETH_LEN + 40 + payload };
        if self.end > frame.len() {
            return Err(DropReason::Malformed);
        }
        self.ttl = ip.hop_limit;
        self.key.src = Ip { words_be: ip.src };
        self.key.dst = Ip { words_be: ip.dst };
        // The maps hold IPv4 addresses in the IPv4-mapped form, so a real IPv6 packet must not carry it; no host has
        // such an address on a wire (RFC 4291 section 2.5.5.2).
        if self.key.src.is_v4() || self.key.dst.is_v4() {
            return Err(DropReason::Malformed);
        }
        self.proto = ip.next;
        self.key.proto = ip.next as u32;
        self.l4 = ETH_LEN + 40;
        if matches!(ip.next, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMPV6) {
            return self.parse_l4::<true>(frame, ETH_LEN + 40);
        }
        self.walk_extensions(frame, ip.next)
    }

    #[inline(always)]
    fn walk_extensions(&mut self, frame: &impl Frame, first: u8) -> Read {
        let mut next = first;
        let mut at = ETH_LEN + 40;
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(next) {
                break;
            }
            if at + 8 > self.end {
                return Err(DropReason::Malformed);
            }
            match next {
                // Fragment (RFC 8200 section 4.5).
                IPPROTO_FRAGMENT => {
                    let h: [u8; 8] = frame.load(at).ok_or(DropReason::Malformed)?;
                    if self.fragment {
                        return Err(DropReason::Malformed);
                    }
                    next = h[0];
                    at += 8;
                    self.fragment = true;
                    self.id_be = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
                    let offset = (u16::from_be_bytes([h[2], h[3]]) & 0xfff8) as u32;
                    if offset != 0 {
                        self.proto = next;
                        self.key.proto = next as u32;
                        self.l4 = at;
                        return self.later(offset);
                    }
                }
                // Authentication header (RFC 4302); else hop-by-hop options, routing, destination options.
                kind => {
                    let h: [u8; 2] = frame.load(at).ok_or(DropReason::Malformed)?;
                    next = h[0];
                    at += if kind == IPPROTO_AH { (h[1] as u32 + 2) * 4 } else { (h[1] as u32 + 1) * 8 };
                }
            }
        }
        // A longer chain could hide a message that no container may send (RFC 7113).
        if is_extension(next) || at > self.end {
            return Err(DropReason::Malformed);
        }
        self.proto = next;
        self.key.proto = next as u32;
        self.l4 = at;
        self.parse_l4::<false>(frame, at)
    }

    /// Reads a later fragment. One that begins within the TCP header could overwrite the part that the first fragment
    /// was allowed for, so it is refused (RFC 1858, RFC 3128).
    #[inline(always)]
    fn later(&mut self, offset: u32) -> Read {
        self.later = true;
        if self.proto == IPPROTO_TCP && offset < TCP_LEN { Err(DropReason::Malformed) } else { Ok(()) }
    }

    /// Reads the ports or the echo identifier at offset `at`; `CONSTANT` when the compiler knows the offset. The whole
    /// upper-layer header must be there, in a first fragment too (RFC 7112).
    #[inline(always)]
    fn parse_l4<const CONSTANT: bool>(&mut self, frame: &impl Frame, at: u32) -> Read {
        match self.proto {
            IPPROTO_TCP => {
                let h: [u16; 7] = read_l4::<CONSTANT, _>(frame, at)?;
                self.key.sport_be = h[0];
                self.key.dport_be = h[1];
                let offset_flags = h[6].to_ne_bytes();
                let header = (offset_flags[0] >> 4) as u32 * 4;
                if header < TCP_LEN || at + header > self.end {
                    return Err(DropReason::Malformed);
                }
                self.l4_info = offset_flags[1];
                self.ports = true;
                self.tracked = !self.fragment;
            }
            IPPROTO_UDP => {
                let h: [u16; 4] = read_l4::<CONSTANT, _>(frame, at)?;
                if at + 8 > self.end {
                    return Err(DropReason::Malformed);
                }
                self.key.sport_be = h[0];
                self.key.dport_be = h[1];
                self.ports = true;
                self.tracked = !self.fragment;
            }
            IPPROTO_ICMP | IPPROTO_ICMPV6 | IPPROTO_IGMP => {
                let h: [u16; 4] = read_l4::<CONSTANT, _>(frame, at)?;
                if at + 8 > self.end {
                    return Err(DropReason::Malformed);
                }
                let kind = h[0].to_ne_bytes()[0];
                self.l4_info = kind;
                let echo = if self.v4 { kind == 8 || kind == 0 } else { kind == 128 || kind == 129 };
                if echo && (self.proto == IPPROTO_ICMP) == self.v4 && self.proto != IPPROTO_IGMP {
                    self.key.sport_be = h[2];
                    self.key.dport_be = h[2];
                    self.ports = true;
                    self.tracked = !self.fragment;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An ICMP or ICMPv6 error (RFC 1122 section 3.2.2, RFC 4443 section 2.1).
    #[inline(always)]
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        if self.later {
            return false;
        }
        match self.proto {
            IPPROTO_ICMP if self.v4 => matches!(self.l4_info, 3 | 4 | 11 | 12),
            IPPROTO_ICMPV6 if !self.v4 => matches!(self.l4_info, 1..=4),
            _ => false,
        }
    }

    /// Whether this is a TCP segment other than the first one of a connection.
    #[inline(always)]
    #[must_use]
    pub fn continues_tcp(&self) -> bool {
        self.proto == IPPROTO_TCP && !self.opens_tcp()
    }

    /// Whether this is a TCP segment with any of `flags`.
    #[inline(always)]
    #[must_use]
    pub fn tcp_has(&self, flags: u8) -> bool {
        self.proto == IPPROTO_TCP && self.tracked && !self.later && self.l4_info & flags != 0
    }

    /// Whether this is the first segment of a TCP connection.
    #[inline(always)]
    #[must_use]
    pub fn opens_tcp(&self) -> bool {
        self.proto == IPPROTO_TCP && !self.later && self.l4_info & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}

#[inline(always)]
fn read_l4<const CONSTANT: bool, T: Plain>(frame: &impl Frame, at: u32) -> Result<T, DropReason> {
    let found = if CONSTANT { frame.read(at) } else { frame.load(at) };
    found.ok_or(DropReason::Malformed)
}

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    /// From the Ethernet header on.
    pub bytes: &'a [u8],
    /// Whether it is several segments in one.
    pub gso: bool,
}

impl Frame for Bytes<'_> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn is_gso(&self) -> bool {
        self.gso
    }

    fn read<T: Plain>(&self, offset: u32) -> Option<T> {
        self.load(offset)
    }

    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let part = self.bytes.get(offset as usize..)?.get(..size_of::<T>())?;
        // SAFETY: the slice has as many bytes as `T`, and any bytes are one.
        Some(unsafe { part.as_ptr().cast::<T>().read_unaligned() })
    }
}

#[cfg(test)]
mod tests;
