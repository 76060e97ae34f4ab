//! The entry points: read the frame, hand it to a stage, return its verdict.
#![no_std]
#![no_main]

mod answer;
mod bare;
mod bridge;
mod budget;
mod charge;
mod claim;
mod decide;
mod deliver;
mod flow;
mod forward;
mod guard;
mod icmp;
mod inbound;
mod maps;
mod nat;
mod outside;
mod packet;
mod policy;
mod route;
mod service;
mod share;
mod sock;
mod stack;
mod uplink;
mod verdict;
mod xdp;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_jiffies64, bpf_skb_vlan_pop},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use maps::{CONFIG, hand_on, interface};
use packet::{Kind, Packet};
use pv_net_common::{DropReason, Stage, endpoint::UPLINK_POOL};
use verdict::{ACT_OK, ACT_SHOT};

/// Ingress of a container's host-side link: everything that the container sends.
#[classifier]
pub fn pv_from_container(ctx: TcContext) -> i32 {
    from_container(ctx.skb.skb)
}

#[inline(always)]
fn from_container(skb: *mut __sk_buff) -> i32 {
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let reason = match packet.parse() {
        Kind::Ip => return forward::from_container(&mut packet),
        Kind::Arp => return arp(&packet),
        Kind::PriorityTag | Kind::Vlan => DropReason::VlanTag,
        Kind::Other => DropReason::Ethertype,
        Kind::Unreadable => DropReason::Malformed,
    };
    verdict::drop(&packet, reason)
}

#[inline(always)]
fn arp(packet: &Packet) -> i32 {
    let Some(me) = interface(packet.key.ifindex) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    match guard::mac(packet, me).and_then(|()| guard::arp(packet, me)) {
        Ok(()) => stack::to_stack(packet),
        Err(reason) => verdict::drop(packet, reason),
    }
}

/// From a container, not in the flow table.
#[classifier]
pub fn pv_stage_container(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::slow)
}

/// From a container to what is on the device.
#[classifier]
pub fn pv_stage_inside(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::inside)
}

/// From a container to where routes lead.
#[classifier]
pub fn pv_stage_outside(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, outside::to_outside)
}

/// From a container to the device's stack.
#[classifier]
pub fn pv_stage_stack(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, stack::stage)
}

/// From an uplink, not in the flow table.
#[classifier]
pub fn pv_stage_uplink(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, uplink::slow)
}

/// ICMP and ICMPv6 errors.
#[classifier]
pub fn pv_stage_icmp(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, icmp::stage)
}

/// Packets that are answered.
#[classifier]
pub fn pv_stage_answer(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, |packet| answer::answer(packet))
}

/// First packets of flows that may be.
#[classifier]
pub fn pv_stage_open(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::open)
}

/// First packets of flows that are claimed.
#[classifier]
pub fn pv_stage_send(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::send)
}

/// Flows that open or close.
#[classifier]
pub fn pv_stage_again(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::again)
}

/// Flows that were decided under another policy.
#[classifier]
pub fn pv_stage_policy(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::ask_again)
}

/// Flows that are allowed again.
#[classifier]
pub fn pv_stage_known(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, forward::allowed_again)
}

/// Known flows whose way out may be another one.
#[classifier]
pub fn pv_stage_route(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, route::stage)
}

/// To a container, from the device's side.
#[classifier]
pub fn pv_stage_inbound(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, inbound::stage)
}

/// Each stage reads the packet again: nothing but the frame crosses a tail call.
#[inline(always)]
fn stage(skb: *mut __sk_buff, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    with(skb, |packet| packet.forget().map_or(ACT_SHOT, |()| work(packet)))
}

/// The packet is made here and stays here: the compiler would keep a copy for each function that hands it on.
#[inline(always)]
fn with(skb: *mut __sk_buff, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    if packet.parse() == Kind::Ip { work(&mut packet) } else { ACT_SHOT }
}

