//! Limits on what one sender may use of two tables that everybody shares: the kernel's neighbour table and the bridge's
//! multicast groups.

use crate::maps::{FILTER_BUCKETS, FLOW_COUNTS};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use pv_net_common::{FilterRate, FilterSource, Ip, LinkId, uplink_filter::DEFAULT_PREFIX6};

/// The limit for packets to unknown neighbours. Each makes the kernel send a solicitation and keep an entry for a
/// minute or more, and the whole device has 1,024 entries (`gc_thresh3`).
const NEIGHBOURS: FilterRate = FilterRate::new(2, 48);
/// The limit for groups that a container joins. A bridge forgets a group that is not reported again within 260 seconds
/// (RFC 3376 section 8.4), and keeps at most 4,096 (`mcast_hash_max`).
const REPORTS: FilterRate = FilterRate::new(1, 128);

/// A bit in [`FilterSource::family`] that keeps the buckets for neighbours apart from those of the uplinks' filter in
/// the same map.
const OF_NEIGHBOURS: u32 = 0x10;

/// Takes a token: whether the container behind `link` may make the kernel resolve one more neighbour.
#[inline(always)]
pub fn neighbour(link: LinkId) -> bool {
    // SAFETY: a map value stays readable for the program's run. Two CPUs may take the same token; then one packet too
    // many passes.
    FLOW_COUNTS.get_ptr_mut(&link).is_some_and(|of_link| take(&NEIGHBOURS, unsafe { &mut (*of_link).neighbours }, 1))
}

/// Takes `groups` tokens: whether the container behind `link` may report this many more groups.
#[inline(always)]
pub fn reports(link: LinkId, groups: u32) -> bool {
    // SAFETY: as above.
    FLOW_COUNTS.get_ptr_mut(&link).is_some_and(|of_link| take(&REPORTS, unsafe { &mut (*of_link).reports }, groups))
}

/// Takes a token: whether the outside sender with source `src` may make the kernel resolve one more neighbour.
#[inline(always)]
pub fn neighbour_from(src: Ip) -> bool {
    let mut source = FilterSource::within(src, DEFAULT_PREFIX6);
    source.family |= OF_NEIGHBOURS;
    let Some(bucket) = FILTER_BUCKETS.get_ptr_mut(&source) else {
        // The map is an LRU: a full one evicts the oldest bucket.
        let mut bucket = 0;
        return take(&NEIGHBOURS, &mut bucket, 1) && FILTER_BUCKETS.insert(&source, &bucket, 0).is_ok();
    };
    // SAFETY: as above.
    take(&NEIGHBOURS, unsafe { &mut *bucket }, 1)
}

#[inline(always)]
fn take(rate: &FilterRate, full_at: &mut u64, n: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    let next = rate.take_many(*full_at, unsafe { bpf_ktime_get_ns() }, n);
    if let Some(next) = next {
        *full_at = next;
    }
    next.is_some()
}
