//! Reading a frame: the only place that checks bounds.

use crate::maps::{FRAGMENTS, Scratch, scratch};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use core::mem::MaybeUninit;
use pv_net_common::{DropReason, FlowKey, FragmentKey, FragmentPorts, Ip};

pub const ETH_LEN: u32 = 14;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMPV6: u8 = 58;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// IPv6 extension headers that are walked; a packet with more is dropped.
const MAX_EXTENSIONS: u32 = 6;

/// The Ethernet header. Its alignment is what the verifier holds a frame's start for, so that it is read in words.
#[repr(C, align(2))]
#[derive(Clone, Copy)]
pub struct Eth {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub proto_be: u16,
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

/// What the later stages need of a frame.
pub struct Packet {
    pub skb: *mut __sk_buff,
    pub eth: Eth,
    /// Addresses, ports and protocol; ports are zero unless `tracked` or a first fragment's.
    pub key: FlowKey,
    /// Whether the key names a flow: TCP, UDP or echo; a later fragment when its first one was seen.
    pub tracked: bool,
    pub fragment: bool,
    /// A fragment without the upper layer's header.
    pub later: bool,
    /// The key's ports are the packet's.
    ports: bool,
    /// Identification of a fragmented packet, as it stands in the packet.
    pub id_be: u32,
    /// The IPv4 header's checksum, as it stands in the packet.
    pub check: u16,
    /// Link that the packet came in on.
    pub link: u32,
    /// IPv4 without "don't fragment".
    pub may_cut: bool,
    pub v4: bool,
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, or the ICMP type.
    pub l4_info: u8,
    /// Offset of the upper-layer header from the frame's start, bytes.
    pub l4: u32,
}

/// What of a [`Packet`] is laid aside by [`Packet::forget`]: whatever the reading of a frame decides by.
#[repr(C)]
pub struct Forgotten {
    key: FlowKey,
    bits: u32,
    rest: u32,
    l4: u32,
}

/// A bool that costs no branch: the target has no instruction that makes one of a comparison.
#[inline(always)]
fn bit(byte: u8) -> bool {
    // SAFETY: 0 or 1.
    unsafe { core::mem::transmute(byte & 1) }
}

/// A `T` at `offset`, a constant: straight from the frame's linear part, else through the helper.
#[inline(always)]
pub fn read<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Result<T, DropReason> {
    // SAFETY: the verifier proves `data + offset + size <= data_end` from the comparison below. Where alignment counts it
    // proves that too, with IP headers at word boundaries (`NET_IP_ALIGN`); an unaligned read would go byte by byte.
    unsafe {
        let at = (*skb).data as usize + offset as usize;
        if at + size_of::<T>() <= (*skb).data_end as usize {
            return Ok((at as *const T).read());
        }
    }
    load(skb, offset)
}

/// A `T` at `offset`, any: by `bpf_skb_load_bytes`, that reads paged data too.
#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Result<T, DropReason> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all `size_of::<T>()` bytes or fails; `T` is made of integers.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(value.assume_init())
    }
}

