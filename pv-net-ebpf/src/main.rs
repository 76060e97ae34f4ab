//! The entry points. Each reads the frame, hands it to a stage and returns the stage's verdict.
#![no_std]
#![no_main]

mod answer;
mod bare;
mod bridge;
mod budget;
mod child;
mod child_discovery;
mod child_flow;
mod child_policy;
mod claim;
mod deliver;
mod denied;
mod device_if;
mod flow;
mod flow_quota;
mod from_container;
mod from_uplink;
mod guard;
mod half_open;
mod icmp;
mod inbound;
mod inside;
mod known;
mod maps;
mod nat;
mod open;
mod packet;
mod parent;
mod policy;
mod policy_input;
mod port_map;
mod revalidate;
mod route;
mod scratch;
mod send;
mod share;
mod sock;
mod stack;
mod tail_call;
mod to_uplink;
mod untag;
mod verdict;
mod xdp;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::bpf_jiffies64,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use maps::{CONFIG, interface};
use packet::{Kind, Packet};
use pv_net_common::{DropReason, Stage};
use tail_call::tail_call;
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
        Kind::Ip => return from_container::entry(&mut packet),
        Kind::Arp => return arp(&packet),
        Kind::PriorityTag | Kind::Vlan => DropReason::VlanTag,
        Kind::Other => DropReason::Ethertype,
        Kind::Unreadable => DropReason::Malformed,
    };
    verdict::drop(&packet, reason)
}

#[inline(always)]
fn arp(packet: &Packet) -> i32 {
    let Some(me) = interface(packet.key.link) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    match guard::mac(packet, me).and_then(|()| guard::arp(packet, me)) {
        Ok(()) => stack::to_stack(packet),
        Err(reason) => verdict::drop(packet, reason),
    }
}

/// From a container, with no entry of the current epoch in the flow table.
#[classifier]
pub fn pv_stage_from_container(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, from_container::stage)
}

/// From a container to another container, a published port or the device.
#[classifier]
pub fn pv_stage_inside(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, inside::stage)
}

/// From a container to where the kernel's routes lead.
#[classifier]
pub fn pv_stage_to_uplink(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, to_uplink::stage)
}

/// From a container to the device's stack.
#[classifier]
pub fn pv_stage_stack(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, stack::stage)
}

/// From an uplink, with no entry of the current epoch in the flow table.
#[classifier]
pub fn pv_stage_from_uplink(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, from_uplink::stage)
}

/// ICMP and ICMPv6 errors.
#[classifier]
pub fn pv_stage_icmp(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, icmp::stage)
}

/// Turns a packet into its answer: a reset or an ICMP error.
#[classifier]
pub fn pv_stage_answer(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, |packet| answer::stage(packet))
}

/// First packets of flows that are allowed: claims the flow.
#[classifier]
pub fn pv_stage_open(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, open::stage)
}

/// First packets of flows that are claimed: sends them on.
#[classifier]
pub fn pv_stage_send(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, send::stage)
}

/// Packets of flows in the half-open table.
#[classifier]
pub fn pv_stage_half_open(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, half_open::stage)
}

/// Packets of flows of an older epoch: asks the policy again.
#[classifier]
pub fn pv_stage_revalidate(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, revalidate::stage)
}

/// Packets of flows that are allowed again: delivers them.
#[classifier]
pub fn pv_stage_known(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, known::stage)
}

/// Packets of known flows whose way out may have changed.
#[classifier]
pub fn pv_stage_route(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, route::stage)
}

/// To a container, from the bridge or the host's stack, without a note of the current epoch.
#[classifier]
pub fn pv_stage_inbound(ctx: TcContext) -> i32 {
    stage(ctx.skb.skb, inbound::stage)
}

/// Runs a stage that is reached straight from a hook. It reads the headers itself, since the hook's stack is too full
/// to store them in the scratch memory; it stores them for the stages behind it.
#[inline(always)]
fn stage(skb: *mut __sk_buff, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    with(skb, |packet| packet.forget().map_or(ACT_SHOT, |()| work(packet)))
}

