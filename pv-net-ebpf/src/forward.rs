//! What a container sends: by the flow table, else by the whole decision.

use crate::{
    answer, claim,
    decide::Ask,
    deliver::{deliver, stamp},
    flow::{self, REFUSED},
    guard::{self, same_mac},
    maps::{
        FLOWS, Plan, Scratch, TRANSIENT, ToStack, endpoint, endpoint_at, epoch, hand_on, interface, is_local,
        routes_changed_since, scratch,
    },
    nat,
    packet::Packet,
    service::{self, Target},
    share,
    stack::{by_stack, to_stack},
    verdict::{self, ACT_OK, ACT_SHOT, count},
};
use pv_net_common::{
    DropReason, EndpointInfo, FlowEntry, InterfaceInfo, Ip, Stage, Stat, TransientFlow,
    flow::{FLOW_ROUTED, FLOW_STACK},
};

/// A packet of a known flow, decided under the policy in force.
#[inline(always)]
pub fn known(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    count(Stat::FastPath);
    packet.admit_fragments();
    let done = deliver(packet, entry);
    if flow::ends(packet, entry) {
        flow::close(packet, entry);
    }
    done
}

/// The stage for packets of opening and closing flows.
#[inline(always)]
pub fn again(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A flow that ended a moment ago: its next packet is decided anew.
    transient_reply(packet, epoch()).unwrap_or(ACT_SHOT)
}

/// The stage for flows that were decided under another policy: asked again, for both directions.
#[inline(always)]
pub fn ask_again(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A flow that ended a moment ago: its next packet is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&packet.key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    let entry = unsafe { &mut *entry };
    // Before the rules are asked: what they say is not of a later policy than the entry says.
    let epoch = epoch();
    // In the scratch memory: kernels before 6.8 count this stage's stack to the last byte.
    let Some(Scratch { ask, .. }) = scratch() else { return ACT_SHOT };
    *ask = Ask::of_entry(&packet.key, entry);
    if let Err(reason) = ask.allowed() {
        // The one who sends from outside is left in silence, so it is the container that learns by this segment.
        let from_outside = packet.key.ifindex == 0;
        if !from_outside || !answer::into_reset(packet) {
            flow::refuse(packet, entry);
            return denied(packet, reason);
        }
        verdict::note_drop(packet, reason);
        let done = deliver(packet, entry);
        flow::refuse(packet, entry);
        return done;
    }
    let next = if routes_changed_since(entry.epoch) { Stage::Route } else { Stage::Known };
    entry.epoch = epoch;
    hand_on(packet.skb, next)
}

/// The stage for packets that the policy has allowed again.
#[inline(always)]
pub fn allowed_again(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A copy, as in `from_container`.
    let key = packet.key;
    // A flow that ended a moment ago: its next packet is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    known(packet, unsafe { &mut *entry })
}

/// A refused packet: a container learns at once, outside is left in silence.
#[inline(always)]
pub fn denied(packet: &Packet, reason: DropReason) -> i32 {
    if packet.key.ifindex == 0 {
        return verdict::drop(packet, reason);
    }
    verdict::note_drop(packet, reason);
    answer::refused(packet)
}

/// A packet from a container.
#[inline(always)]
pub fn from_container(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    // A copy: a packet whose key's address is taken is kept in memory whole, field by field.
    let key = packet.key;
    if packet.tracked
        && let Some(entry) = FLOWS.get_ptr_mut(&key)
    {
        // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
        let entry = unsafe { &mut *entry };
        // The addresses were checked when the entry was made and are part of its key: the MAC is what is left.
        if entry.epoch == epoch && same_mac(entry.from_mac, packet.eth.src) {
            return known(packet, entry);
        }
    }
    hand_on(packet.skb, Stage::Container)
}

