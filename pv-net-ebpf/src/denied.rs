//! What becomes of a packet that the policy refuses.

use crate::{answer, packet::Packet, verdict};
use pv_net_common::DropReason;

/// A refused packet: a container learns at once, outside is left in silence.
#[inline(always)]
pub fn denied(packet: &Packet, reason: DropReason) -> i32 {
    if packet.key.ifindex == 0 {
        return verdict::drop(packet, reason);
    }
    verdict::note_drop(packet, reason);
    answer::refused(packet)
}
