//! Packets that answer an opening or closing flow, or go on with a flow of the host's stack.

use crate::{
    deliver::deliver,
    denied::denied,
    flow::{self, REFUSED},
    maps::{HALF_OPEN, epoch, interface},
    packet::Packet,
    policy_input::PolicyInput,
    stack::to_stack,
    verdict::{ACT_OK, ACT_SHOT, count},
};
use pv_net_common::{Stat, flow::FLOW_STACK};

/// The stage for packets of opening and closing flows.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A flow that ended a moment ago: its next packet is decided anew.
    reply(packet, epoch()).unwrap_or(ACT_SHOT)
}

/// A packet that answers an opening or closing flow: the flow is established by it.
#[inline(always)]
fn reply(packet: &Packet, epoch: u32) -> Option<i32> {
    // SAFETY: a map value stays readable for the program's run.
    let open = HALF_OPEN.get_ptr_mut(&packet.key).map(|p| unsafe { &mut *p })?;
    let stack = open.reply.flags & FLOW_STACK != 0;
    if open.reply.epoch != epoch {
        let input = if stack { PolicyInput::of_note(open) } else { PolicyInput::of_entry(&packet.key, &open.reply) };
        if let Err(reason) = input.allowed() {
            // It stays, so that what follows is known for a reply, and is refused with it.
            open.reply.epoch = REFUSED;
            return Some(denied(packet, reason));
        }
        open.reply.epoch = epoch;
        open.forward.epoch = epoch;
    }
    if stack {
        return Some(if packet.key.ifindex == 0 { ACT_OK } else { to_stack(packet) });
    }
    packet.admit_fragments();
    count(Stat::SlowPath);
    let goes_on = flow::goes_on(packet, open, true);
    // With this packet counted: an error may be about it.
    let done = deliver(packet, &mut open.reply);
    if goes_on {
        flow::establish(open);
    }
    Some(done)
}
