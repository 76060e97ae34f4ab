//! Answers to packets that are not forwarded (TCP reset, ICMP or ICMPv6 error), so that the sender learns at once
//! instead of waiting for a time-out.
//!
//! The packet is overwritten with its answer and redirected out of the link that it came in on.

use crate::{
    maps::{interface, uplink},
    packet::{
        ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Packet, TCP_ACK,
        TCP_FIN, TCP_RST, TCP_SYN, load, read,
    },
    scratch::{Answer, FRAME_BYTES, Scratch, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT, count},
};
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use pv_net_common::{DropReason, Ip, Stage, Stat, csum, endpoint::MARK_CONTAINER};

/// A frame under construction. An answer is shorter than the buffer and begins at its first byte.
type Frame = [u8; FRAME_BYTES];

const HOP_LIMIT: u8 = 64;
/// Bytes of an IPv4 packet that an error quotes: header and eight more (RFC 792).
const QUOTE4: usize = 28;
/// Bytes of an IPv6 packet that an error quotes: what Linux needs to find the socket.
const QUOTE6: usize = 48;
/// The quote for IPv6 packets that are long enough: it has room for extension headers before the ports, and for a whole
/// TCP header.
const LONG_QUOTE6: usize = 88;
const V4_ERROR: usize = 14 + 20 + 8 + QUOTE4;
const V6_ERROR: usize = 14 + 40 + 8 + QUOTE6;
const V6_LONG_ERROR: usize = 14 + 40 + 8 + LONG_QUOTE6;
const V4_RESET: usize = 14 + 20 + 20;
const V6_RESET: usize = 14 + 40 + 20;

/// A TCP reset.
const RESET: Answer = error(0, 0, 0);

const fn error(kind: u8, code: u8, rest: u32) -> Answer {
    Answer { kind, code, to_device: 0, pad: 0, rest }
}

/// Stores the answer in the scratch memory and tail-calls the stage `answer`, which builds and sends it.
#[inline(always)]
fn say(packet: &Packet, v4: Answer, v6: Answer) -> i32 {
    let Some(scratch) = scratch() else { return ACT_SHOT };
    scratch.answer = if packet.v4 { v4 } else { v6 };
    tail_call(packet.skb, Stage::Answer)
}

/// Policy refuses the packet: RST to TCP, "administratively prohibited" to the rest.
#[inline(always)]
pub fn refused(packet: &Packet) -> i32 {
    if packet.proto == IPPROTO_TCP && packet.tracked && !packet.later {
        return say(packet, RESET, RESET);
    }
    say(packet, error(3, 13, 0), error(1, 1, 0))
}

/// Policy refuses a packet that the device itself sends into a container. The same answers as [`refused`], but they are
/// delivered to the device's own stack ([`Answer::to_device`]).
#[inline(always)]
pub fn refused_device(packet: &Packet) -> i32 {
    let Some(scratch) = scratch() else { return ACT_SHOT };
    scratch.answer = match (packet.proto, packet.v4) {
        (IPPROTO_TCP, _) if packet.tracked && !packet.later => RESET,
        (_, true) => error(3, 13, 0),
        (_, false) => error(1, 1, 0),
    };
    scratch.answer.to_device = 1;
    tail_call(packet.skb, Stage::Answer)
}

/// The TTL or hop limit of a routed packet ran out (RFC 792, RFC 4443 section 3.3).
#[inline(always)]
pub fn ttl_expired(packet: &Packet) -> i32 {
    verdict::note_drop(packet, DropReason::TtlExpired);
    say(packet, error(11, 0, 0), error(3, 0, 0))
}

/// The packet is larger than `mtu`, the MTU in bytes of the next link (RFC 1191, RFC 4443 section 3.2).
#[inline(always)]
pub fn too_big(packet: &Packet, mtu: u32) -> i32 {
    verdict::note_drop(packet, DropReason::TooBig);
    say(packet, error(3, 4, mtu), error(2, 0, mtu))
}

/// No route leads to the packet's destination (RFC 792 code 0, RFC 4443 section 3.1 code 0).
#[inline(always)]
pub fn no_route(packet: &Packet) -> i32 {
    unreachable(packet, DropReason::NoRoute)
}

