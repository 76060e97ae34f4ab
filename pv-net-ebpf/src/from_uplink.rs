//! What comes in by an uplink: replies to masqueraded flows, packets to published ports, and routed packets.

use crate::{
    answer, budget,
    denied::denied,
    flow,
    guard::{is_discovery, is_for_dhcp_client, is_unasked, same_mac, spoken_for},
    known::known,
    maps::{FLOWS, endpoint, epoch, is_local, is_of_device, is_reached_by_parent, network, uplink},
    nat,
    open::plan_of,
    packet::{IPPROTO_TCP, Kind, Packet},
    policy_input::PolicyInput,
    port_map::{self, Target},
    scratch::{Plan, Scratch, scratch},
    tail_call::tail_call,
    to_uplink::is_resolved,
    verdict::{self, ACT_OK, ACT_SHOT},
};
use pv_net_common::{
    DropReason, EndpointInfo, FlowEntry, HalfOpenFlow, Ip, LinkId, Stage,
    endpoint::UPLINK_BORROWED,
    flow::{FLOW_ROUTED, FLOW_UPLINK},
};

/// Entry point for an IP packet from an uplink. What is not for a container goes on to the device's stack unchanged.
#[inline(always)]
pub fn entry(packet: &mut Packet) -> i32 {
    packet.key.link = LinkId::OUTSIDE;
    packet.settle_fragment();
    let epoch = epoch();
    if packet.tracked
        && let Some(entry) = FLOWS.get_ptr_mut(&packet.key)
    {
        // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
        let entry = unsafe { &mut *entry };
        if entry.epoch == epoch {
            // The source MAC has changed: either another router has taken over, or the packet is forged. The stage asks
            // the kernel's neighbour table.
            if entry.from_mac != [0; 6] && !same_mac(entry.from_mac, packet.eth.src) {
                return tail_call(packet.skb, Stage::Route);
            }
            return known(packet, entry);
        }
    }
    if let Err(reason) = judge_source(packet) {
        return verdict::drop(packet, reason);
    }
    let dst = packet.key.dst;
    if endpoint(dst).is_none() && !is_local(dst) && network(dst).is_none() {
        // The stack may take the packet for the device: as a broadcast, also in a frame to the device alone, or by an address
        // that the programs do not know.
        if is_reached_by_parent(packet.key.src) {
            return verdict::drop(packet, DropReason::ForgedSource);
        }
        return ACT_OK;
    }
    tail_call(packet.skb, Stage::FromUplink)
}

/// A frame from an uplink that is not IP.
#[inline(always)]
pub fn unread(packet: &Packet, kind: Kind) -> i32 {
    match kind {
        Kind::PriorityTag => tail_call(packet.skb, Stage::Untag),
        Kind::Unreadable => verdict::drop(packet, DropReason::Malformed),
        // ARP and other non-IP frames are for the device's stack; frames of a VLAN are for the link of that VLAN.
        _ => ACT_OK,
    }
}

/// Drops packets from outside whose source is an address of the device or of a pool: a claimed address gives no rights.
/// Loopback addresses must not appear on a wire (RFC 1122 section 3.2.1.3).
#[inline(always)]
fn judge_source(packet: &Packet) -> Result<(), DropReason> {
    let (src, dst) = (packet.key.src, packet.key.dst);
    if src.is_loopback() || dst.is_loopback() {
        return Err(DropReason::Martian);
    }
    // Exception: when the device is about to take an address that another host has, that host says so to the group,
    // with that very source (RFC 4862 section 5.4.4).
    let defends = is_discovery(packet) && dst.is_multicast() && spoken_for(packet) == Some(src);
    if is_of_device(src) && !defends || network(src).is_some() { Err(DropReason::ForgedSource) } else { Ok(()) }
}

/// Whether `src` is a source to which no answer can be routed from beyond the link.
#[inline(always)]
fn is_unanswerable(src: Ip, dst: Ip) -> bool {
    let near = src.is_link_scoped() && !(src.is_v4() && dst.is_link_scoped());
    near || src.is_multicast() || src.is_limited_broadcast() || src.is_nobody()
}

