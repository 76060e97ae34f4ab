//! Verdicts of TC programs, and the counters and events that go with them.

use crate::{
    maps::{DROPS, EVENT_TIMES, EVENTS, STATS},
    packet::Packet,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use pv_net_common::{DropEvent, DropReason, FlowKey, Stat, event::EVENT_INTERVAL_NS};

/// `TC_ACT_OK`: the packet goes on to the bridge or the stack.
pub const ACT_OK: i32 = 0;
/// `TC_ACT_SHOT`: the packet is dropped.
pub const ACT_SHOT: i32 = 2;
/// `TCX_NEXT`: the next program on the link decides.
pub const NEXT: i32 = -1;

/// Adds one packet to a counter.
#[inline(always)]
pub fn count(stat: Stat) {
    if let Some(slot) = STATS.get_ptr_mut(stat as u32) {
        // SAFETY: a per-CPU slot; the program is not preempted by another one that counts on this CPU.
        unsafe { *slot += 1 };
    }
}

/// Drops `packet`: counts it, and sends an event unless one for this reason was sent less than [`EVENT_INTERVAL_NS`]
/// ago.
#[inline(always)]
pub fn drop(packet: &Packet, reason: DropReason) -> i32 {
    note_drop(packet, reason);
    ACT_SHOT
}

/// Counts a drop and sends its event, for a packet that is answered instead.
#[inline(always)]
pub fn note_drop(packet: &Packet, reason: DropReason) {
    note(&packet.key, reason);
}

/// [`note_drop`] for a frame that is dropped before it is a [`Packet`].
#[inline(always)]
pub fn note(key: &FlowKey, reason: DropReason) {
    let index = reason as u32;
    if let Some(slot) = DROPS.get_ptr_mut(index) {
        // SAFETY: as in `count`.
        unsafe { *slot += 1 };
    }
    let Some(now) = event_time(index) else { return };
    let Some(mut slot) = EVENTS.reserve_untyped::<DropEvent>(0) else {
        count(Stat::EventsLost);
        return;
    };
    slot.write(DropEvent {
        time_ns: now,
        src: key.src,
        dst: key.dst,
        sport_be: key.sport_be,
        dport_be: key.dport_be,
        ifindex: key.link.number(),
        reason: index,
        proto: key.proto,
    });
    slot.submit(0);
}

/// The time in nanoseconds since boot, if the last event of this kind is at least [`EVENT_INTERVAL_NS`] ago.
#[inline(always)]
pub fn event_time(kind: u32) -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let last = EVENT_TIMES.get_ptr_mut(kind)?;
    // SAFETY: as in `count`.
    unsafe {
        if now - *last < EVENT_INTERVAL_NS {
            return None;
        }
        *last = now;
    }
    Some(now)
}
