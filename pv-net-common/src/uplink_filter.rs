//! Types of the XDP program on the uplinks, which drops packets before the stack sees them.

use crate::Ip;

/// Key of the `filter_sources` trie (behind its prefix length) and of the `filter_buckets` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterSource {
    /// 4 or 6. Without it, a short IPv6 prefix such as `::/0` would also match the IPv4-mapped addresses.
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

    /// The source with `addr`, cut to its first `prefix6` bits when it is IPv6, since a host with one address of such a
    /// network can use all of them. `prefix6` is at most 128.
    #[inline(always)]
    #[must_use]
    pub const fn within(addr: Ip, prefix6: u32) -> Self {
        let mut source = Self::new(addr);
        if source.family == 6 {
            let mut word = 0;
            while word < 4 {
                source.addr.words_be[word] &= mask_be(prefix6, word as u32);
                word += 1;
            }
        }
        source
    }
}

/// The mask of the 32 bits at `word` of an address with a prefix of `bits`, network byte order.
#[inline(always)]
const fn mask_be(bits: u32, word: u32) -> u32 {
    let here = bits.saturating_sub(word * 32);
    if here >= 32 { u32::MAX } else { !(u32::MAX >> here).to_be() }
}

/// The one entry of the `filter_rate` map: how much each source may send. All zero means no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterRate {
    /// Nanoseconds between two packets at the allowed rate.
    pub packet_ns: u64,
    /// How far a source may be ahead of its rate, nanoseconds.
    pub burst_ns: u64,
    /// Number of bits of an IPv6 address that identify a source.
    pub prefix6: u32,
    /// Written padding.
    pub pad: u32,
}

const _: () = assert!(size_of::<FilterRate>() == 24);

/// Default for [`FilterRate::prefix6`]: a host can choose its address from a whole network of this size (RFC 4291
/// section 2.5.4).
pub const DEFAULT_PREFIX6: u32 = 64;

impl FilterRate {
    /// A rate of `packets_per_second`, with `burst` packets at once; both count as at least 1.
    #[must_use]
    pub const fn new(packets_per_second: u32, burst: u32) -> Self {
        let per_second = if packets_per_second == 0 { 1 } else { packets_per_second };
        let packet_ns = 1_000_000_000 / per_second as u64;
        Self { packet_ns, burst_ns: packet_ns * burst as u64, prefix6: DEFAULT_PREFIX6, pad: 0 }
    }

    /// The bucket of a source after one more packet at time `now` (nanoseconds), or `None` when the packet is above the
    /// rate.
    ///
    /// A bucket is a single number, the time at which it would be full again (the "virtual scheduling" form of ITU-T
    /// I.371), so nothing needs to be updated while no packet comes.
    #[inline(always)]
    #[must_use]
    pub const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        self.take_many(full_at, now, 1)
    }

    /// [`take`](Self::take) for `n` packets at once.
    #[inline(always)]
    #[must_use]
    pub const fn take_many(&self, full_at: u64, now: u64, n: u32) -> Option<u64> {
        let ahead = full_at.saturating_sub(now);
        // More than the burst ahead: the bucket was written under an earlier, slower rate and is discarded.
        let ahead = if ahead > self.burst_ns { 0 } else { ahead } + self.packet_ns * n as u64;
        if ahead > self.burst_ns { None } else { Some(now + ahead) }
    }
}

/// Most prefixes in the `filter_sources` trie: the deny list and the pools' networks.
pub const MAX_FILTER_SOURCES: u32 = 16_384;
/// Number of sources whose rate is tracked at a time.
pub const MAX_FILTER_BUCKETS: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::{FilterRate, FilterSource};
    use crate::Ip;
    use core::net::IpAddr;

    #[test]
    fn ipv6_sources_are_networks() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().expect("an address"));
        for (addr, prefix, want) in [
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"),
            ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
            ("2001:db8:1:2:3:4:5:6", 56, "2001:db8:1::"),
            ("2001:db8:1:2:3:4:5:6", 33, "2001:db8::"),
            ("2001:db8:1:2:3:4:5:6", 0, "::"),
            ("192.0.2.9", 64, "192.0.2.9"),
        ] {
            assert_eq!(FilterSource::within(ip(addr), prefix).addr, ip(want), "{addr}/{prefix}");
        }
    }

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
        // However long the silence, at most the burst is saved up.
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
