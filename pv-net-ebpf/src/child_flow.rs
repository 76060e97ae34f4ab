//! Flows of macvlan interfaces: who may open one, and the notes by which replies are recognised.
//!
//! A flow has one entry in the half-open table, whatever its age, under the key of its replies with the link of the
//! container's interface. It never moves to the flow table, since nothing is rewritten or redirected here. A flow between
//! two containers has one for each interface.

use crate::{
    child_policy::{Way, may_open},
    deliver::stamp,
    flow::{self, REFUSED},
    guard,
    maps::{HALF_OPEN, child_at, device_at, epoch, interface, is_local},
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_TCP, IPPROTO_UDP, Packet, TCP_FIN, TCP_RST, TCP_SYN},
    scratch::{Scratch, scratch},
    share,
};
use pv_net_common::{
    DropReason, FlowEntry, FlowKey, HalfOpenFlow, LinkId,
    flow::{FLOW_CLOSING, FLOW_OPENING, FLOW_REPLY},
};

/// Whether the packet's flow can be told: by ports, or by addresses and protocol. ICMP other than echo has none.
#[inline(always)]
fn has_flow(packet: &Packet) -> bool {
    let others = !matches!(packet.proto, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6 | IPPROTO_IGMP);
    packet.tracked || others
}

#[inline(always)]
fn entry(key: &FlowKey) -> Option<&'static mut HalfOpenFlow> {
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    HALF_OPEN.get_ptr_mut(key).map(|open| unsafe { &mut *open })
}

/// The entry of a packet's flow, and whether the packet is one of the replies. A packet that opens a TCP connection
/// replies to nothing.
#[inline(always)]
fn known(packet: &Packet) -> Option<(&'static mut HalfOpenFlow, bool)> {
    let key = packet.key;
    if !packet.opens_tcp()
        && let Some(open) = entry(&key)
    {
        return Some((open, true));
    }
    entry(&key.reversed(key.link)).map(|open| (open, false))
}

/// Whether the flow of packets with `key`, which has the interface's link, is known and allowed.
#[inline(always)]
pub fn is_known(key: &FlowKey, way: Way) -> bool {
    let now = epoch();
    let either = entry(key).map(|open| (open, true)).or_else(|| entry(&key.reversed(key.link)).map(|o| (o, false)));
    either.is_some_and(|(open, replies)| {
        let sent = if replies { &open.reply } else { &open.forward };
        // An error is about something that was sent. What comes in is counted when it is let in.
        open.reply.epoch == now && (way == Way::Inwards || sent.packets != 0)
    })
}

/// Decides about a packet that the container sends, or that is sent to it, and keeps account of its flow.
#[inline(always)]
pub fn decide(packet: &Packet, way: Way) -> Result<(), DropReason> {
    let now = epoch();
    let link = packet.key.link;
    let followed = has_flow(packet);
    if followed && let Some((open, replies)) = known(packet) {
        still_may(open, link, if replies { way.other() } else { way })?;
        stamp(packet, if replies { &mut open.reply } else { &mut open.forward });
        flow::goes_on(packet, open, replies);
        // The receiver's entry may have been evicted, or its interface may be new.
        if !replies && way == Way::Outwards {
            note_for_peer(packet, now);
        }
        return Ok(());
    }
    let Some(Scratch { flow, .. }) = scratch() else { return Err(DropReason::Malformed) };
    flow.origin = packet.key;
    if way == Way::Inwards {
        flow.origin.link = LinkId::OUTSIDE;
    }
    // Who answers a connection that nobody has opened to it would open one in its own name.
    if way == Way::Outwards && packet.tcp_has(TCP_SYN) && !packet.opens_tcp() {
        return Err(DropReason::NoFlow);
    }
    may_open(link, way)?;
    // Nobody answers a packet to a group in the group's name, but the parent lets pass only what is noted.
    if followed && (way == Way::Outwards || is_unicast(packet)) {
        open_flow(packet, link, now);
        if way == Way::Outwards {
            note_for_peer(packet, now);
        }
    }
    Ok(())
}

