//! What the bridge or the host's stack delivers to a container.

use crate::{
    decide::Ask,
    maps::{Scratch, TRANSIENT, interface, is_local, scratch},
    packet::Packet,
    verdict::{self, ACT_OK},
};
use pv_net_common::{InterfaceInfo, Ip, TransientFlow, flow::FLOW_STACK};

/// A packet on its way into a container. What the device itself sends is remembered, so that the answer is let back.
#[inline(always)]
pub fn to_container(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else { return ACT_OK };
    let key = packet.key;
    if key.src == me.gateway4 || key.src == me.gateway6 || is_local(key.src) {
        return from_device(packet);
    }
    // On the pool's own link: the sender's guard has seen it. Multicast is the bridge's.
    if in_pool(key.src, me) || (key.dst != me.addr4 && key.dst != me.addr6) || key.src.is_unspecified() {
        return ACT_OK;
    }
    if !packet.tracked || packet.is_icmp_error() {
        return ACT_OK;
    }
    let mut reply = key;
    reply.ifindex = 0;
    if TRANSIENT.get_ptr(&reply).is_some() {
        return ACT_OK;
    }
    let ask = Ask { src: key.src, dst: key.dst, proto: key.proto, dport_be: key.dport_be, service: false };
    match ask.allowed() {
        Ok(()) => ACT_OK,
        Err(_) if packet.continues_tcp() => ACT_OK,
        Err(reason) => verdict::drop(packet, reason),
    }
}

#[inline(always)]
fn from_device(packet: &Packet) -> i32 {
    if !packet.tracked {
        return ACT_OK;
    }
    let key = packet.key;
    let ask = Ask { src: key.src, dst: key.dst, proto: key.proto, dport_be: key.dport_be, service: false };
    let reply = key.reversed(packet.link);
    if TRANSIENT.get_ptr(&reply).is_some() {
        return ACT_OK;
    }
    if let Err(reason) = ask.allowed()
        && !packet.continues_tcp()
    {
        return verdict::drop(packet, reason);
    }
    if let Some(Scratch { flow, .. }) = scratch() {
        *flow = TransientFlow::default();
        flow.origin = key;
        flow.reply.flags = FLOW_STACK;
        // A full LRU makes room.
        let _ = TRANSIENT.insert(&reply, &*flow, 0);
    }
    ACT_OK
}

#[inline(always)]
fn in_pool(addr: Ip, me: &InterfaceInfo) -> bool {
    if addr.is_v4() {
        return addr.words_be[3] & me.mask4_be == me.net4.words_be[3] && !me.net4.is_unspecified();
    }
    let link_local = u32::from_be(addr.words_be[0]) >> 22 == 0xfe80 >> 6;
    let a = addr.words_be;
    let (m, n) = (me.mask6.words_be, me.net6.words_be);
    let same = a[0] & m[0] == n[0] && a[1] & m[1] == n[1] && a[2] & m[2] == n[2] && a[3] & m[3] == n[3];
    link_local || (same && !me.net6.is_unspecified())
}