/// Runs a stage behind another one, with the headers that the first stage stored.
#[inline(always)]
fn later_stage(skb: *mut __sk_buff, work: impl FnOnce(&mut Packet) -> i32) -> i32 {
    let Some(mut packet) = Packet::recall(skb) else { return ACT_SHOT };
    work(&mut packet)
}

/// Runs `work` on a packet that is made here and passed by reference: the compiler would otherwise keep a copy in each
/// function that passes it on.
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
        Kind::Ip => from_uplink::entry(&mut packet),
        // If the data does not begin with the Ethernet header, the frame was read wrong.
        _ if bare::is_bare(skb) => tail_call(skb, Stage::Bare),
        kind => from_uplink::unread(&packet, kind),
    }
}

/// Ingress of a pool's bridge: what the bridge hands to the device's stack.
#[classifier]
pub fn pv_from_bridge(ctx: TcContext) -> i32 {
    let Some(mut packet) = Packet::of(ctx.skb.skb) else { return ACT_SHOT };
    match packet.parse() {
        Kind::PriorityTag => tail_call(packet.skb, Stage::Untag),
        kind => bridge::from_bridge(&packet, kind),
    }
}

/// Frames with a priority tag, which names no VLAN.
#[classifier]
pub fn pv_stage_untag(ctx: TcContext) -> i32 {
    untag::stage(ctx.skb.skb)
}

/// Frames from an uplink without their Ethernet header.
#[classifier]
pub fn pv_stage_bare(ctx: TcContext) -> i32 {
    bare::stage(ctx.skb.skb)
}

/// Egress of a macvlan interface, inside the container's namespace: everything that the container sends by it.
#[classifier]
pub fn pv_stage_child_out(ctx: TcContext) -> i32 {
    child::out(ctx.skb.skb)
}

/// Ingress of a macvlan interface, inside the container's namespace.
#[classifier]
pub fn pv_stage_child_in(ctx: TcContext) -> i32 {
    child::inward(ctx.skb.skb)
}

/// Packets by a macvlan interface, of either way, that its guard let pass.
#[classifier]
pub fn pv_stage_child_flow(ctx: TcContext) -> i32 {
    later_stage(ctx.skb.skb, child::flow)
}

/// Egress of the parent of macvlan interfaces: what leaves by the wire.
#[classifier]
pub fn pv_parent_out(ctx: TcContext) -> i32 {
    parent::out(ctx.skb.skb)
}

/// Ingress of the parent: what comes by the wire, and what `pv_parent_out` returns.
#[classifier]
pub fn pv_parent_in(ctx: TcContext) -> i32 {
    parent::in_from(ctx.skb.skb)
}

/// Egress of the device's own interface beside those of containers.
#[classifier]
pub fn pv_device_out(ctx: TcContext) -> i32 {
    device_if::out(ctx.skb.skb)
}

/// Ingress of the same interface.
#[classifier]
pub fn pv_device_in(ctx: TcContext) -> i32 {
    device_if::inward(ctx.skb.skb)
}

/// Ingress of an uplink, before the stack. Handles frames in several buffers too (kernel 5.18).
#[xdp(frags)]
pub fn pv_xdp_uplink(ctx: XdpContext) -> u32 {
    xdp::from_uplink(&ctx)
}

/// [`pv_xdp_uplink`] for kernels before 5.18.
#[xdp]
pub fn pv_xdp_uplink_single(ctx: XdpContext) -> u32 {
    xdp::from_uplink(&ctx)
}

/// Not attached anywhere: the daemon runs it by `BPF_PROG_TEST_RUN` to read the kernel's tick count.
#[classifier]
pub fn pv_clock(_ctx: TcContext) -> i32 {
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        // SAFETY: a map value; the daemon reads the field after the run.
        unsafe { (*config).jiffies = bpf_jiffies64() };
    }
    ACT_OK
}

/// Not attached anywhere: the daemon runs it by `BPF_PROG_TEST_RUN` to ask the policy maps (`pv-net policy explain`).
#[classifier]
pub fn pv_policy_probe(ctx: TcContext) -> i32 {
    policy::answer(ctx.skb.skb)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel allows GPL-only helpers (`bpf_redirect_peer`, `bpf_ktime_get_ns`) only to programs with a GPL-compatible
/// licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
