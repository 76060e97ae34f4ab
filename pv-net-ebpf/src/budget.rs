//! What one sender may have of tables that all share: the kernel's neighbours and the bridge's groups.

use crate::maps::{FILTER_BUCKETS, FLOW_COUNTS};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use pv_net_common::{FilterRate, FilterSource, Ip, uplink_filter::DEFAULT_PREFIX6};

/// Packets to neighbours that are not known: each makes the kernel ask, and keep an entry for a minute or more, of 1,024
/// (`gc_thresh3`) that the whole device has.
const NEIGHBOURS: FilterRate = FilterRate::new(2, 48);
/// Groups that a container reports. A bridge forgets one that is not reported again after 260 seconds (RFC 3376
/// section 8.4), and keeps 4,096 (`mcast_hash_max`).
const REPORTS: FilterRate = FilterRate::new(1, 128);

/// In the family of a source's bucket: it is for neighbours, not for the uplinks' filter.
const OF_NEIGHBOURS: u32 = 0x10;

/// Whether the container behind `link` may make the kernel ask for one more neighbour.
#[inline(always)]
pub fn neighbour(link: u32) -> bool {
    // SAFETY: a map value stays readable for the program's run. Two CPUs may take the same token: that is one more.
    FLOW_COUNTS.get_ptr_mut(&link).is_some_and(|of_link| take(&NEIGHBOURS, unsafe { &mut (*of_link).neighbours }, 1))
}

/// Whether it may report so many groups more.
#[inline(always)]
pub fn reports(link: u32, groups: u32) -> bool {
    // SAFETY: as above.
    FLOW_COUNTS.get_ptr_mut(&link).is_some_and(|of_link| take(&REPORTS, unsafe { &mut (*of_link).reports }, groups))
}

/// Whether who sends from outside with `src` may make the kernel ask for one more neighbour.
#[inline(always)]
pub fn neighbour_from(src: Ip) -> bool {
    let mut source = FilterSource::within(src, DEFAULT_PREFIX6);
    source.family |= OF_NEIGHBOURS;
    let Some(bucket) = FILTER_BUCKETS.get_ptr_mut(&source) else {
        // A full LRU makes room.
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
