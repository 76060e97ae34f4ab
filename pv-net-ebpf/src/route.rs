//! The way out of a known flow, looked up again: after a change of routes or uplinks, and when a packet of the flow's
//! peer comes from another MAC. Where it leads is for the kernel's routes and neighbours to say, never for a packet.

use crate::{
    answer, flow,
    maps::{FLOWS, interface, uplink},
    packet::Packet,
    scratch::{Scratch, scratch},
    tail_call::tail_call,
    to_uplink::{Route, look_up_route, source},
    verdict::ACT_SHOT,
};
use aya_ebpf::bindings::bpf_fib_lookup;
use pv_net_common::{
    FlowEntry, FlowKey, InterfaceInfo, Ip, Stage, UplinkInfo,
    endpoint::{UPLINK_NO_CARRIER, UPLINK_POOL},
    flow::{FLOW_NAT, FLOW_NEIGHBOUR, FLOW_REPLY, FLOW_UPLINK},
};

/// The stage: the flow's way out is right afterwards, or the flow is gone.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let sender = interface(packet.link);
    if sender.is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A copy, as in `from_container`.
    let key = packet.key;
    // A flow that ended a moment ago: its next packet is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    let entry = unsafe { &mut *entry };
    let Some(Scratch { fib, .. }) = scratch() else { return ACT_SHOT };
    let Some(me) = sender else {
        follow_peer(packet, entry, fib);
        return tail_call(packet.skb, Stage::Known);
    };
    if entry.flags & (FLOW_NEIGHBOUR | FLOW_UPLINK) == 0 || leads_on(packet, &key, me, entry, fib) {
        return tail_call(packet.skb, Stage::Known);
    }
    // What the far end knows of it is another address now.
    let lost = entry.flags & FLOW_NAT != 0 && packet.continues_tcp() && !packet.later;
    flow::forget(&key);
    if lost { answer::unknown_tcp(packet) } else { tail_call(packet.skb, Stage::FromContainer) }
}

/// Brings `entry` to where the kernel's routes lead; `false` where the flow cannot go.
#[inline(always)]
fn leads_on(
    packet: &Packet,
    key: &FlowKey,
    me: &InterfaceInfo,
    entry: &mut FlowEntry,
    fib: &mut bpf_fib_lookup,
) -> bool {
    let found = look_up_route(packet, key, me.bridge, fib);
    let way = match (found, uplink(fib.ifindex)) {
        (Route::To(next_hop) | Route::Unresolved(next_hop), Some(up)) if up.flags & UPLINK_POOL == 0 => {
            Some((next_hop, up))
        }
        _ => None,
    };
    if entry.flags & FLOW_REPLY != 0 {
        // It leaves by the link that the flow came in by, as long as that carries anything.
        let Some(own) = uplink(entry.ifindex) else { return false };
        if let Some((next_hop, up)) = way
            && (fib.ifindex == entry.ifindex || own.flags & UPLINK_NO_CARRIER != 0)
        {
            lead(entry, fib.ifindex, next_hop, up);
        } else {
            entry.src_mac = own.mac;
            entry.mtu = own.mtu;
        }
        return true;
    }
    let Some((next_hop, up)) = way else { return false };
    // The far end knows the flow by the address that it left with.
    let by_another = fib.ifindex != entry.ifindex && entry.flags & FLOW_NAT != 0;
    if by_another && source(packet, me, up, fib.ifindex, next_hop) != Some(entry.src) {
        return false;
    }
    lead(entry, fib.ifindex, next_hop, up);
    true
}

/// Lets replies to the sender of `packet` take the way that the kernel knows to it. Asked once: afterwards they follow
/// the kernel's neighbour by themselves.
#[inline(always)]
fn follow_peer(packet: &Packet, entry: &mut FlowEntry, fib: &mut bpf_fib_lookup) {
    let replies = entry.opposite_key(packet.key.proto);
    entry.from_mac = [0; 6];
    let Some(me) = interface(entry.ifindex) else { return };
    let Some(opposite) = FLOWS.get_ptr_mut(&replies) else { return };
    // SAFETY: as above.
    let opposite = unsafe { &mut *opposite };
    if opposite.flags & FLOW_UPLINK == 0 {
        return;
    }
    if let Route::To(next_hop) | Route::Unresolved(next_hop) = look_up_route(packet, &replies, me.bridge, fib)
        && (fib.ifindex == opposite.ifindex || fib.ifindex == packet.link)
        && let Some(up) = uplink(fib.ifindex)
        && up.flags & UPLINK_POOL == 0
    {
        lead(opposite, fib.ifindex, next_hop, up);
    }
}

/// By this uplink, to a neighbour that the kernel resolves.
#[inline(always)]
fn lead(entry: &mut FlowEntry, link: u32, next_hop: Ip, up: &UplinkInfo) {
    entry.ifindex = link;
    entry.next_hop = next_hop;
    entry.mtu = up.mtu;
    entry.src_mac = up.mac;
    entry.flags = entry.flags & !FLOW_UPLINK | FLOW_NEIGHBOUR;
}
