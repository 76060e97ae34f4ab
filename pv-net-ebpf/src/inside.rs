//! The stage `inside`: from a container to another container, to a published port, or to the device itself.

use crate::{
    answer,
    denied::denied,
    flow,
    guard::{self, same_mac},
    maps::{endpoint, endpoint_at, epoch, interface, is_local},
    open::plan_of,
    packet::Packet,
    policy_input::PolicyInput,
    port_map::{self, Target},
    scratch::{Plan, Scratch, ToStack, scratch},
    stack::{by_stack, to_stack},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT},
};
use pv_net_common::{DropReason, EndpointInfo, FlowEntry, HalfOpenFlow, InterfaceInfo, Stage, flow::FLOW_ROUTED};

/// The stage for packets that do not leave the device.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    let Some(me) = interface(packet.id()) else { return ACT_SHOT };
    let dst = packet.key.dst;
    if guard::is_group(dst, me) {
        // What only the pool's own router and servers answer is for the bridge itself, and for nobody else on it.
        if guard::is_for_servers(packet) && packet.send_to(&me.gateway_mac).is_err() {
            return verdict::drop(packet, DropReason::Rewrite);
        }
        return tail_call(packet.skb, Stage::Stack);
    }
    let (target, to) = match endpoint_at(dst, packet.id()) {
        Some(target) if target.link == packet.id() => return to_stack(packet),
        // Neighbour discovery within the pool passes like ARP: rules are about the traffic on a link, not about what
        // makes the link work.
        Some(target) if target.pool_id == me.pool_id && guard::is_neighbour(packet) => return to_stack(packet),
        Some(target) => (target, Target { addr: dst, port_be: packet.key.dport_be }),
        None => match published(packet) {
            Some(found) => found,
            None => return to_device(packet, me),
        },
    };
    to_container(packet, me, target, &to, epoch)
}

/// The container behind a published port that the packet names by an address of the device.
#[inline(always)]
fn published(packet: &Packet) -> Option<(&'static EndpointInfo, Target)> {
    if !packet.tracked || !is_local(packet.key.dst) {
        return None;
    }
    let to = port_map::of(&packet.key)?;
    Some((endpoint(to.addr)?, to))
}

/// To another container, or back to the sender itself by a port that it publishes.
#[inline(always)]
fn to_container(packet: &mut Packet, me: &InterfaceInfo, target: &EndpointInfo, to: &Target, epoch: u32) -> i32 {
    let key = packet.key;
    let published = to.addr != key.dst;
    if key.src.is_link_local() && target.pool_id != me.pool_id {
        return answer::beyond_scope(packet);
    }
    if let Err(reason) = PolicyInput::of_target(&key, to).may_pass(me.into(), target.into()) {
        flow::forget(&key);
        return denied(packet, reason);
    }
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    let routed = if published || target.pool_id != me.pool_id { FLOW_ROUTED } else { 0 };
    *flow = HalfOpenFlow::default();
    flow.forward = FlowEntry {
        ifindex: target.link.number(),
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
    // A container that reaches itself by a published port would drop packets from its own address, so the source
    // becomes the gateway's.
    let src = match target.link == packet.id() {
        true if packet.v4 => me.gateway4,
        true => me.gateway6,
        false => key.src,
    };
    *plan = Plan { dport_be: to.port_be, ..plan_of(packet, src, to.addr, target.link) };
    tail_call(packet.skb, Stage::Open)
}

/// To the device itself, or to a link-local address that no container has but another host on the bridge may have.
#[inline(always)]
fn to_device(packet: &Packet, me: &InterfaceInfo) -> i32 {
    // Neighbour discovery belongs to having a link and is not subject to rules.
    if !packet.v4 && guard::is_discovery(packet) {
        return to_stack(packet);
    }
    // Whether the bridge hands the frame to the device: it goes by the destination MAC alone.
    let here = same_mac(packet.eth.dst, me.gateway_mac) || packet.eth.dst[0] & 1 != 0;
    match (is_local(packet.key.dst), here) {
        (true, true) => by_stack(packet, ToStack::default()),
        // An address of the device in a frame to another host's MAC would reach that host in the device's name.
        (true, false) => verdict::drop(packet, DropReason::NotAddressed),
        // A link-local address of the device that the daemon does not know yet, or the subnet-router anycast address
        // (RFC 4291 section 2.6.1).
        (false, true) => by_stack(packet, ToStack { device: 1, ..ToStack::default() }),
        (false, false) => by_stack(packet, ToStack { elsewhere: 1, ..ToStack::default() }),
    }
}
