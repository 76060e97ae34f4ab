//! What the bridge or the host's stack delivers to a container.

use crate::{
    answer,
    decide::Ask,
    flow::{self, REFUSED},
    guard,
    maps::{TRANSIENT, epoch, hand_on, interface, is_local},
    packet::{Packet, TCP_RST},
    verdict::{self, ACT_OK},
};
use pv_net_common::{DropReason, FlowKey, InterfaceInfo, Ip, Stage, TransientFlow};

/// A packet on its way into a container.
#[inline(always)]
pub fn to_container(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else { return ACT_OK };
    let key = packet.key;
    // On the pool's own link: the sender's guard has seen it. Multicast is the bridge's.
    if !is_of_device(packet, me)
        && (in_pool(key.src, me) || (key.dst != me.addr4 && key.dst != me.addr6) || key.src.is_unspecified())
    {
        return ACT_OK;
    }
    // A reset ends things. It may be the very answer to a segment that was refused.
    if packet.is_icmp_error() || packet.tcp_has(TCP_RST) {
        return ACT_OK;
    }
    if !packet.tracked {
        return if is_link_matter(packet, me) { ACT_OK } else { hand_on(packet.skb, Stage::Inbound) };
    }
    match noted(packet, &key.reversed(packet.link)) {
        Some(open) if open.reply.epoch == epoch() => ACT_OK,
        _ => hand_on(packet.skb, Stage::Inbound),
    }
}

/// The stage for what has no note, or one of another policy: decided, and remembered, so that the answer is let back.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else { return ACT_OK };
    let key = packet.key;
    let replies = key.reversed(packet.link);
    let open = if packet.tracked { noted(packet, &replies) } else { None };
    // The note of a connection may be lost; its segments open nothing. Nor does what has no ports: who spoke first
    // cannot be told, so that the rules alone are asked.
    let goes_on = !packet.tracked || (open.is_none() && packet.continues_tcp());
    let origin = open.as_ref().map_or(key, |open| open.origin);
    // Before the rules are asked: what they say is not of a later policy than the note says.
    let epoch = epoch();
    match Ask::of_key(&origin).allowed() {
        Err(reason) if !goes_on || reason == DropReason::PolicyDenied => {
            if let Some(open) = open {
                let first = open.reply.epoch != REFUSED;
                open.reply.epoch = REFUSED;
                // The container learns at once; once is enough.
                if first && answer::into_reset(packet) {
                    verdict::note_drop(packet, reason);
                    return ACT_OK;
                }
            }
            return refused(packet, reason, is_of_device(packet, me));
        }
        _ => {}
    }
    match open {
        Some(open) => open.reply.epoch = epoch,
        None if !goes_on => flow::note_stack(&key, &replies, epoch),
        None => {}
    }
    ACT_OK
}

/// Whether an untracked packet is part of having a link, or of a packet that was decided: neighbour discovery, groups,
/// and what follows a fragment.
#[inline(always)]
fn is_link_matter(packet: &Packet, me: &InterfaceInfo) -> bool {
    let dst = packet.key.dst;
    let mine = dst == me.addr4 || dst == me.addr6 || dst == me.link_local;
    packet.later || !mine || guard::is_discovery(packet)
}

#[inline(always)]
fn is_of_device(packet: &Packet, me: &InterfaceInfo) -> bool {
    let src = packet.key.src;
    src == me.gateway4 || src == me.gateway6 || is_local(src)
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