/// The answer of [`no_route`], counted as a drop for `reason`.
#[inline(always)]
pub fn unreachable(packet: &Packet, reason: DropReason) -> i32 {
    verdict::note_drop(packet, reason);
    say(packet, error(3, 0, 0), error(1, 0, 0))
}

/// The source is a link-local address, and the packet would have to leave its link (RFC 4443 section 3.1 code 2).
#[inline(always)]
pub fn beyond_scope(packet: &Packet) -> i32 {
    verdict::note_drop(packet, DropReason::NoRoute);
    say(packet, error(3, 0, 0), error(1, 2, 0))
}

/// A TCP segment that belongs to no known connection is answered with a reset (RFC 9293 section 3.5.2).
#[inline(always)]
pub fn unknown_tcp(packet: &Packet) -> i32 {
    verdict::note_drop(packet, DropReason::NoFlow);
    say(packet, RESET, RESET)
}

/// Turns a segment of a connection into a reset to the same receiver, which accepts it because the sequence number is
/// right. `false`, with the packet unchanged, when the packet is not such a segment.
#[inline(always)]
pub fn into_reset(packet: &Packet) -> bool {
    if !packet.continues_tcp() || !packet.tracked || packet.later || packet.l4_info & TCP_RST != 0 {
        return false;
    }
    let skb = packet.skb.cast();
    let Ok(old) = load::<[u8; 2]>(packet.skb, packet.l4 + 12) else { return false };
    let new = [old[0], TCP_RST | TCP_ACK];
    let (was, is) = (u16::from_ne_bytes(old) as u64, u16::from_ne_bytes(new) as u64);
    // SAFETY: the helpers check offsets themselves; `new` is two bytes.
    unsafe {
        bpf_l4_csum_replace(skb, packet.l4 + 16, was, is, 2) == 0
            && bpf_skb_store_bytes(skb, packet.l4 + 12, new.as_ptr().cast(), 2, 0) == 0
    }
}

/// The stage `answer`: overwrites the packet with the answer in the scratch memory.
#[inline(always)]
pub fn stage(packet: &Packet) -> i32 {
    let Some(scratch) = scratch() else { return ACT_SHOT };
    let error = scratch.answer;
    if error.kind == 0 {
        return if packet.v4 { reset::<V4_RESET>(packet) } else { reset::<V6_RESET>(packet) };
    }
    icmp(packet, error)
}

/// Builds an ICMP error. None is sent about an ICMP error, a later fragment, or a packet that is too short to be quoted
/// (RFC 1122 section 3.2.2).
#[inline(always)]
fn icmp(packet: &Packet, error: Answer) -> i32 {
    let is_error = match packet.proto {
        IPPROTO_ICMP => !matches!(packet.l4_info, 0 | 8 | 13 | 14),
        IPPROTO_ICMPV6 => packet.l4_info < 128,
        _ => false,
    };
    if is_error || packet.later {
        return ACT_SHOT;
    }
    // The stack drops packets whose source is one of its own addresses, so an error to the device comes from the
    // packet's destination.
    let from = if error.to_device != 0 { Some(packet.key.dst) } else { own_address(packet) };
    let Some(from) = from else { return ACT_SHOT };
    let sent = if packet.v4 { icmp4(packet, from, error) } else { icmp6_fitting(packet, from, error) };
    sent.unwrap_or(ACT_SHOT)
}

/// The source address of an answer to the packet's sender: the pool's gateway for a container, the uplink's own address
/// for the outside.
#[inline(always)]
fn own_address(packet: &Packet) -> Option<Ip> {
    let (v4, v6) = if interface(packet.id()).is_none() {
        let up = uplink(packet.link)?;
        (up.addr4, up.addr6)
    } else {
        let me = interface(packet.id())?;
        (me.gateway4, me.gateway6)
    };
    // In a pool without IPv6 containers still have link-local addresses: the gateway answers from its own.
    if !packet.v4 && v6.is_unspecified() {
        return interface(packet.id()).map(|me| Ip::link_local(me.gateway_mac));
    }
    Some(if packet.v4 { v4 } else { v6 })
}

