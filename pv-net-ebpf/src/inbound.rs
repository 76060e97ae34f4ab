//! What the bridge or the host's stack delivers to a container.

use crate::{
    answer,
    decide::Ask,
    flow::{self, REFUSED},
    maps::{TRANSIENT, epoch, interface, is_local},
    packet::{Packet, TCP_RST},
    verdict::{self, ACT_OK},
};
use pv_net_common::{DropReason, FlowKey, InterfaceInfo, Ip, TransientFlow};

/// A packet on its way into a container. What the stack sends or routes there is remembered, so that the answer is let
/// back.
#[inline(always)]
pub fn to_container(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else { return ACT_OK };
    let key = packet.key;
    let of_device = key.src == me.gateway4 || key.src == me.gateway6 || is_local(key.src);
    // On the pool's own link: the sender's guard has seen it. Multicast is the bridge's.
    if !of_device && (in_pool(key.src, me) || (key.dst != me.addr4 && key.dst != me.addr6) || key.src.is_unspecified())
    {
        return ACT_OK;
    }
    // A reset ends things. It may be the very answer to a segment that was refused.
    if !packet.tracked || packet.is_icmp_error() || packet.tcp_has(TCP_RST) {
        return ACT_OK;
    }
    let epoch = epoch();
    let replies = key.reversed(packet.link);
    if let Some(open) = noted(packet, &replies) {
        return again(packet, open, epoch, of_device);
    }
    let ask = Ask::of_key(&key);
    // The note of a connection may be lost; its segments open nothing.
    if let Err(reason) = if packet.continues_tcp() { ask.not_denied() } else { ask.allowed() } {
        return refused(packet, reason, of_device);
    }
    if !packet.continues_tcp() {
        flow::note_stack(&key, &replies, epoch);
    }
    ACT_OK
}

/// The note of the packet's flow, whoever spoke first. A new connection is no part of an old one.
#[inline(always)]
fn noted(packet: &Packet, replies: &FlowKey) -> Option<&'static mut TransientFlow> {
    let mut by_container = packet.key;
    by_container.ifindex = 0;
    let answers = if packet.opens_tcp() { None } else { TRANSIENT.get_ptr_mut(&by_container) };
    // SAFETY: a map value stays readable for the program's run.
    answers.or_else(|| TRANSIENT.get_ptr_mut(replies)).map(|open| unsafe { &mut *open })
}

/// A packet of a flow with a note: decided again when that is of another policy.
#[inline(always)]
fn again(packet: &Packet, open: &mut TransientFlow, epoch: u32, of_device: bool) -> i32 {
    if open.reply.epoch == epoch {
        return ACT_OK;
    }
    let Err(reason) = Ask::of_key(&open.origin).allowed() else {
        open.reply.epoch = epoch;
        return ACT_OK;
    };
    let first = open.reply.epoch != REFUSED;
    open.reply.epoch = REFUSED;
    // The container learns at once; once is enough.
    if first && answer::into_reset(packet) {
        verdict::note_drop(packet, reason);
        return ACT_OK;
    }
    refused(packet, reason, of_device)
}

/// A refused packet: the device learns at once, others are left in silence.
#[inline(always)]
fn refused(packet: &Packet, reason: DropReason, of_device: bool) -> i32 {
    if !of_device {
        return verdict::drop(packet, reason);
    }
    verdict::note_drop(packet, reason);
    answer::refused_device(packet)
}

#[inline(always)]
fn in_pool(addr: Ip, me: &InterfaceInfo) -> bool {
    if addr.is_v4() {
        return addr.words_be[3] & me.mask4_be == me.net4.words_be[3] && !me.net4.is_unspecified();
    }
    let a = addr.words_be;
    let (m, n) = (me.mask6.words_be, me.net6.words_be);
    let same = a[0] & m[0] == n[0] && a[1] & m[1] == n[1] && a[2] & m[2] == n[2] && a[3] & m[3] == n[3];
    addr.is_link_local() || (same && !me.net6.is_unspecified())
}
