//! Each opener's share of the half-open table. Each container, the outside, the device and strangers have a ring with
//! the keys of the entries that they claimed. When a ring is full, the next claim removes the ring's oldest entry, so
//! that nobody evicts the entries of others.

use crate::maps::{CLAIM_TURNS, CLAIMS, CONFIG, HALF_OPEN};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use pv_net_common::{
    ClaimSlot, FlowKey, HalfOpenFlow,
    flow::{CLAIM_TURN_SLOTS, FLOW_STACK},
};

/// The ring of the device's own flows. The outside has ring 0, as in a [`FlowKey`], and a container the index of its
/// link.
pub const DEVICE: u32 = u32::MAX;
/// The ring of senders who reach containers by links that are no uplinks.
pub const STRANGERS: u32 = u32::MAX - 1;

/// Enters the flow that `origin` opened into its opener's ring. `reply_key` is its key in the half-open table.
#[inline(always)]
pub fn take(origin: &FlowKey, reply_key: &FlowKey) {
    take_of(origin.link.number(), reply_key);
}

/// Enters `reply_key` into `ring`, and removes the entry that had the place before if it still belongs to that opener.
/// Each CPU has its own part of each ring, so that no two CPUs use one place.
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

/// Whether `flow` was opened by the owner of `ring`. A note of what the device or a stranger sent to a container has
/// the container's link in its key, so it is told by its flag.
#[inline(always)]
fn is_of(ring: u32, flow: &HalfOpenFlow) -> bool {
    match ring {
        DEVICE | STRANGERS => flow.reply.flags & FLOW_STACK != 0,
        _ => flow.origin.link.number() == ring,
    }
}