/// The stage for what the flow table does not know.
#[inline(always)]
pub fn slow(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let guarded =
        guard::mac(packet, me).and_then(|()| if packet.v4 { guard::ipv4(packet, me) } else { guard::ipv6(packet, me) });
    if let Err(reason) = guarded {
        return verdict::drop(packet, reason);
    }
    if packet.is_lost() {
        return verdict::drop(packet, DropReason::FragmentLost);
    }
    let dst = packet.key.dst;
    if dst.is_loopback() || dst.is_nobody() {
        return verdict::drop(packet, DropReason::Martian);
    }
    if let Some(stage) = flow::stage_of(packet) {
        return hand_on(packet.skb, stage);
    }
    if packet.is_icmp_error() {
        return hand_on(packet.skb, Stage::Icmp);
    }
    let stays = dst.is_link_local() || guard::is_group(dst, me) || endpoint(dst).is_some() || is_local(dst);
    hand_on(packet.skb, if stays { Stage::Inside } else { Stage::Outside })
}

/// The stage for what stays on the device.
#[inline(always)]
pub fn inside(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    let Some(me) = interface(packet.link) else { return ACT_SHOT };
    let dst = packet.key.dst;
    if guard::is_group(dst, me) {
        return hand_on(packet.skb, Stage::Stack);
    }
    let (target, to) = match endpoint_at(dst, packet.link) {
        Some(target) if target.ifindex == packet.link => return to_stack(packet),
        // As ARP is: rules are about what the link carries, not about the link.
        Some(target) if target.pool_id == me.pool_id && guard::is_neighbour(packet) => return to_stack(packet),
        Some(target) => (target, Target { addr: dst, port_be: packet.key.dport_be }),
        None => match published(packet) {
            Some(found) => found,
            None => return to_device(packet, me),
        },
    };
    to_container(packet, me, target, &to, epoch)
}

/// A packet that answers an opening or closing flow: the flow is established by it.
#[inline(always)]
fn transient_reply(packet: &Packet, epoch: u32) -> Option<i32> {
    // SAFETY: a map value stays readable for the program's run.
    let open = TRANSIENT.get_ptr_mut(&packet.key).map(|p| unsafe { &mut *p })?;
    let stack = open.reply.flags & FLOW_STACK != 0;
    if open.reply.epoch != epoch {
        let ask = if stack { Ask::of_note(open) } else { Ask::of_entry(&packet.key, &open.reply) };
        if let Err(reason) = ask.allowed() {
            // It stays, so that what follows is known for a reply, and is refused with it.
            open.reply.epoch = REFUSED;
            return Some(denied(packet, reason));
        }
        open.reply.epoch = epoch;
        open.forward.epoch = epoch;
    }
    if stack {
        return Some(if packet.key.ifindex == 0 { ACT_OK } else { to_stack(packet) });
    }
    packet.admit_fragments();
    count(Stat::SlowPath);
    let goes_on = flow::goes_on(packet, open, true);
    // With this packet counted: an error may be about it.
    let done = deliver(packet, &mut open.reply);
    if goes_on {
        flow::establish(open);
    }
    Some(done)
}

/// A plan with these addresses and the packet's own port.
#[inline(always)]
pub fn plan_of(packet: &Packet, src: Ip, dst: Ip, reply_link: u32) -> Plan {
    let key = packet.key;
    let first_port = nat::first_port();
    let dport_be = key.dport_be;
    Plan { src, dst, reply_link, masquerade: 0, offset: 0, first_port, claimed: 0, link: key.ifindex, dport_be, pad: 0 }
}

