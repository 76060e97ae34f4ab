//! What a container sends: by the flow table, else past the guard to the stage that decides.

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

/// A packet from a container.
#[inline(always)]
pub fn entry(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    // A copy: a packet whose key's address is taken is kept in memory whole, field by field.
    let key = packet.key;
    if packet.tracked
        && let Some(entry) = FLOWS.get_ptr_mut(&key)
    {
        // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
        let entry = unsafe { &mut *entry };
        // The addresses were checked when the entry was made and are part of its key: the MAC is what is left.
        if entry.epoch == epoch && same_mac(entry.from_mac, packet.eth.src) {
            return known(packet, entry);
        }
    }
    tail_call(packet.skb, Stage::FromContainer)
}

/// The stage for what the flow table does not know.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else {
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
