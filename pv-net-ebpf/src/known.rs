//! Packets of flows in the flow table, and the stage `known`: carried out as the entry says.

use crate::{
    deliver::deliver,
    flow,
    maps::FLOWS,
    packet::Packet,
    verdict::{ACT_SHOT, count},
};
use pv_net_common::{FlowEntry, Stat};

/// Delivers a packet of a known flow whose entry is of the current epoch.
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

/// The stage for packets whose flow was allowed again in the current epoch.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    // A copy, for the same reason as in `from_container::entry`.
    let key = packet.key;
    // The flow has ended since the tail call. This packet is lost; the next one is decided anew.
    let Some(entry) = FLOWS.get_ptr_mut(&key) else { return ACT_SHOT };
    // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
    known(packet, unsafe { &mut *entry })
}