/// To another container, or back to the sender by a published port of its own.
#[inline(always)]
fn to_container(packet: &mut Packet, me: &InterfaceInfo, target: &EndpointInfo, to: &Target, epoch: u32) -> i32 {
    let key = packet.key;
    let service = to.addr != key.dst;
    if key.src.is_link_local() && target.pool_id != me.pool_id {
        return answer::beyond_scope(packet);
    }
    if let Err(reason) = Ask::of_target(&key, to).allowed() {
        flow::forget(&key);
        return denied(packet, reason);
    }
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    let routed = if service || target.pool_id != me.pool_id { FLOW_ROUTED } else { 0 };
    *flow = TransientFlow::default();
    flow.forward = FlowEntry {
        ifindex: target.ifindex,
        epoch,
        from_mac: me.mac,
        src_mac: target.gateway_mac,
        dst_mac: target.mac,
        flags: routed,
        mtu: target.mtu,
        ..FlowEntry::default()
    };
    flow.reply = FlowEntry {
        ifindex: packet.link,
        epoch,
        from_mac: target.mac,
        src_mac: me.gateway_mac,
        dst_mac: me.mac,
        flags: routed,
        mtu: me.mtu,
        ..FlowEntry::default()
    };
    // A container that reaches itself would take its own address for a forgery: it meets the gateway's.
    let src = match target.ifindex == packet.link {
        true if packet.v4 => me.gateway4,
        true => me.gateway6,
        false => key.src,
    };
    *plan = Plan { dport_be: to.port_be, ..plan_of(packet, src, to.addr, target.ifindex) };
    hand_on(packet.skb, Stage::Open)
}

/// The stage for first packets: claims the flow.
#[inline(always)]
pub fn open(packet: &mut Packet) -> i32 {
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    packet.key.ifindex = plan.link;
    packet.settle_fragment();
    count(Stat::SlowPath);
    if packet.tracked {
        // Before it is entered: what is delivered is a copy.
        stamp(packet, &mut flow.forward);
        match claim::claim(packet, flow, plan) {
            Ok(Some(open)) => flow::again(packet, open),
            Ok(None) => plan.claimed = 1,
            Err(DropReason::NoFlow) => return answer::unknown_tcp(packet),
            Err(reason) => return verdict::drop(packet, reason),
        }
    } else if plan.src != packet.key.src || plan.dst != packet.key.dst {
        // Without ports there is nothing to tell flows apart by, but addresses that stay need no flow.
        let reason = if packet.later { DropReason::FragmentLost } else { DropReason::Unsupported };
        return verdict::drop(packet, reason);
    }
    // The verifier would go through the delivery once for each way out of the claim's loop.
    hand_on(packet.skb, Stage::Send)
}

/// The stage for first packets whose flow is claimed: sends them on.
#[inline(always)]
pub fn send(packet: &mut Packet) -> i32 {
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    packet.key.ifindex = plan.link;
    packet.settle_fragment();
    packet.admit_fragments();
    if plan.claimed != 0 {
        share::take(&packet.key, &flow.forward.opposite_key(packet.key.proto));
    }
    deliver(packet, &mut flow.forward)
}

/// Who serves a published port of the device.
#[inline(always)]
fn published(packet: &Packet) -> Option<(&'static EndpointInfo, Target)> {
    if !packet.tracked || !is_local(packet.key.dst) {
        return None;
    }
    let to = service::of(&packet.key)?;
    Some((endpoint(to.addr)?, to))
}

/// To the device itself, or to a link-local address that no container has, and somebody else at the bridge may have.
#[inline(always)]
fn to_device(packet: &Packet, me: &InterfaceInfo) -> i32 {
    // Neighbour discovery is part of having a link.
    if !packet.v4 && guard::is_discovery(packet) {
        return to_stack(packet);
    }
    // The bridge looks at the MAC alone.
    let here = same_mac(packet.eth.dst, me.gateway_mac) || packet.eth.dst[0] & 1 != 0;
    match (is_local(packet.key.dst), here) {
        (true, true) => by_stack(packet, ToStack::default()),
        // It would be led away under the device's name.
        (true, false) => verdict::drop(packet, DropReason::NotAddressed),
        // A link-local address that is new, or the anycast one of a router (RFC 4291 section 2.6.1).
        (false, true) => by_stack(packet, ToStack { device: 1, ..ToStack::default() }),
        (false, false) => by_stack(packet, ToStack { elsewhere: 1, ..ToStack::default() }),
    }
}
