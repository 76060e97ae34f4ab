//! The stage `open`: first packets of allowed flows, each of which claims its flow.

use crate::{
    answer, claim,
    deliver::stamp,
    flow, nat,
    packet::Packet,
    scratch::{Plan, Scratch, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT, count},
};
use pv_net_common::{DropReason, Ip, LinkId, Stage, Stat};

/// A plan with these addresses and the packet's own destination port.
#[inline(always)]
pub fn plan_of(packet: &Packet, src: Ip, dst: Ip, reply_link: LinkId) -> Plan {
    let key = packet.key;
    let first_port = nat::first_port();
    let dport_be = key.dport_be;
    Plan { src, dst, reply_link, masquerade: 0, offset: 0, first_port, claimed: 0, link: key.link, dport_be, pad: 0 }
}

/// The stage for first packets: claims the flow.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    packet.key.link = plan.link;
    packet.settle_fragment();
    count(Stat::SlowPath);
    if packet.tracked {
        // Counted before the entry is inserted, since the map gets a copy.
        stamp(packet, &mut flow.forward);
        match claim::claim(packet, flow, plan) {
            Ok(Some(open)) => flow::repeat(packet, open),
            Ok(None) => plan.claimed = 1,
            Err(DropReason::NoFlow) => return answer::unknown_tcp(packet),
            Err(reason) => return verdict::drop(packet, reason),
        }
    } else if plan.src != packet.key.src || plan.dst != packet.key.dst {
        // Without ports flows cannot be told apart, so nothing can be translated back. If the addresses stay the same,
        // no flow is needed.
        let reason = if packet.later { DropReason::FragmentLost } else { DropReason::Unsupported };
        return verdict::drop(packet, reason);
    }
    // A tail call, because the verifier would otherwise check the delivery once for each way out of the claim's loop.
    tail_call(packet.skb, Stage::Send)
}
