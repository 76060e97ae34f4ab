//! The stage `send`: sends on the first packet of a claimed flow.

use crate::{
    deliver::deliver,
    packet::Packet,
    scratch::{Scratch, scratch},
    share,
    verdict::ACT_SHOT,
};

/// The stage for first packets whose flow was claimed by `open`.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    packet.key.link = plan.link;
    packet.settle_fragment();
    packet.admit_fragments();
    if plan.claimed != 0 {
        share::take(&packet.key, &flow.forward.opposite_key(packet.key.proto));
    }
    deliver(packet, &mut flow.forward)
}
