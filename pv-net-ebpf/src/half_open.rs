//! The stage `half_open`: packets that answer an opening or closing flow, or belong to a noted flow of the host's
//! stack.

use crate::{
    deliver::deliver,
    denied::denied,
    flow::{self, REFUSED},
    maps::{HALF_OPEN, epoch},
    packet::Packet,
    policy_input::PolicyInput,
    stack::to_stack,
    verdict::{ACT_OK, ACT_SHOT, count},
};
use pv_net_common::{Stat, flow::FLOW_STACK};

/// The stage for packets whose key is in the half-open table.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    // `None`: the flow has ended since the look-up before the tail call. This packet is lost; the next one is decided
    // anew.
    reply(packet, epoch()).unwrap_or(ACT_SHOT)
}

/// Delivers a packet that answers an opening or closing flow, and establishes the flow. `None` when the entry is gone.
#[inline(always)]
fn reply(packet: &Packet, epoch: u32) -> Option<i32> {
    // SAFETY: a map value stays readable for the program's run.
    let open = HALF_OPEN.get_ptr_mut(&packet.key).map(|p| unsafe { &mut *p })?;
    let stack = open.reply.flags & FLOW_STACK != 0;
    if open.reply.epoch != epoch {
        let input = if stack { PolicyInput::of_note(open) } else { PolicyInput::of_entry(&packet.key, &open.reply) };
        if let Err(reason) = input.allowed() {
            // The entry stays, so that later packets are still recognised as replies of the refused flow and are
            // refused too.
            open.reply.epoch = REFUSED;
            return Some(denied(packet, reason));
        }
        open.reply.epoch = epoch;
        open.forward.epoch = epoch;
    }
    if stack {
        return Some(if packet.key.link.is_outside() { ACT_OK } else { to_stack(packet) });
    }
    packet.admit_fragments();
    count(Stat::SlowPath);
    let goes_on = flow::goes_on(packet, open, true);
    // `deliver` counts the packet before the entry is copied: ICMP errors are accepted only about a direction that has
    // sent something.
    let done = deliver(packet, &mut open.reply);
    if goes_on {
        flow::establish(open);
    }
    Some(done)
}
