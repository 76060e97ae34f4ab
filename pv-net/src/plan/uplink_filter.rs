//! The contents of the maps of the uplinks' filter. Pure.

use crate::model::{Pool, RateLimit, UplinkFilter};
use ipnetwork::IpNetwork;
use pv_net_common::{DropReason, FilterRate, FilterSource};
use std::collections::BTreeMap;

/// Bits in front of the IPv4 address in its IPv4-mapped form.
const V4_BITS: u32 = 96;

/// Prefixes of sources to drop, each with the number of the drop reason. When a source matches both a denied prefix and
/// a pool's network, the longer prefix decides the reason; when they are equal, the pool's.
#[must_use]
pub fn filter_sources<'a>(
    filter: &UplinkFilter,
    pools: impl IntoIterator<Item = &'a Pool>,
) -> BTreeMap<(u32, FilterSource), u32> {
    let denied = filter.deny.iter().map(|n| (prefix(*n), DropReason::DenyListed as u32));
    let networks = pools.into_iter().flat_map(Pool::own_networks);
    denied.chain(networks.map(|n| (prefix(n), DropReason::SpoofedPool as u32))).collect()
}

/// The limit for each source; all zero when there is none.
#[must_use]
pub fn filter_rate(filter: &UplinkFilter) -> FilterRate {
    let of_limit =
        |r: RateLimit| FilterRate { prefix6: r.ipv6_prefix.into(), ..FilterRate::new(r.packets_per_second, r.burst) };
    filter.rate_limit.map_or_else(FilterRate::default, of_limit)
}

/// A network as a prefix of [`FilterSource`]s: number of bits that count, and the bits.
pub(super) fn prefix(network: IpNetwork) -> (u32, FilterSource) {
    let bits = u32::from(network.prefix()) + if network.is_ipv4() { V4_BITS } else { 0 };
    (FilterSource::HEAD_BITS + bits, FilterSource::new(network.network().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_device;

    #[test]
    fn pools_and_the_deny_list_are_in_one_trie() {
        let text = r#"{"network": {"pools": {"p": {"subnet": "10.0.3.0/24", "subnet6": "fd00:3::/64"}},
            "uplink_filter": {"deny": ["203.0.113.0/24", "10.0.3.0/24", "::/0"],
                "rate_limit": {"packets_per_second": 1000, "burst": 3, "ipv6_prefix": 56}}}}"#;
        let device = parse_device("device.json", text).expect("valid");
        let filter = device.uplink_filter.expect("a filter");
        let sources = filter_sources(&filter, device.pools.values());
        let found: Vec<(u32, u32, std::net::IpAddr, u32)> =
            sources.iter().map(|((bits, s), reason)| (*bits, s.family, s.addr.into(), *reason)).collect();
        let (denied, pool) = (DropReason::DenyListed as u32, DropReason::SpoofedPool as u32);
        let ip = |text: &str| text.parse().expect("address");
        assert_eq!(
            found,
            [
                (32, 6, ip("::"), denied),
                (96, 6, ip("fd00:3::"), pool),
                (152, 4, ip("10.0.3.0"), pool),
                (152, 4, ip("203.0.113.0"), denied)
            ]
        );
        assert_eq!(filter_rate(&filter), FilterRate { packet_ns: 1_000_000, burst_ns: 3_000_000, prefix6: 56, pad: 0 });
        assert_eq!(filter_rate(&UplinkFilter::default()), FilterRate::default());
    }
}
