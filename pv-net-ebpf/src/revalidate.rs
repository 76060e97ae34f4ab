//! Packets of flows that were decided under another policy: the rules are asked again, for both directions.

use crate::{
    answer,
    deliver::deliver,
    denied::denied,
    flow,
    maps::{FLOWS, epoch, interface, routes_changed_since},
    packet::Packet,
    policy_input::PolicyInput,
    scratch::{Scratch, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT},
};
use pv_net_common::Stage;

/// The stage for flows that were decided under another policy: asked again, for both directions.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A flow that ended a moment ago: its next packet is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&packet.key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    let entry = unsafe { &mut *entry };
    // Before the rules are asked: what they say is not of a later policy than the entry says.
    let epoch = epoch();
    // In the scratch memory: kernels before 6.8 count this stage's stack to the last byte.
    let Some(Scratch { input, .. }) = scratch() else { return ACT_SHOT };
    *input = PolicyInput::of_entry(&packet.key, entry);
    if let Err(reason) = input.allowed() {
        // The one who sends from outside is left in silence, so it is the container that learns by this segment.
        let from_outside = packet.key.ifindex == 0;
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
