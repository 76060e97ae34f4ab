//! The stage `revalidate`: packets of flows that were decided in an older epoch. The rules are asked again, for both
//! directions.

use crate::{
    answer,
    deliver::deliver,
    denied::denied,
    flow,
    maps::{FLOWS, epoch, routes_changed_since},
    packet::Packet,
    policy_input::PolicyInput,
    scratch::{Scratch, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT},
};
use pv_net_common::Stage;

/// The stage for packets whose entry in the flow table is of an older epoch, or has another source MAC.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    // The flow has ended since the look-up. This packet is lost; the next one is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&packet.key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    let entry = unsafe { &mut *entry };
    // Read before the rules are asked, so that the entry never claims a later epoch than it was decided in.
    let epoch = epoch();
    // Kept in the scratch memory: kernels before 6.8 count this stage's stack to the last byte.
    let Some(Scratch { input, .. }) = scratch() else { return ACT_SHOT };
    *input = PolicyInput::of_entry(&packet.key, entry);
    if let Err(reason) = input.allowed() {
        // A sender outside gets no answer, so its segment is turned into a reset that tells the container.
        let from_outside = packet.key.link.is_outside();
        if !from_outside || !answer::into_reset(packet) {
            flow::refuse(packet, entry);
            return denied(packet, reason);
        }
        verdict::note_drop(packet, reason);
        let done = deliver(packet, entry);
        flow::refuse(packet, entry);
        return done;
    }
    let next = if routes_changed_since(entry.epoch) { Stage::Route } else { Stage::Known };
    entry.epoch = epoch;
    tail_call(packet.skb, next)
}
