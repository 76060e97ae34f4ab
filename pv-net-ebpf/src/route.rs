//! The stage `route`: looks up the way out of a known flow again, after a change of routes or uplinks, and when a
//! packet of the flow's peer comes from another MAC. The answer comes from the kernel's routes and neighbours, never
//! from the packet.

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
    FlowEntry, FlowKey, InterfaceInfo, Ip, LinkId, Stage, UplinkInfo,
    endpoint::{UPLINK_NO_CARRIER, UPLINK_POOL},
    flow::{FLOW_NAT, FLOW_NEIGHBOUR, FLOW_REPLY, FLOW_UPLINK},
};

/// The stage: afterwards the flow's way out is right, or the flow is gone.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let sender = interface(packet.id());
    if sender.is_none() && packet.mark_outside().is_none() {
        return ACT_SHOT;
    }
    packet.settle_fragment();
    // A copy, for the same reason as in `from_container::entry`.
    let key = packet.key;
    // The flow has ended since the look-up. This packet is lost; the next one is decided anew.
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
    // The far end would see the connection's next segment come from another address, so a translated connection is
    // reset.
    let lost = entry.flags & FLOW_NAT != 0 && packet.continues_tcp() && !packet.later;
    flow::forget(&key);
    if lost { answer::unknown_tcp(packet) } else { tail_call(packet.skb, Stage::FromContainer) }
}

/// Points `entry` to where the kernel's routes lead now. `false` when the flow cannot continue.
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
        // Replies leave by the uplink that the flow came in by, unless that has lost its carrier.
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
    // The far end knows the flow by the address that it left with, so another uplink must have that address.
    let by_another = fib.ifindex != entry.ifindex && entry.flags & FLOW_NAT != 0;
    if by_another && source(packet, me, up, fib.ifindex, next_hop) != Some(entry.src) {
        return false;
    }
    lead(entry, fib.ifindex, next_hop, up);
    true
}

/// Points the entry of the replies to the sender of `packet` to the kernel's route to it. This is done once; from then
/// on the kernel resolves the neighbour for each packet (`bpf_redirect_neigh`).
#[inline(always)]
fn follow_peer(packet: &Packet, entry: &mut FlowEntry, fib: &mut bpf_fib_lookup) {
    let replies = entry.opposite_key(packet.key.proto);
    entry.from_mac = [0; 6];
    let Some(me) = interface(LinkId::of_index(entry.ifindex)) else { return };
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

/// Lets the packets of `entry` leave by this uplink, to a neighbour that the kernel resolves.
#[inline(always)]
fn lead(entry: &mut FlowEntry, link: u32, next_hop: Ip, up: &UplinkInfo) {
    entry.ifindex = link;
    entry.next_hop = next_hop;
    entry.mtu = up.mtu;
    entry.src_mac = up.mac;
    entry.flags = entry.flags & !FLOW_UPLINK | FLOW_NEIGHBOUR;
}