#[inline(always)]
fn eth(packet: &Packet, frame: &mut Frame, proto: u16) {
    frame[..6].copy_from_slice(&packet.eth.src);
    frame[6..12].copy_from_slice(&packet.eth.dst);
    frame[12..14].copy_from_slice(&proto.to_be_bytes());
}

#[inline(always)]
fn put_word(frame: &mut Frame, at: usize, word: u32) {
    frame[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}

#[inline(always)]
fn put_ip(frame: &mut Frame, at: usize, words: [u32; 4]) {
    put_word(frame, at, words[0]);
    put_word(frame, at + 4, words[1]);
    put_word(frame, at + 8, words[2]);
    put_word(frame, at + 12, words[3]);
}

/// Writes an IPv4 header without options at offset 14, with its checksum.
#[inline(always)]
fn header4<const N: usize>(frame: &mut Frame, proto: u8, src: u32, dst: u32) {
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((N - 14) as u16).to_be_bytes());
    frame[22] = HOP_LIMIT;
    frame[23] = proto;
    put_word(frame, 26, src);
    put_word(frame, 30, dst);
    let sum = 0x4500_u32 + (N as u32 - 14) + ((HOP_LIMIT as u32) << 8 | proto as u32) + halves(src) + halves(dst);
    let check = !csum::fold(sum);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
}

/// The sum of both 16-bit halves of an address word, in host order.
#[inline(always)]
fn halves(word_be: u32) -> u32 {
    let word = u32::from_be(word_be);
    (word >> 16) + (word & 0xffff)
}

#[inline(always)]
fn header6<const N: usize>(frame: &mut Frame, proto: u8, src: [u32; 4], dst: [u32; 4]) {
    frame[14] = 0x60;
    frame[18..20].copy_from_slice(&((N - 54) as u16).to_be_bytes());
    frame[20] = proto;
    frame[21] = HOP_LIMIT;
    put_ip(frame, 22, src);
    put_ip(frame, 38, dst);
}

/// Checksum of `frame[from..N]` on top of `seed`, as it is written into the packet (RFC 1071).
#[inline(always)]
fn checksum<const N: usize>(frame: &mut Frame, from: usize, seed: u32) -> [u8; 2] {
    // SAFETY: `from` is a constant below N, and both and their difference are multiples of four (asserted below).
    let sum = unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, frame.as_mut_ptr().add(from).cast(), (N - from) as u32, seed)
    };
    (!csum::fold(sum as u32)).to_ne_bytes()
}

const _: () = assert!(
    (V4_ERROR - 34).is_multiple_of(4) && (V6_ERROR - 54).is_multiple_of(4) && (V6_LONG_ERROR - 54).is_multiple_of(4)
);

/// The length and protocol words of a pseudo-header, added up in network order.
#[inline(always)]
fn pseudo(len: usize, proto: u8) -> u32 {
    (len as u16).to_be() as u32 + (proto as u16).to_be() as u32
}

#[inline(always)]
fn sum_ip(words: [u32; 4]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < 4 {
        sum += (words[i] >> 16) + (words[i] & 0xffff);
        i += 1;
    }
    sum
}

/// This CPU's frame buffer, zeroed.
#[inline(always)]
fn clean_frame() -> Result<&'static mut Frame, DropReason> {
    let Some(Scratch { frame, .. }) = scratch() else { return Err(DropReason::Malformed) };
    *frame = [0; FRAME_BYTES];
    Ok(frame)
}

/// Copies the first `N` bytes of the IP packet to `frame[at..]`.
#[inline(always)]
fn quote<const N: usize>(packet: &Packet, frame: &mut Frame, at: usize) -> Result<(), DropReason> {
    // SAFETY: `at + N` is at most the frame's length (asserted below); the helper writes N bytes or fails.
    let failed = unsafe { bpf_skb_load_bytes(packet.skb.cast(), ETH_LEN, frame.as_mut_ptr().add(at).cast(), N as u32) };
    if failed != 0 { Err(DropReason::Malformed) } else { Ok(()) }
}

