//! What happens to a packet that the policy refuses.

use crate::{answer, packet::Packet, verdict};
use pv_net_common::DropReason;

/// Refuses a packet: a container gets an answer at once, the outside gets none.
#[inline(always)]
pub fn denied(packet: &Packet, reason: DropReason) -> i32 {
    if packet.key.link.is_outside() {
        return verdict::drop(packet, reason);
    }
    verdict::note_drop(packet, reason);
    answer::refused(packet)
}
