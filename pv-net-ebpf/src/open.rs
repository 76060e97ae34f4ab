//! First packets of flows that may be: each claims its flow.

use crate::{
    answer, claim,
    deliver::stamp,
    flow, nat,
    packet::Packet,
    scratch::{Plan, Scratch, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_SHOT, count},
};
use pv_net_common::{DropReason, Ip, Stage, Stat};

/// A plan with these addresses and the packet's own port.
#[inline(always)]
pub fn plan_of(packet: &Packet, src: Ip, dst: Ip, reply_link: u32) -> Plan {
    let key = packet.key;
    let first_port = nat::first_port();
    let dport_be = key.dport_be;
    Plan { src, dst, reply_link, masquerade: 0, offset: 0, first_port, claimed: 0, link: key.ifindex, dport_be, pad: 0 }
}

/// The stage for first packets: claims the flow.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let Some(Scratch { flow, plan, .. }) = scratch() else { return ACT_SHOT };
    packet.key.ifindex = plan.link;
    packet.settle_fragment();
    count(Stat::SlowPath);
    if packet.tracked {
        // Before it is entered: what is delivered is a copy.
        stamp(packet, &mut flow.forward);
        match claim::claim(packet, flow, plan) {
            Ok(Some(open)) => flow::repeat(packet, open),
            Ok(None) => plan.claimed = 1,
            Err(DropReason::NoFlow) => return answer::unknown_tcp(packet),
            Err(reason) => return verdict::drop(packet, reason),
        }
    } else if plan.src != packet.key.src || plan.dst != packet.key.dst {
        // Without ports there is nothing to tell flows apart by, but addresses that stay need no flow.
        let reason = if packet.later { DropReason::FragmentLost } else { DropReason::Unsupported };
        return verdict::drop(packet, reason);
    }
    // The verifier would go through the delivery once for each way out of the claim's loop.
    tail_call(packet.skb, Stage::Send)
}