const _: () = assert!(V4_ERROR < V6_LONG_ERROR && V6_ERROR < V6_LONG_ERROR && V6_LONG_ERROR + 2 <= FRAME_BYTES);

#[inline(always)]
fn icmp4(packet: &Packet, from: Ip, error: Answer) -> Result<i32, DropReason> {
    let frame = clean_frame()?;
    quote::<QUOTE4>(packet, frame, 42)?;
    eth(packet, frame, ETH_P_IP);
    header4::<V4_ERROR>(frame, IPPROTO_ICMP, from.words_be[3], packet.key.src.words_be[3]);
    frame[34] = error.kind;
    frame[35] = error.code;
    put_word(frame, 38, error.rest.to_be());
    let check = checksum::<V4_ERROR>(frame, 34, 0);
    frame[36..38].copy_from_slice(&check);
    Ok(send_back::<V4_ERROR>(packet, frame, 0))
}

#[inline(always)]
fn icmp6_fitting(packet: &Packet, from: Ip, error: Answer) -> Result<i32, DropReason> {
    if packet.len() as usize >= 14 + LONG_QUOTE6 {
        return icmp6::<LONG_QUOTE6, V6_LONG_ERROR>(packet, from, error);
    }
    icmp6::<QUOTE6, V6_ERROR>(packet, from, error)
}

#[inline(always)]
fn icmp6<const QUOTE: usize, const N: usize>(packet: &Packet, from: Ip, error: Answer) -> Result<i32, DropReason> {
    let frame = clean_frame()?;
    quote::<QUOTE>(packet, frame, 62)?;
    let (src, dst) = (from.words_be, packet.key.src.words_be);
    eth(packet, frame, ETH_P_IPV6);
    header6::<N>(frame, IPPROTO_ICMPV6, src, dst);
    frame[54] = error.kind;
    frame[55] = error.code;
    put_word(frame, 58, error.rest.to_be());
    let seed = pseudo(N - 54, IPPROTO_ICMPV6) + sum_ip(src) + sum_ip(dst);
    let check = checksum::<N>(frame, 54, seed);
    frame[56..58].copy_from_slice(&check);
    Ok(send_back::<N>(packet, frame, seed))
}

