//! Frames with a tag that names no VLAN. The stack takes it off, and so the programs do first.

use crate::{
    bridge, from_uplink, maps,
    packet::{Kind, Packet},
    tail_call::tail_call,
    verdict::ACT_SHOT,
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_vlan_pop};
use pv_net_common::{Stage, endpoint::UPLINK_POOL};

/// From an uplink or a pool's bridge.
#[inline(always)]
pub fn stage(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_skb_vlan_pop(skb.cast()) } != 0 {
        return ACT_SHOT;
    }
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let of_pool = maps::uplink(packet.link).is_some_and(|up| up.flags & UPLINK_POOL != 0);
    match packet.parse() {
        // As many as there are: a tail call that is one too many drops the packet.
        Kind::PriorityTag => tail_call(skb, Stage::Untag),
        kind if of_pool => bridge::from_bridge(&packet, kind),
        Kind::Ip => from_uplink::entry(&mut packet),
        kind => from_uplink::unread(&packet, kind),
    }
}
