//! `network.uplink_filter`.

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
/// Leaves room for the pools' networks in the map.
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
    if raw.packets_per_second.is_none() {
        c.wrong(path, None, "has no \"packets_per_second\"", None);
    }
    let packets_per_second = rate?;
    Some(RateLimit { packets_per_second, burst: burst.unwrap_or(packets_per_second.min(*BURST.end())) })
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
