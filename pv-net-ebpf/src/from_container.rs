//! What a container sends: forwarded by the flow table when the flow is known, else checked by the guard and passed to
//! the stage that decides.

use crate::{
    flow,
    guard::{self, same_mac},
    known::known,
    maps::{FLOWS, endpoint, epoch, interface, is_local},
    packet::Packet,
    tail_call::tail_call,
    verdict,
};
use pv_net_common::{DropReason, Stage};

/// Entry point for an IP packet from a container.
#[inline(always)]
pub fn entry(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    // A copy, because taking the address of the packet's key would make the compiler keep the whole packet in memory,
    // field by field.
    let key = packet.key;
    if packet.tracked
        && let Some(entry) = FLOWS.get_ptr_mut(&key)
    {
        // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
        let entry = unsafe { &mut *entry };
        // The addresses are part of the key and were checked when the entry was made; only the source MAC is left to
        // check.
        if entry.epoch == epoch && same_mac(entry.from_mac, packet.eth.src) {
            return known(packet, entry);
        }
    }
    tail_call(packet.skb, Stage::FromContainer)
}

/// The stage for packets of which the flow table knows nothing.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.id()) else {
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
        return tail_call(packet.skb, stage);
    }
    if packet.is_icmp_error() {
        return tail_call(packet.skb, Stage::Icmp);
    }
    let stays = dst.is_link_local() || guard::is_group(dst, me) || endpoint(dst).is_some() || is_local(dst);
    tail_call(packet.skb, if stays { Stage::Inside } else { Stage::ToUplink })
}