impl Packet {
    /// A packet of which only the Ethernet header is known.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff, eth: Eth) -> Self {
        // SAFETY: a context field.
        let ifindex = unsafe { (*skb).ifindex };
        Self {
            skb,
            eth,
            key: FlowKey { ifindex, ..FlowKey::default() },
            tracked: false,
            fragment: false,
            later: false,
            ports: false,
            id_be: 0,
            check: 0,
            link: ifindex,
            may_cut: false,
            v4: false,
            proto: 0,
            ttl: 0,
            l4_info: 0,
            l4: 0,
        }
    }

    /// Makes the verifier forget every value of the packet. Else it follows each way of reading a frame through all the
    /// rest of a stage: a multiple of the time and memory that loading takes, and kernel 6.1 does not load the programs
    /// with 64 MiB left.
    #[inline(always)]
    pub fn forget(&mut self) -> Option<()> {
        let Scratch { packet: slot, .. } = scratch()?;
        let bits = [self.tracked, self.fragment, self.later, self.ports];
        slot.key = self.key;
        slot.bits = u32::from_ne_bytes(bits.map(u8::from));
        slot.rest = u32::from_ne_bytes([u8::from(self.may_cut), u8::from(self.v4), self.proto, self.l4_info]);
        slot.l4 = self.l4;
        const WORDS: usize = size_of::<Forgotten>() / size_of::<u32>();
        let mut known = MaybeUninit::<Forgotten>::uninit();
        let (from, to) = ((&raw const *slot).cast::<u32>(), known.as_mut_ptr().cast::<u32>());
        for i in 0..WORDS {
            // SAFETY: both are whole and made of words. Volatile, or the compiler would use what it has just written.
            unsafe { to.add(i).write(from.add(i).read_volatile()) };
        }
        // SAFETY: all words are written.
        let known = unsafe { known.assume_init() };
        self.key = known.key;
        self.l4 = known.l4;
        let [tracked, fragment, later, ports] = known.bits.to_ne_bytes();
        (self.tracked, self.fragment) = (bit(tracked), bit(fragment));
        (self.later, self.ports) = (bit(later), bit(ports));
        let [may_cut, v4, proto, l4_info] = known.rest.to_ne_bytes();
        (self.may_cut, self.v4) = (bit(may_cut), bit(v4));
        (self.proto, self.l4_info) = (proto, l4_info);
        Some(())
    }

    /// An ICMP or ICMPv6 error (RFC 1122 section 3.2.2, RFC 4443 section 2.1).
    #[inline(always)]
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

    /// Frame length in bytes.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { (*self.skb).len }
    }

    /// Payload bytes of each segment when the frame is a GSO packet, else 0.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: a context field (kernel 5.7).
        unsafe { (*self.skb).gso_size }
    }

    /// Reads the IPv4 header and what is behind it (RFC 791).
    #[inline(always)]
    pub fn parse_v4(&mut self) -> Result<(), DropReason> {
        let ip: V4 = read(self.skb, ETH_LEN)?;
        let header = (ip.version_ihl as u32 & 0xf) * 4;
        let total = u16::from_be(ip.total_len_be) as u32;
        if ip.version_ihl >> 4 != 4 || header < 20 {
            return Err(DropReason::Malformed);
        }
        // A BIG TCP packet does not fit its own length field and has zero there (kernel 6.3).
        if (total < header || total + ETH_LEN > self.len()) && !(total == 0 && self.gso_size() > 0) {
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
        self.l4 = ETH_LEN + header;
        if fragment & 0x1fff != 0 {
            self.later = true;
            return Ok(());
        }
        if header == 20 { self.parse_l4::<true>(ETH_LEN + 20) } else { self.parse_l4::<false>(self.l4) }
    }

    /// Reads the IPv6 header, walks the extension headers and reads what is behind them (RFC 8200).
    #[inline(always)]
    pub fn parse_v6(&mut self) -> Result<(), DropReason> {
        let ip: V6 = read(self.skb, ETH_LEN)?;
        let payload = u16::from_be(ip.payload_len_be) as u32;
        if ip.version >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        // Zero: a jumbogram, as BIG TCP makes them.
        if payload + ETH_LEN + 40 > self.len() {
            return Err(DropReason::Malformed);
        }
        self.ttl = ip.hop_limit;
        self.key.src = Ip { words_be: ip.src };
        self.key.dst = Ip { words_be: ip.dst };
        self.proto = ip.next;
        self.key.proto = ip.next as u32;
        self.l4 = ETH_LEN + 40;
        if matches!(ip.next, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMPV6) {
            return self.parse_l4::<true>(ETH_LEN + 40);
        }
        self.walk_extensions(ip.next)
    }

    #[inline(always)]
    fn walk_extensions(&mut self, first: u8) -> Result<(), DropReason> {
        let mut next = first;
        let mut at = ETH_LEN + 40;
        for _ in 0..MAX_EXTENSIONS {
            match next {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => {
                    let h: [u8; 2] = load(self.skb, at)?;
                    next = h[0];
                    at += (h[1] as u32 + 1) * 8;
                }
                // Fragment (RFC 8200 section 4.5).
                44 => {
                    let h: [u8; 8] = load(self.skb, at)?;
                    next = h[0];
                    at += 8;
                    self.fragment = true;
                    self.id_be = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
                    if u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0 {
                        self.later = true;
                        self.proto = next;
                        self.key.proto = next as u32;
                        self.l4 = at;
                        return Ok(());
                    }
                }
                // Authentication header.
                51 => {
                    let h: [u8; 2] = load(self.skb, at)?;
                    next = h[0];
                    at += (h[1] as u32 + 2) * 4;
                }
                _ => break,
            }
        }
        // Behind a longer chain could be what no container may send (RFC 7113).
        if matches!(next, 0 | 43 | 44 | 51 | 60) {
            return Err(DropReason::Malformed);
        }
        self.proto = next;
        self.key.proto = next as u32;
        self.l4 = at;
        self.parse_l4::<false>(at)
    }

    /// Reads ports or echo identifier at `at`; `CONSTANT` when the compiler knows the offset.
    #[inline(always)]
    fn parse_l4<const CONSTANT: bool>(&mut self, at: u32) -> Result<(), DropReason> {
        match self.proto {
            IPPROTO_TCP => {
                let h: [u16; 7] = if CONSTANT { read(self.skb, at)? } else { load(self.skb, at)? };
                self.key.sport_be = h[0];
                self.key.dport_be = h[1];
                let offset_flags = h[6].to_ne_bytes();
                if offset_flags[0] >> 4 < 5 {
                    return Err(DropReason::Malformed);
                }
                self.l4_info = offset_flags[1];
                self.ports = true;
                self.tracked = !self.fragment;
            }
            IPPROTO_UDP => {
                let h: [u16; 4] = if CONSTANT { read(self.skb, at)? } else { load(self.skb, at)? };
                self.key.sport_be = h[0];
                self.key.dport_be = h[1];
                self.ports = true;
                self.tracked = !self.fragment;
            }
            IPPROTO_ICMP | IPPROTO_ICMPV6 => {
                let h: [u16; 4] = if CONSTANT { read(self.skb, at)? } else { load(self.skb, at)? };
                let kind = h[0].to_ne_bytes()[0];
                self.l4_info = kind;
                let echo = if self.v4 { kind == 8 || kind == 0 } else { kind == 128 || kind == 129 };
                if echo && (self.proto == IPPROTO_ICMP) == self.v4 {
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

    /// A TCP segment that opens nothing: it is nobody's business but its connection's.
    #[inline(always)]
    pub fn continues_tcp(&self) -> bool {
        self.proto == IPPROTO_TCP && !self.opens_tcp()
    }

    /// Gives a later fragment the ports of its first one, and remembers those of a first one. Without them it stays
    /// untracked.
    #[inline(always)]
    pub fn settle_fragment(&mut self) {
        if !self.fragment || !(self.ports || self.later) {
            return;
        }
        let Some(Scratch { fragment: key, .. }) = scratch() else { return };
        *key = FragmentKey {
            src: self.key.src,
            dst: self.key.dst,
            id_be: self.id_be,
            proto: self.key.proto,
            ifindex: self.link,
        };
        if self.later {
            let Some(ports) = FRAGMENTS.get_ptr(key) else { return };
            // SAFETY: a map value stays readable for the program's run.
            let ports = unsafe { &*ports };
            self.key.sport_be = ports.sport_be;
            self.key.dport_be = ports.dport_be;
        } else {
            let ports = FragmentPorts { sport_be: self.key.sport_be, dport_be: self.key.dport_be };
            // A full LRU makes room; any other failure leaves the later fragments untracked.
            let _ = FRAGMENTS.insert(&*key, &ports, 0);
        }
        self.tracked = true;
    }

    /// Whether this is a TCP segment with any of `flags`.
    #[inline(always)]
    pub fn tcp_has(&self, flags: u8) -> bool {
        self.proto == IPPROTO_TCP && self.tracked && !self.later && self.l4_info & flags != 0
    }

    /// Whether this is the first segment of a TCP connection.
    #[inline(always)]
    pub fn opens_tcp(&self) -> bool {
        self.proto == IPPROTO_TCP && !self.later && self.l4_info & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}
