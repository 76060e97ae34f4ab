//! Packets of flows in the flow table: carried out as the entry says.

use crate::{
    deliver::deliver,
    flow,
    maps::{FLOWS, interface},
    packet::Packet,
    verdict::{ACT_SHOT, count},
};
use pv_net_common::{FlowEntry, Stat};

/// A packet of a known flow, decided under the policy in force.
#[inline(always)]
pub fn known(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    count(Stat::FastPath);
    packet.admit_fragments();
    let done = deliver(packet, entry);
    if flow::ends(packet, entry) {
        flow::close(packet, entry);
    }
    done
}

/// The stage for packets that the policy has allowed again.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    if interface(packet.link).is_none() {
        packet.key.ifindex = 0;
    }
    packet.settle_fragment();
    // A copy, as in `from_container::entry`.
    let key = packet.key;
    // A flow that ended a moment ago: its next packet is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    known(packet, unsafe { &mut *entry })
}
