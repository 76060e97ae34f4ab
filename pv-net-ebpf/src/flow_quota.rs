//! How many flows each container has in the flow table. A flow counts for its opener; one from outside for the
//! container that serves it.

use crate::maps::{FLOW_COUNTS, FLOW_LIMITS, FLOWS};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use pv_net_common::{
    FlowCount, FlowKey,
    flow::{FLOW_LANES, quota_link},
};

/// What is counted for the container behind a link. It is looked up once for a new flow.
pub struct FlowQuota {
    link: u32,
    count: Option<*mut FlowCount>,
}

impl FlowQuota {
    #[inline(always)]
    pub fn of(link: u32) -> Self {
        Self { link, count: FLOW_COUNTS.get_ptr_mut(&link) }
    }

    /// Whether the container has all the flows that it may have. Two CPUs that ask at once may go one over.
    #[inline(always)]
    pub fn at_limit(&self) -> bool {
        let Some(count) = self.count else { return false };
        let Some(limit) = FLOW_LIMITS.get_ptr(&self.link) else { return false };
        // SAFETY: map values stay readable for the program's run.
        let (count, limit) = unsafe { (&*count, &*limit) };
        limit.most != 0 && count.live(limit.freed) >= limit.most as i64
    }

    /// A flow came into the table.
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

/// Removes both entries of a flow. Whoever took out the opener's has ended the flow, whatever others tried meanwhile.
#[inline(always)]
pub fn remove_flow(forward: &FlowKey, reply: &FlowKey) {
    if FLOWS.remove(forward).is_ok() {
        FlowQuota::of(quota_link(forward, reply)).add(u64::MAX);
    }
    let _ = FLOWS.remove(reply);
}
