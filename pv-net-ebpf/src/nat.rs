//! Source ports for translated flows.

use crate::packet::{IPPROTO_TCP, IPPROTO_UDP, Packet};
use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use pv_net_common::{
    FlowKey,
    flow::{NAT_FIRST_PORT, NAT_PORTS},
};

/// How many ports are tried for a flow: its own, then some of the range.
pub const ATTEMPTS: u32 = 16;
/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's link.
const CURRENT_NETNS: u64 = u64::MAX;
/// `BPF_TCP_LISTEN`.
const LISTENING: u32 = 10;

/// The port that attempt `n` tries, network byte order. The same flow tries the same ports in the same order: its
/// second packet finds what its first one claimed.
#[inline(always)]
pub fn candidate(key: &FlowKey, n: u32) -> u16 {
    if n == 0 {
        return key.sport_be;
    }
    let ports = (key.sport_be as u32) << 16 | key.dport_be as u32;
    let mut h = key.src.words_be[3] ^ key.dst.words_be[3].rotate_left(7) ^ ports.rotate_left(13) ^ key.dst.words_be[1];
    h = h.wrapping_add(n.wrapping_mul(0x9e37_79b9)) ^ key.src.words_be[2];
    // The finalizer of MurmurHash3.
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    (NAT_FIRST_PORT + (h % NAT_PORTS as u32) as u16).to_be()
}

/// Whether a socket of the device itself would take the replies. A listening one does not: no reply is for it.
#[inline(always)]
pub fn device_uses(packet: &Packet, reply: &FlowKey) -> bool {
    if packet.proto != IPPROTO_TCP && packet.proto != IPPROTO_UDP {
        return false;
    }
    // `struct bpf_sock_tuple`: addresses, then both ports.
    let [s0, s1] = reply.sport_be.to_ne_bytes();
    let [d0, d1] = reply.dport_be.to_ne_bytes();
    let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
    let (src, dst) = (reply.src.words_be, reply.dst.words_be);
    let mut tuple = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3], ports];
    let size = if packet.v4 {
        (tuple[0], tuple[1], tuple[2]) = (src[3], dst[3], ports);
        12
    } else {
        36
    };
    let (skb, tuple) = (packet.skb.cast(), (&raw mut tuple).cast::<bpf_sock_tuple>());
    // SAFETY: the tuple is whole for its family; a socket that was found is released.
    unsafe {
        let socket = if packet.proto == IPPROTO_TCP {
            bpf_skc_lookup_tcp(skb, tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(skb, tuple, size, CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return false;
        }
        let listens = packet.proto == IPPROTO_TCP && (*socket).state == LISTENING;
        bpf_sk_release(socket.cast());
        !listens
    }
}
