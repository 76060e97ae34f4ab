//! What the XDP program on the uplinks drops before the stack sees it.

use crate::Ip;

/// Key of the `filter_sources` trie, behind its prefix length, and of the `filter_buckets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterSource {
    /// 4 or 6: a short IPv6 prefix, such as `::/0`, must not hold the IPv4-mapped addresses.
    pub family: u32,
    /// Source address of a packet.
    pub addr: Ip,
}

const _: () = assert!(size_of::<FilterSource>() == 20);

impl FilterSource {
    /// Bits in front of the address.
    pub const HEAD_BITS: u32 = 32;

    /// The source with this address.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Ip) -> Self {
        Self { family: if addr.is_v4() { 4 } else { 6 }, addr }
    }
}

/// The one entry of the `filter_rate` map: what each source may send. All zero: as much as it likes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterRate {
    /// Nanoseconds that one packet costs.
    pub packet_ns: u64,
    /// Nanoseconds that a source may be ahead of its rate.
    pub burst_ns: u64,
}

const _: () = assert!(size_of::<FilterRate>() == 16);

impl FilterRate {
    /// `burst` packets at once, then `packets_per_second`; both at least 1.
    #[must_use]
    pub const fn new(packets_per_second: u32, burst: u32) -> Self {
        let per_second = if packets_per_second == 0 { 1 } else { packets_per_second };
        let packet_ns = 1_000_000_000 / per_second as u64;
        Self { packet_ns, burst_ns: packet_ns * burst as u64 }
    }

    /// The bucket of a source after one more packet at `now`, or `None` when that is above its rate.
    ///
    /// A bucket is one number, the time at which it would be full again (the "virtual scheduling" form of ITU-T
    /// I.371): nothing has to be poured in while no packet comes.
    #[inline(always)]
    #[must_use]
    pub const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        let ahead = full_at.saturating_sub(now);
        // This rate lets nobody get further ahead than its burst: the bucket is an earlier, slower rate's.
        let ahead = if ahead > self.burst_ns { 0 } else { ahead } + self.packet_ns;
        if ahead > self.burst_ns { None } else { Some(now + ahead) }
    }
}

/// Most prefixes in the `filter_sources` trie: the deny list and the pools' networks.
pub const MAX_FILTER_SOURCES: u32 = 16_384;
/// Sources whose rate is known at a time.
pub const MAX_FILTER_BUCKETS: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::FilterRate;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = FilterRate::new(1000, 5);
        let mut full_at = 0;
        let start = 7_000_000_000;
        for n in 0..5 {
            full_at = rate.take(full_at, start).unwrap_or_else(|| panic!("packet {n} of the burst"));
        }
        assert_eq!(rate.take(full_at, start), None);
        assert_eq!(rate.take(full_at, start + 999_999), None);
        let next = rate.take(full_at, start + 1_000_000);
        assert!(next.is_some());
        // A long silence saves up no more than the burst.
        let mut full_at = next.unwrap_or_default();
        let later = start + 3_600_000_000_000;
        for _ in 0..5 {
            full_at = rate.take(full_at, later).unwrap_or_default();
            assert!(full_at > later);
        }
        assert_eq!(rate.take(full_at, later), None);
    }

    #[test]
    fn a_bucket_of_another_rate_blocks_nobody() {
        let (slow, fast) = (FilterRate::new(1, 1_000_000), FilterRate::new(1_000_000, 10));
        let now = 1_000_000_000;
        let mut full_at = 0;
        for _ in 0..1000 {
            full_at = slow.take(full_at, now).unwrap_or_default();
        }
        assert_eq!(fast.take(full_at, now), Some(now + 1000));
    }
}