/// Answers a segment with an RST that its sender accepts (RFC 9293 section 3.5.2, group 1).
#[inline(always)]
fn reset<const N: usize>(packet: &Packet) -> i32 {
    let Ok(tcp) = load::<[u8; 14]>(packet.skb, packet.l4) else { return ACT_SHOT };
    let flags = tcp[13];
    if flags & TCP_RST != 0 {
        return ACT_SHOT;
    }
    let Ok(frame) = clean_frame() else { return ACT_SHOT };
    let at = N - 20;
    let (src, dst) = (packet.key.dst.words_be, packet.key.src.words_be);
    if packet.v4 {
        eth(packet, frame, ETH_P_IP);
        header4::<N>(frame, IPPROTO_TCP, src[3], dst[3]);
    } else {
        eth(packet, frame, ETH_P_IPV6);
        header6::<N>(frame, IPPROTO_TCP, src, dst);
    }
    frame[at..at + 2].copy_from_slice(&tcp[2..4]);
    frame[at + 2..at + 4].copy_from_slice(&tcp[..2]);
    if flags & TCP_ACK != 0 {
        frame[at + 4..at + 8].copy_from_slice(&tcp[8..12]);
        frame[at + 13] = TCP_RST;
    } else {
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let data = (end(packet).wrapping_sub(packet.l4)).wrapping_sub((tcp[12] >> 4) as u32 * 4);
        let ack = seq.wrapping_add(data) + u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
        frame[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
        frame[at + 13] = TCP_RST | TCP_ACK;
    }
    frame[at + 12] = 5 << 4;
    let addresses = if packet.v4 {
        (src[3] >> 16) + (src[3] & 0xffff) + (dst[3] >> 16) + (dst[3] & 0xffff)
    } else {
        sum_ip(src) + sum_ip(dst)
    };
    let seed = pseudo(20, IPPROTO_TCP) + addresses;
    let check = checksum::<N>(frame, at, seed);
    frame[at + 16..at + 18].copy_from_slice(&check);
    send_back::<N>(packet, frame, seed)
}

/// Offset of the IP packet's end in the frame. What follows is Ethernet padding.
#[inline(always)]
fn end(packet: &Packet) -> u32 {
    let (at, header) = if packet.v4 { (ETH_LEN + 2, 0) } else { (ETH_LEN + 4, 40) };
    match read::<u16>(packet.skb, at).map(u16::from_be) {
        Ok(length) if length > 0 => ETH_LEN + header + length as u32,
        // A length of zero is BIG TCP, whose frames have no padding.
        _ => packet.len(),
    }
}

/// The offset of the packet's checksum field, if the checksum is left for a network card to complete
/// (`CHECKSUM_PARTIAL`): packets of local sockets, and segments that GRO joined. No helper reports this state, but the
/// kernel refuses to cut such a packet before the end of its checksum field (`__bpf_skb_min_len`), so a cut that fails
/// tells it.
#[inline(always)]
fn left_to_card(packet: &Packet) -> Option<u32> {
    let at = packet.l4
        + match packet.proto {
            IPPROTO_TCP => 16,
            IPPROTO_UDP => 6,
            _ => return None,
        };
    // SAFETY: the helper checks the length itself.
    let failed = unsafe { bpf_skb_change_tail(packet.skb.cast(), at + 1, 0) };
    if failed != 0 { Some(at) } else { None }
}

/// Makes the answer's checksum right whether or not a network card completes it. The card does what the replaced packet
/// asked for: it adds up everything from that packet's upper-layer header on and writes the complement at `at`. Returns
/// by how many bytes the frame grows.
///
/// In a reset `at` is the checksum field; it gets the pseudo-header's sum, which is what the card expects there. In an
/// ICMP error another field is at `at`. Two bytes are appended behind the IP packet, which no receiver reads; they are
/// chosen so that the card writes the value that is there already.
#[inline(always)]
fn leave_to_card<const N: usize>(packet: &Packet, frame: &mut Frame, at: u32, seed: u32) -> u32 {
    let at = match (packet.v4, at) {
        (true, 40) => 40,
        (true, 50) => 50,
        (false, 60) => 60,
        (false, 70) => 70,
        // The replaced packet had IP options or extension headers, so `at` fits no field of the answer. Without a card
        // in between the answer is right.
        _ => return 0,
    };
    if N == V4_RESET || N == V6_RESET {
        frame[at..at + 2].copy_from_slice(&csum::fold(seed).to_ne_bytes());
        return 0;
    }
    let stands = u16::from_ne_bytes([frame[at], frame[at + 1]]);
    let rest = csum::fold((!stands) as u32 + csum::fold(seed) as u32);
    frame[N..N + 2].copy_from_slice(&rest.to_ne_bytes());
    2
}

/// Turns the packet into the first `N` bytes of `frame` and redirects it out of the link that it came in on. An answer
/// for the device enters by the pool's bridge instead, where no source guard checks it. `seed` is the sum of the
/// answer's pseudo-header, 0 for ICMP over IPv4, which has none.
#[inline(always)]
fn send_back<const N: usize>(packet: &Packet, frame: &mut Frame, seed: u32) -> i32 {
    let skb = packet.skb.cast();
    let length = N as u32 + left_to_card(packet).map_or(0, |at| leave_to_card::<N>(packet, frame, at, seed));
    // SAFETY: the helpers check offsets and lengths themselves.
    unsafe {
        if bpf_skb_change_tail(skb, length, 0) != 0
            || bpf_skb_store_bytes(skb, 0, frame.as_ptr().cast(), length, 0) != 0
        {
            return ACT_SHOT;
        }
        count(Stat::Answered);
        match (scratch(), interface(packet.id())) {
            (Some(scratch), Some(me)) if scratch.answer.to_device != 0 => {
                packet.set_mark(MARK_CONTAINER);
                bpf_redirect(me.bridge, BPF_F_INGRESS as u64) as i32
            }
            _ => bpf_redirect(packet.link, 0) as i32,
        }
    }
}
