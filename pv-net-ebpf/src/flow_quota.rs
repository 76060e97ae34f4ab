//! How many flows each container has in the flow table. A flow counts for the container that opened it; a flow from
//! outside counts for the container that serves it.

use crate::maps::{FLOW_COUNTS, FLOW_LIMITS, FLOWS};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use pv_net_common::{
    FlowCount, FlowKey, LinkId,
    flow::{FLOW_LANES, quota_link},
};

/// The counter of the container behind `link`, looked up once for each new flow.
pub struct FlowQuota {
    link: LinkId,
    count: Option<*mut FlowCount>,
}

impl FlowQuota {
    #[inline(always)]
    pub fn of(link: LinkId) -> Self {
        Self { link, count: FLOW_COUNTS.get_ptr_mut(&link) }
    }

    /// Whether the container has all the flows that it may have. Two CPUs that ask at the same time may exceed the
    /// limit by one.
    #[inline(always)]
    pub fn at_limit(&self) -> bool {
        let Some(count) = self.count else { return false };
        let Some(limit) = FLOW_LIMITS.get_ptr(&self.link) else { return false };
        // SAFETY: map values stay readable for the program's run.
        let (count, limit) = unsafe { (&*count, &*limit) };
        limit.most != 0 && count.live(limit.freed) >= limit.most as i64
    }

    /// Counts a flow that was entered into the table.
    #[inline(always)]
    pub fn made(&self) {
        self.add(1);
    }

    #[inline(always)]
    fn add(&self, flows: u64) {
        let Some(count) = self.count else { return };
        // SAFETY: the helper has no preconditions.
        let lane = unsafe { bpf_get_smp_processor_id() } as usize & (FLOW_LANES - 1);
        // SAFETY: a lane of a map value; this CPU's own, and another program does not preempt this one.
        unsafe {
            let lane = (&raw mut (*count).lanes).cast::<u64>().add(lane);
            lane.write(lane.read().wrapping_add(flows));
        }
    }
}

/// Removes both entries of a flow. The CPU that removes the opener's entry counts the flow as ended; a second attempt
/// finds it gone and counts nothing.
#[inline(always)]
pub fn remove_flow(forward: &FlowKey, reply: &FlowKey) {
    if FLOWS.remove(forward).is_ok() {
        FlowQuota::of(quota_link(forward, reply)).add(u64::MAX);
    }
    let _ = FLOWS.remove(reply);
}
