//! What the bridge or the host's stack delivers to a container.

use crate::{
    decide::Ask,
    flow,
    maps::{TRANSIENT, epoch, interface, is_local},
    packet::Packet,
    verdict::{self, ACT_OK},
};
use pv_net_common::{InterfaceInfo, Ip};

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
    if !packet.tracked || packet.is_icmp_error() || answers_container(packet) {
        return ACT_OK;
    }
    let ask = Ask::of_key(&key);
    match if packet.continues_tcp() { ask.not_denied() } else { ask.allowed() } {
        Ok(()) => ACT_OK,
        Err(reason) => verdict::drop(packet, reason),
    }
}

/// Whether the container spoke first.
#[inline(always)]
fn answers_container(packet: &Packet) -> bool {
    let mut key = packet.key;
    key.ifindex = 0;
    TRANSIENT.get_ptr(&key).is_some()
}

#[inline(always)]
fn from_device(packet: &Packet) -> i32 {
    if !packet.tracked || answers_container(packet) {
        return ACT_OK;
    }
    let epoch = epoch();
    let reply = packet.key.reversed(packet.link);
    if let Some(open) = TRANSIENT.get_ptr(&reply) {
        // SAFETY: a map value stays readable for the program's run.
        if unsafe { (*open).reply.epoch } == epoch {
            return ACT_OK;
        }
    }
    if let Err(reason) = Ask::of_key(&packet.key).allowed() {
        return verdict::drop(packet, reason);
    }
    flow::note_stack(&packet.key, &reply, epoch);
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
