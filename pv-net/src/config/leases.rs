//! What the settings of DHCP, DHCPv6 and router advertisements have in common.

use super::checker::Checker;
use super::field::Field;
use super::{net, raw};
use serde_json::Value;
use std::ops::RangeInclusive;

/// Seconds that a lease lasts unless the configuration says so.
const LEASE_TIME: u32 = 3600;
/// Below, clients do little else than renew; a time of more than a year is meant to be none.
const LEASE_TIMES: RangeInclusive<u32> = 10..=365 * 86_400;

/// Addresses that those behind one port have unless it is set: a large range has more than the disk and memory of the
/// device.
const MOST_OF_PORT: u32 = 1024;

/// Notes that `path` is wrong if the pool has no bridge: a pool on a parent link is in the network of that link, which has
/// its own `server`, such as a router.
pub(super) fn on_bridge(c: &mut Checker, path: &str, raw: &raw::Pool, server: &str) {
    let kind = raw.r#type.as_ref().and_then(|kind| kind.parsed.as_ref().ok());
    if let Some(raw::PoolType::Macvlan | raw::PoolType::Ipvlan) = kind {
        let help = Some(format!("the network of its parent has its own {server}"));
        c.wrong(path, None, format!("only a pool of type bridge has a {server}"), help);
    }
}

/// The time of a lease in seconds.
pub(super) fn lease_time(c: &mut Checker, path: &str, field: &Option<Field<String>>) -> u32 {
    let within = |text: &str| {
        let secs = net::seconds(text)?;
        let (least, most) = (LEASE_TIMES.start(), LEASE_TIMES.end() / 86_400);
        if LEASE_TIMES.contains(&secs) { Ok(secs) } else { Err(format!("a lease lasts {least}s to {most}d")) }
    };
    c.text_with(path, field, within).unwrap_or(LEASE_TIME)
}

/// The first and last address for clients. `parse` reads one, and `unfit` says why a range that does not run backwards
/// does not fit the pool.
pub(super) fn range<A: Copy + Ord>(
    c: &mut Checker,
    path: &str,
    field: &Option<Field<Vec<Field<String>>>>,
    parse: fn(&str) -> Result<A, String>,
    unfit: impl FnOnce(A, A) -> Option<String>,
) -> Option<(A, A)> {
    let range = c.plain(path, field)?;
    let value = Value::from(range.iter().map(|f| f.value.clone()).collect::<Vec<_>>());
    let [first, last] = range.as_slice() else {
        c.wrong(path, Some(&value), "a range is two addresses: the first and the last", None);
        return None;
    };
    let first = c.text_with(&format!("{path}[0]"), &Some(first.clone()), parse);
    let last = c.text_with(&format!("{path}[1]"), &Some(last.clone()), parse);
    let (first, last) = first.zip(last)?;
    let why = if first > last { Some("runs backwards".to_owned()) } else { unfit(first, last) };
    if let Some(why) = why {
        c.wrong(path, Some(&value), why, None);
        return None;
    }
    Some((first, last))
}

/// How many addresses those behind one port may have of a range of `size` addresses: unless set, half of it, so that they
/// never have all of it, and no more than [`MOST_OF_PORT`].
pub(super) fn per_port(c: &mut Checker, path: &str, field: &Option<Field<u32>>, has_range: bool, size: u128) -> u32 {
    let most = u32::try_from(size.div_ceil(2)).unwrap_or(u32::MAX).min(MOST_OF_PORT);
    let Some(given) = c.plain(path, field).copied() else { return most };
    if given == 0 {
        c.wrong(path, Some(&Value::from(given)), "nobody would be given an address", None);
    } else if !has_range {
        c.wrong(path, Some(&Value::from(given)), "there is no range that it is a part of", None);
    }
    given
}
