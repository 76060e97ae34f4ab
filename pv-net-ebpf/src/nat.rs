//! Source ports for masqueraded flows.

use crate::{
    maps::{CONFIG, NAT_OWNERS},
    packet::{IPPROTO_TCP, IPPROTO_UDP},
};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock_tuple},
    helpers::generated::{bpf_jiffies64, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use pv_net_common::{
    FlowEntry, FlowKey, NatOwner,
    flow::FLOW_NEIGHBOUR,
    nat::{self, PORTS, TRIES},
};

/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's link.
const CURRENT_NETNS: u64 = u64::MAX;
/// `BPF_TCP_LISTEN`.
const LISTENING: u32 = 10;

/// The first port of masquerade's range.
#[inline(always)]
pub fn first_port() -> u16 {
    CONFIG.get(0).map_or(nat::FIRST_PORT, |c| c.nat_first_port)
}

/// The offset in the range of the port that the flow which `key` opens tries first: the one that its container's port
/// has already, else one that it can have for all peers.
#[inline(always)]
pub fn mapping(key: &FlowKey, first: u16) -> u32 {
    let port = u32::from(u16::from_be(key.sport_be)) | u32::from(first) << 16;
    pv_mapping(key.link.number(), port, u32::from(key.dst.is_v4()), key.proto)
}

/// [`mapping`] for a port of the container behind `link`; the upper half of `ports` is the first port of the range. A
/// global function, so that the verifier checks its loop once and not with everything that each caller knows.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_mapping(link: u32, ports: u32, v4: u32, proto: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    let ticks = unsafe { bpf_jiffies64() };
    let (port, first) = (ports as u16, (ports >> 16) as u16);
    let cost = |offset| {
        let owner = NAT_OWNERS.get(nat::slot_of(v4 != 0, proto, offset))?;
        owner.cost(link, port, ticks)
    };
    let mut offset = nat::start(link, port);
    let (mut best, mut least) = (offset, u32::MAX);
    // A port that is in the range itself is kept unchanged when it is free.
    if let Some(own) = nat::offset_of(first, port)
        && let Some(cost @ ..=FREE) = cost(own)
    {
        (best, least) = (own, cost);
    }
    let mut n = 0;
    while n < TRIES && least != 0 {
        if let Some(cost) = cost(offset)
            && cost < least
        {
            (best, least) = (offset, cost);
        }
        offset = nat::next(offset);
        n += 1;
    }
    best
}

/// The highest [`NatOwner::cost`] of a port that nobody has.
const FREE: u32 = 1 << 16;

/// Who has the port at `offset` in the range.
#[inline(always)]
pub fn owner(key: &FlowKey, offset: u32) -> Option<NatOwner> {
    NAT_OWNERS.get(nat::slot(key, offset)).copied()
}

/// Gives the port at `offset` to the container that sends `key`, for all peers.
#[inline(always)]
pub fn own(key: &FlowKey, offset: u32, ticks: u64) {
    if let Some(owner) = NAT_OWNERS.get_ptr_mut(nat::slot(key, offset)) {
        // SAFETY: one word of a map value.
        unsafe { owner.write_volatile(NatOwner::new(key.link.number(), u16::from_be(key.sport_be), ticks)) };
    }
}

/// Marks a port as idle because a connection that `origin` opened and `forward` sent on is over: other containers may
/// get an idle port before one that is in use.
#[inline(always)]
pub fn release(origin: &FlowKey, forward: &FlowEntry) {
    if forward.flags & FLOW_NEIGHBOUR == 0 {
        return;
    }
    let Some(offset) = nat::offset_of(first_port(), u16::from_be(forward.sport_be)) else { return };
    let Some(owner) = NAT_OWNERS.get_ptr_mut(nat::slot(origin, offset)) else { return };
    // SAFETY: one word of a map value. If another CPU claims the port at the same instant, only the mark is lost.
    unsafe {
        let held = owner.read_volatile();
        if held.is(origin.link.number(), u16::from_be(origin.sport_be)) {
            owner.write_volatile(held.idle());
        }
    }
}

/// A program of the device binds `port`: the port becomes the device's, and no container gets it any more. Returns
/// whether the port is in the range.
#[inline(always)]
pub fn keep_for_device(proto: u32, port: u16) -> bool {
    let Some(offset) = nat::offset_of(first_port(), port) else { return false };
    if proto != IPPROTO_TCP as u32 && proto != IPPROTO_UDP as u32 {
        return false;
    }
    for v4 in [true, false] {
        if let Some(owner) = NAT_OWNERS.get_ptr_mut(nat::slot_of(v4, proto, offset)) {
            // SAFETY: one word of a map value.
            unsafe { owner.write_volatile(NatOwner::DEVICE) };
        }
    }
    true
}

/// The offset in the range that attempt number `n` tries for this peer alone. It follows from the flow's key, so that
/// the flow's second packet finds what the first one claimed.
#[inline(always)]
pub fn candidate(key: &FlowKey, n: u32) -> u32 {
    let ports = (key.sport_be as u32) << 16 | key.dport_be as u32;
    let mut h = key.src.words_be[3] ^ key.dst.words_be[3].rotate_left(7) ^ ports.rotate_left(13) ^ key.dst.words_be[1];
    h = h.wrapping_add(n.wrapping_mul(0x9e37_79b9)) ^ key.src.words_be[2];
    // The finalizer of MurmurHash3.
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    h % PORTS as u32
}

/// Whether a socket of the device would receive a packet with `key`. `listeners`: whether listening TCP sockets count.
#[inline(always)]
pub fn device_takes(skb: *mut __sk_buff, key: &FlowKey, listeners: bool) -> bool {
    let tcp = key.proto == IPPROTO_TCP as u32;
    if !tcp && key.proto != IPPROTO_UDP as u32 {
        return false;
    }
    // `struct bpf_sock_tuple`: addresses, then both ports.
    let [s0, s1] = key.sport_be.to_ne_bytes();
    let [d0, d1] = key.dport_be.to_ne_bytes();
    let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
    let (src, dst) = (key.src.words_be, key.dst.words_be);
    let mut tuple = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3], ports];
    let size = if key.src.is_v4() {
        (tuple[0], tuple[1], tuple[2]) = (src[3], dst[3], ports);
        12
    } else {
        36
    };
    let (skb, tuple) = (skb.cast(), (&raw mut tuple).cast::<bpf_sock_tuple>());
    // SAFETY: the tuple is whole for its family; a socket that was found is released.
    unsafe {
        let socket = if tcp {
            bpf_skc_lookup_tcp(skb, tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(skb, tuple, size, CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return false;
        }
        let listens = tcp && (*socket).state == LISTENING;
        bpf_sk_release(socket.cast());
        listeners || !listens
    }
}