/// Egress of a container's host-side link: what the bridge or the host's stack delivers.
#[classifier]
pub fn pv_to_container(ctx: TcContext) -> i32 {
    let Some(mut packet) = Packet::of(ctx.skb.skb) else { return ACT_SHOT };
    let kind = packet.parse();
    inbound::to_container(&mut packet, kind)
}

/// Ingress of an uplink.
#[classifier]
pub fn pv_from_uplink(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    match packet.parse() {
        Kind::Ip => uplink::from_uplink(&mut packet),
        // The frame may have its Ethernet header elsewhere, and be read wrong.
        _ if bare::is_bare(skb) => hand_on(skb, Stage::Bare),
        kind => unread(&packet, kind),
    }
}

/// A frame from an uplink that is not IP.
#[inline(always)]
fn unread(packet: &Packet, kind: Kind) -> i32 {
    match kind {
        Kind::PriorityTag => hand_on(packet.skb, Stage::Untag),
        Kind::Unreadable => verdict::drop(packet, DropReason::Malformed),
        // ARP and what is no IP are the stack's; a VLAN's frames are another link's.
        _ => ACT_OK,
    }
}

/// Ingress of a pool's bridge: what it hands to the device's stack.
#[classifier]
pub fn pv_from_bridge(ctx: TcContext) -> i32 {
    let Some(mut packet) = Packet::of(ctx.skb.skb) else { return ACT_SHOT };
    match packet.parse() {
        Kind::PriorityTag => hand_on(packet.skb, Stage::Untag),
        kind => bridge::from_bridge(&packet, kind),
    }
}

/// With a tag that names no VLAN. The stack takes it off, and so the program does first.
#[classifier]
pub fn pv_stage_untag(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_skb_vlan_pop(skb.cast()) } != 0 {
        return ACT_SHOT;
    }
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let of_pool = maps::uplink(packet.link).is_some_and(|up| up.flags & UPLINK_POOL != 0);
    match packet.parse() {
        // As many as there are: a tail call that is one too many drops the packet.
        Kind::PriorityTag => hand_on(skb, Stage::Untag),
        kind if of_pool => bridge::from_bridge(&packet, kind),
        Kind::Ip => uplink::from_uplink(&mut packet),
        kind => unread(&packet, kind),
    }
}

/// From an uplink, without its Ethernet header.
#[classifier]
pub fn pv_stage_bare(ctx: TcContext) -> i32 {
    if bare::restore(ctx.skb.skb).is_err() {
        return ACT_OK;
    }
    let Some(mut packet) = Packet::of(ctx.skb.skb) else { return ACT_SHOT };
    match packet.parse() {
        Kind::Ip => uplink::from_uplink(&mut packet),
        kind => unread(&packet, kind),
    }
}

/// Ingress of an uplink, before the stack: frames of several pieces too (kernel 5.18).
#[xdp(frags)]
pub fn pv_xdp_uplink(ctx: XdpContext) -> u32 {
    xdp::from_uplink(&ctx)
}

/// The same for older kernels.
#[xdp]
pub fn pv_xdp_uplink_single(ctx: XdpContext) -> u32 {
    xdp::from_uplink(&ctx)
}

/// Not attached anywhere: the daemon test-runs it to learn the kernel's tick count.
#[classifier]
pub fn pv_clock(_ctx: TcContext) -> i32 {
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        // SAFETY: a map value; the daemon reads the field after the run.
        unsafe { (*config).jiffies = bpf_jiffies64() };
    }
    ACT_OK
}

/// Not attached anywhere: the daemon test-runs it to ask what the rules say (`pv-net policy explain`).
#[classifier]
pub fn pv_policy_probe(ctx: TcContext) -> i32 {
    policy::answer(ctx.skb.skb)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// GPL-only helpers (`bpf_redirect_peer`, `bpf_ktime_get_ns`) ask for a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
