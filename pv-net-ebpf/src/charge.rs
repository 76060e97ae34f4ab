//! How many flows each container has in the flow table. A flow counts for its opener; one from outside for the
//! container that serves it.

use crate::maps::{FLOW_COUNTS, FLOWS, FLOWS_FREED, interface};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use pv_net_common::{
    FlowKey,
    flow::{FLOW_LANES, charged_link},
};

/// Whether the container behind `link` has all the flows that it may have. Two CPUs that ask at once may go one over.
#[inline(always)]
pub fn at_limit(link: u32) -> bool {
    let Some(me) = interface(link) else { return false };
    if me.max_flows == 0 {
        return false;
    }
    let Some(count) = FLOW_COUNTS.get_ptr(&link) else { return false };
    let freed = FLOWS_FREED.get_ptr(&link);
    // SAFETY: map values stay readable for the program's run.
    let live = unsafe { (*count).live(freed.map_or(0, |n| *n)) };
    live >= me.max_flows as i64
}

/// A flow came into the table.
#[inline(always)]
pub fn made(link: u32) {
    add(link, 1);
}

/// Removes both entries of a flow. Whoever took out the opener's has ended the flow, whatever others tried meanwhile.
#[inline(always)]
pub fn remove_flow(forward: &FlowKey, reply: &FlowKey) {
    if FLOWS.remove(forward).is_ok() {
        add(charged_link(forward, reply), u64::MAX);
    }
    let _ = FLOWS.remove(reply);
}

#[inline(always)]
fn add(link: u32, flows: u64) {
    let Some(count) = FLOW_COUNTS.get_ptr_mut(&link) else { return };
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } as usize & (FLOW_LANES - 1);
    // SAFETY: a lane of a map value; this CPU's own, and another program does not preempt this one.
    unsafe {
        let lane = (&raw mut (*count).lanes).cast::<u64>().add(lane);
        lane.write(lane.read().wrapping_add(flows));
    }
}