/// The stage for packets of which the flow table knows nothing.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    if packet.mark_outside().is_none() {
        return ACT_SHOT;
    }
    packet.settle_fragment();
    let epoch = epoch();
    if let Some(stage) = flow::stage_of(packet) {
        return tail_call(packet.skb, stage);
    }
    let key = packet.key;
    // By its own link the container is reached, and so the device would believe the address.
    if is_local(key.dst) && is_reached_by_parent(key.src) {
        return verdict::drop(packet, DropReason::ForgedSource);
    }
    if packet.is_icmp_error() && (is_local(key.dst) || endpoint(key.dst).is_some()) {
        return tail_call(packet.skb, Stage::Icmp);
    }
    if let Some(target) = endpoint(key.dst) {
        if packet.is_lost() {
            return verdict::drop(packet, DropReason::FragmentLost);
        }
        let to = Target { addr: key.dst, port_be: key.dport_be };
        return inwards(packet, target, &to, epoch);
    }
    if packet.tracked
        && is_local(key.dst)
        && let Some(to) = port_map::of(&key)
        && let Some(target) = endpoint(to.addr)
    {
        // Not answered with an ICMP error either.
        if is_unanswerable(key.src, key.dst) {
            return verdict::drop(packet, DropReason::Martian);
        }
        let goes_on = packet.proto == IPPROTO_TCP && !packet.later && !packet.opens_tcp();
        if goes_on && flow::is_claimed(&key, target, &to) {
            return inwards(packet, target, &to, epoch);
        }
        // A socket of the device had this port before it was published, and keeps its connections.
        if !packet.opens_tcp() && nat::device_takes(packet.skb, &key, false) {
            return ACT_OK;
        }
        return if goes_on { answer::unknown_tcp(packet) } else { inwards(packet, target, &to, epoch) };
    }
    match network(key.dst) {
        Some(bridge) if !is_local(key.dst) => to_nobody(packet, bridge),
        _ => ACT_OK,
    }
}

/// A packet to an address of a pool that no container has. On a borrowed bridge another host may have the address, and
/// the device routes to it; but each sender may make the device resolve only so many unknown neighbours.
#[inline(always)]
fn to_nobody(packet: &Packet, bridge: u32) -> i32 {
    let Some(up) = uplink(bridge) else { return verdict::drop(packet, DropReason::Unpublished) };
    if up.flags & UPLINK_BORROWED == 0 {
        return verdict::drop(packet, DropReason::Unpublished);
    }
    let Some(Scratch { fib, .. }) = scratch() else { return ACT_SHOT };
    if !is_resolved(packet, packet.link, fib) && !budget::neighbour_from(packet.key.src) {
        return verdict::drop(packet, DropReason::NeighbourLimit);
    }
    ACT_OK
}

/// Decides about a new flow into a container.
#[inline(always)]
fn inwards(packet: &mut Packet, target: &EndpointInfo, to: &Target, epoch: u32) -> i32 {
    let key = packet.key;
    if is_unanswerable(key.src, key.dst) {
        return verdict::drop(packet, DropReason::Martian);
    }
    // Only the pool's own DHCP server may answer clients, and that is not outside.
    if is_for_dhcp_client(packet, to.port_be) {
        return verdict::drop(packet, DropReason::RogueDhcp);
    }
    if is_unasked(packet) {
        return verdict::drop(packet, DropReason::ForgedIcmp);
    }
    if let Err(reason) = PolicyInput::of_target(&key, to).may_come_in(target.into()) {
        return denied(packet, reason);
    }
    let Some(up) = uplink(packet.link) else { return ACT_OK };
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    *flow = HalfOpenFlow::default();
    flow.forward = FlowEntry {
        ifindex: target.link.number(),
        epoch,
        from_mac: packet.eth.src,
        src_mac: target.gateway_mac,
        dst_mac: target.mac,
        flags: FLOW_ROUTED,
        mtu: target.mtu,
        ..FlowEntry::default()
    };
    // Replies leave by the uplink that the flow came in on.
    flow.reply = FlowEntry {
        ifindex: packet.link,
        epoch,
        from_mac: target.mac,
        src_mac: up.mac,
        dst_mac: packet.eth.src,
        flags: FLOW_ROUTED | FLOW_UPLINK,
        mtu: up.mtu,
        ..FlowEntry::default()
    };
    *plan = Plan { dport_be: to.port_be, ..plan_of(packet, key.src, to.addr, target.link) };
    tail_call(packet.skb, Stage::Open)
}
