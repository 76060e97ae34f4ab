//! Checks `network.uplink_filter`.

use super::checker::{Checker, join};
use super::field::Field;
use super::{policy, raw};
use crate::model::{RateLimit, UplinkFilter};
use ipnetwork::IpNetwork;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

const PACKETS_PER_SECOND: RangeInclusive<u32> = 1..=100_000_000;
const BURST: RangeInclusive<u32> = 1..=1_000_000;
const IPV6_PREFIX: RangeInclusive<u32> = 1..=128;
/// Default for the length of an IPv6 network that counts as one source (RFC 4291 section 2.5.4).
const DEFAULT_IPV6_PREFIX: u8 = 64;
/// Most denied networks; the map must also have room for the pools' networks.
const MAX_DENY: usize = 16_000;

/// The filter, when there is one.
pub(super) fn check(c: &mut Checker, path: &str, field: &Option<Field<raw::UplinkFilter>>) -> Option<UplinkFilter> {
    let raw = c.section(path, field)?;
    Some(UplinkFilter {
        deny: deny(c, &join(path, "deny"), raw),
        rate_limit: rate_limit(c, &join(path, "rate_limit"), raw),
        xdp: c.plain(&join(path, "xdp"), &raw.xdp).copied().unwrap_or_default(),
    })
}

fn deny(c: &mut Checker, path: &str, raw: &raw::UplinkFilter) -> Vec<IpNetwork> {
    let list = c.plain(path, &raw.deny).cloned().unwrap_or_default();
    if list.len() > MAX_DENY {
        c.wrong(path, None, format!("has {} networks, and {MAX_DENY} are the most", list.len()), None);
    }
    let mut seen = BTreeSet::new();
    for (i, field) in list.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let value = field.value.clone();
        if let Some(network) = c.text_with(&path, &Some(field), policy::cidr)
            && !seen.insert(network)
        {
            c.wrong(&path, Some(&value), "stands twice in the list", None);
        }
    }
    seen.into_iter().collect()
}

fn rate_limit(c: &mut Checker, path: &str, raw: &raw::UplinkFilter) -> Option<RateLimit> {
    let raw = c.section(path, &raw.rate_limit)?;
    let rate = number(c, &join(path, "packets_per_second"), &raw.packets_per_second, &PACKETS_PER_SECOND);
    let burst = number(c, &join(path, "burst"), &raw.burst, &BURST);
    let ipv6_prefix = number(c, &join(path, "ipv6_prefix"), &raw.ipv6_prefix, &IPV6_PREFIX);
    if raw.packets_per_second.is_none() {
        c.wrong(path, None, "has no \"packets_per_second\"", None);
    }
    let packets_per_second = rate?;
    Some(RateLimit {
        packets_per_second,
        burst: burst.unwrap_or(packets_per_second.min(*BURST.end())),
        ipv6_prefix: ipv6_prefix.and_then(|bits| bits.try_into().ok()).unwrap_or(DEFAULT_IPV6_PREFIX),
    })
}

fn number(c: &mut Checker, path: &str, field: &Option<Field<u32>>, range: &RangeInclusive<u32>) -> Option<u32> {
    let number = *c.plain(path, field)?;
    if !range.contains(&number) {
        let why = format!("is not a number from {} to {}", range.start(), range.end());
        c.wrong(path, Some(&Value::from(number)), why, None);
        return None;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use crate::config::parse_device;
    use crate::config::tests::{Case, expect};
    use crate::model::{Device, XdpChoice};
    use serde_json::{Value, json};

    fn parse(filter: &Value) -> Result<Device, Vec<crate::config::ConfigError>> {
        parse_device("device.json", &json!({"network": {"uplink_filter": filter}}).to_string())
    }

    #[test]
    fn filters_that_are_wrong() {
        let cases: [Case; 3] = [
            (
                "every field",
                json!({"deny": ["203.0.113.1/24", "::ffff:1.2.3.4", "10.9.0.0/16", "10.9.0.0/16"],
                    "rate_limit": {"packets_per_second": 0, "burst": 0, "ipv6_prefix": 129}, "xdp": "fast"}),
                &[
                    ("network.uplink_filter.deny[0]", "host bits"),
                    ("network.uplink_filter.deny[1]", "IPv4-mapped"),
                    ("network.uplink_filter.deny[3]", "twice"),
                    ("network.uplink_filter.rate_limit.packets_per_second", "1 to 100000000"),
                    ("network.uplink_filter.rate_limit.burst", "1 to 1000000"),
                    ("network.uplink_filter.rate_limit.ipv6_prefix", "1 to 128"),
                    ("network.uplink_filter.xdp", "unknown variant"),
                ],
            ),
            (
                "no rate, and a field that is none",
                json!({"rate_limit": {"burst": 5}, "drop": []}),
                &[
                    ("network.uplink_filter.drop", "unknown field"),
                    ("network.uplink_filter.rate_limit", "packets_per_second"),
                ],
            ),
            ("nothing but the pools", json!({}), &[]),
        ];
        for (name, filter, want) in cases {
            expect(name, parse(&filter), want);
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        assert_eq!(parse_device("device.json", "{}").expect("valid").uplink_filter, None);
        let device = parse(&json!({"rate_limit": {"packets_per_second": 9}, "deny": ["203.0.113.7"]})).expect("valid");
        let filter = device.uplink_filter.expect("a filter");
        let limit = filter.rate_limit.map(|r| (r.burst, r.ipv6_prefix));
        assert_eq!((filter.xdp, limit), (XdpChoice::Auto, Some((9, 64))));
        assert_eq!(filter.deny, ["203.0.113.7/32".parse().expect("network")]);
    }
}
