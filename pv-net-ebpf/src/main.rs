//! The entry points: read the frame, hand it to a stage, return its verdict.
#![no_std]
#![no_main]

mod answer;
mod forward;
mod guard;
mod maps;
mod packet;
mod policy;
mod verdict;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_jiffies64, macros::classifier, programs::TcContext};
use maps::{CONFIG, interface};
use packet::{ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Eth, Packet, read};
use pv_net_common::{DropReason, Stat};
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