/// Whether the packet has a single receiver.
#[inline(always)]
fn is_unicast(packet: &Packet) -> bool {
    interface(packet.key.link).is_some_and(|me| !guard::is_group(packet.key.dst, me))
}

/// Whether the packet goes to a group.
#[inline(always)]
pub fn is_to_group(packet: &Packet) -> bool {
    interface(packet.key.link).is_some_and(|me| guard::is_group(packet.key.dst, me))
}

/// When the packet is for a container with a macvlan interface, or for the device by its own one: has the flow known there
/// too, unless it is. This is how the receiving side knows who the sender is.
#[inline(always)]
fn note_for_peer(packet: &Packet, now: u32) {
    let Some(me) = interface(packet.key.link) else { return };
    let peer = match child_at(packet.key.dst, me.pool_id) {
        Some(peer) => Some(peer.link),
        None if is_local(packet.key.dst) => device_at(me.bridge, packet.eth.dst),
        None => None,
    };
    let Some(peer) = peer else { return };
    let Some(Scratch { flow, reply_key, .. }) = scratch() else { return };
    *reply_key = packet.key.reversed(peer);
    if HALF_OPEN.get_ptr(&*reply_key).is_some() {
        return;
    }
    flow.origin = packet.key;
    open_flow(packet, peer, now);
}

/// Enters the flow whose opener's key is in the scratch memory, for the interface `link`.
#[inline(always)]
fn open_flow(packet: &Packet, link: LinkId, now: u32) {
    let Some(Scratch { flow, reply_key, .. }) = scratch() else { return };
    let origin = flow.origin;
    *reply_key = origin.reversed(link);
    *flow = HalfOpenFlow::default();
    flow.origin = origin;
    flow.phase = if packet.tcp_has(TCP_FIN | TCP_RST) { FLOW_CLOSING } else { FLOW_OPENING };
    fill(&mut flow.forward, &origin, link, now);
    fill(&mut flow.reply, reply_key, origin.link, now);
    flow.reply.flags = FLOW_REPLY;
    stamp(packet, &mut flow.forward);
    share::take(&flow.origin, reply_key);
    // The map is an LRU: a full one evicts its oldest entry.
    let _ = HALF_OPEN.insert(&*reply_key, &*flow, 0);
}

#[inline(always)]
fn fill(entry: &mut FlowEntry, key: &FlowKey, reply_link: LinkId, now: u32) {
    entry.src = key.src;
    entry.dst = key.dst;
    entry.sport_be = key.sport_be;
    entry.dport_be = key.dport_be;
    entry.reply_link = reply_link;
    entry.epoch = now;
}

/// Whether the flow that `origin` opens is allowed, for the interface `link`.
#[inline(always)]
fn may(origin: &FlowKey, link: LinkId, way: Way) -> Result<(), DropReason> {
    let Some(Scratch { flow, .. }) = scratch() else { return Err(DropReason::Malformed) };
    flow.origin = *origin;
    may_open(link, way)
}

/// Decides about a known flow again when the policy has changed since. `way`: which way its opener's packets go.
#[inline(always)]
fn still_may(open: &mut HalfOpenFlow, link: LinkId, way: Way) -> Result<(), DropReason> {
    let now = epoch();
    if open.reply.epoch == now {
        return Ok(());
    }
    let judged = may(&open.origin, link, way);
    open.reply.epoch = if judged.is_ok() { now } else { REFUSED };
    judged
}

/// Whether the program on the interface has let the packet's flow pass, and the policy allows it. ICMP that has no flow is
/// refused: it could be from a further macvlan, in any container's name.
#[inline(always)]
pub fn is_let_pass(packet: &Packet) -> Result<(), DropReason> {
    let found = if has_flow(packet) { known(packet) } else { None };
    let Some((open, replies)) = found else { return Err(DropReason::NoFlow) };
    still_may(open, packet.key.link, if replies { Way::Inwards } else { Way::Outwards })
}
