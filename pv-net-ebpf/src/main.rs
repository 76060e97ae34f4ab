//! The entry points: read the frame, hand it to a stage, return its verdict.
#![no_std]
#![no_main]

mod answer;
mod bare;
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
mod service;
mod sock;
mod uplink;
mod verdict;
mod xdp;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::bpf_jiffies64,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use maps::{CONFIG, hand_on, interface};
use packet::{ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Eth, Packet, read};
use pv_net_common::{DropReason, Stage, Stat};
use verdict::{ACT_OK, ACT_SHOT, count};

/// Ingress of a container's host-side link: everything that the container sends.
#[classifier]
pub fn pv_from_container(ctx: TcContext) -> i32 {
    from_container(ctx.skb.skb)
}

#[inline(always)]
fn from_container(skb: *mut __sk_buff) -> i32 {
    let Ok(eth) = read::<Eth>(skb, 0) else { return ACT_SHOT };
    let mut packet = Packet::new(skb, eth);
    // SAFETY: a context field.
    if unsafe { (*skb).vlan_present } != 0 {
        return verdict::drop(&packet, DropReason::VlanTag);
    }
    let parsed = match u16::from_be(eth.proto_be) {
        ETH_P_IP => packet.parse_v4(),
        ETH_P_IPV6 => packet.parse_v6(),
        ETH_P_ARP => return arp(&packet),
        ETH_P_8021Q | ETH_P_8021AD => Err(DropReason::VlanTag),
        _ => Err(DropReason::Ethertype),
    };
    match parsed {
        Ok(()) => forward::from_container(&mut packet),
        Err(reason) => verdict::drop(&packet, reason),
    }
}

#[inline(always)]
fn arp(packet: &Packet) -> i32 {
    let Some(me) = interface(packet.key.ifindex) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    match guard::mac(packet, me).and_then(|()| guard::arp(packet, me)) {
        Ok(()) => {
            count(Stat::ToStack);
            ACT_OK
        }
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
    // It goes through more, not less, when it forgets: most of it is one loop. Nor does kernel 6.1 take what the compiler
    // makes of that loop then ("back-edge": its start is entered from above and by a jump).
    with(ip_packet(ctx.skb.skb), forward::open)
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

/// To a container, from the device's side.
#[classifier]
pub fn pv_stage_inbound(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, inbound::stage)
}

/// Each stage reads the packet again: nothing but the frame crosses a tail call.
#[inline(always)]
fn stage(skb: *mut __sk_buff, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    with(ip_packet(skb), |packet| packet.forget().map_or(ACT_SHOT, |()| work(packet)))
}

#[inline(always)]
fn with(packet: Option<Packet>, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    match packet {
        Some(mut packet) => work(&mut packet),
        None => ACT_SHOT,
    }
}

/// Egress of a container's host-side link: what the bridge or the host's stack delivers.
#[classifier]
pub fn pv_to_container(ctx: TcContext) -> i32 {
    match ip_packet(ctx.skb.skb) {
        Some(mut packet) => inbound::to_container(&mut packet),
        None => ACT_OK,
    }
}

/// Ingress of an uplink.
#[classifier]
pub fn pv_from_uplink(ctx: TcContext) -> i32 {
    match ip_packet(ctx.skb.skb) {
        Some(mut packet) => uplink::from_uplink(&mut packet),
        None if bare::is_bare(ctx.skb.skb) => hand_on(ctx.skb.skb, Stage::Bare),
        None => ACT_OK,
    }
}

/// From an uplink, without its Ethernet header.
#[classifier]
pub fn pv_stage_bare(ctx: TcContext) -> i32 {
    if bare::restore(ctx.skb.skb).is_err() {
        return ACT_OK;
    }
    match ip_packet(ctx.skb.skb) {
        Some(mut packet) => uplink::from_uplink(&mut packet),
        None => ACT_OK,
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

/// A packet of the device's own side; what cannot be read is the stack's to judge.
#[inline(always)]
fn ip_packet(skb: *mut __sk_buff) -> Option<Packet> {
    let eth = read::<Eth>(skb, 0).ok()?;
    let mut packet = Packet::new(skb, eth);
    // SAFETY: a context field.
    if unsafe { (*skb).vlan_present } != 0 {
        return None;
    }
    let parsed = match u16::from_be(eth.proto_be) {
        ETH_P_IP => packet.parse_v4(),
        ETH_P_IPV6 => packet.parse_v6(),
        _ => return None,
    };
    parsed.ok().map(|()| packet)
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
