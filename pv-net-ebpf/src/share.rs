//! Each opener's share of the half-open table: a container, the outside and the device have a ring each of what they have
//! claimed there. Who claims more than it has room for loses his own oldest claim, and nobody else's.

use crate::maps::{CLAIM_TURNS, CLAIMS, CONFIG, HALF_OPEN};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use pv_net_common::{
    ClaimSlot, FlowKey, HalfOpenFlow,
    flow::{CLAIM_TURN_SLOTS, FLOW_STACK},
};

/// The ring of the device's own flows; the outside has 0, as in a [`FlowKey`], and a container its link.
pub const DEVICE: u32 = u32::MAX;
/// The ring of those who come to containers by other links than uplinks.
pub const STRANGERS: u32 = u32::MAX - 1;

/// The flow that `origin` opened came into the half-open table, under the key of its replies: it has the ring's next place.
#[inline(always)]
pub fn take(origin: &FlowKey, reply_key: &FlowKey) {
    take_of(origin.ifindex, reply_key);
}

/// What had the place before goes, if it is still that opener's. Each CPU has a part of each ring to itself, so that no
/// two take one place.
#[inline(always)]
pub fn take_of(ring: u32, reply_key: &FlowKey) {
    let Some(config) = CONFIG.get(0) else { return };
    let size = u32::from(config.claims);
    let Some(turn) = CLAIM_TURNS.get_ptr_mut(ring & (CLAIM_TURN_SLOTS - 1)) else { return };
    if size == 0 {
        return;
    }
    // SAFETY: a per-CPU slot, and no program preempts this one; the helper has no preconditions.
    let (n, cpu) = unsafe {
        *turn = (*turn).wrapping_add(1);
        (*turn % size, bpf_get_smp_processor_id())
    };
    let slot = ClaimSlot { ring, place: cpu << 16 | n };
    let Some(place) = CLAIMS.get_ptr_mut(&slot) else {
        let _ = CLAIMS.insert(&slot, reply_key, 0);
        return;
    };
    // SAFETY: a map value stays readable for the program's run.
    let place = unsafe { &mut *place };
    if *place == *reply_key {
        return;
    }
    // SAFETY: as above.
    if HALF_OPEN.get_ptr(&*place).is_some_and(|old| is_of(ring, unsafe { &*old })) {
        let _ = HALF_OPEN.remove(&*place);
    }
    *place = *reply_key;
}

/// Whether `flow` was opened by whose ring it is. Notes of what the device and strangers send to a container bear that
/// one's link.
#[inline(always)]
fn is_of(ring: u32, flow: &HalfOpenFlow) -> bool {
    match ring {
        DEVICE | STRANGERS => flow.reply.flags & FLOW_STACK != 0,
        _ => flow.origin.ifindex == ring,
    }
}
