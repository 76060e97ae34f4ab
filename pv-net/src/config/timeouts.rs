//! Checks `network.flow_timeouts`.

use super::checker::{Checker, join};
use super::field::Field;
use super::raw;
use crate::model::FlowTimeouts;
use serde_json::Value;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Allowed values: up to a week.
const SECONDS: RangeInclusive<u32> = 1..=604_800;

/// The time-outs, with the defaults of those that are not set.
pub(super) fn check(c: &mut Checker, path: &str, field: &Option<Field<raw::FlowTimeouts>>) -> FlowTimeouts {
    let mut timeouts = FlowTimeouts::default();
    let Some(raw) = c.section(path, field) else { return timeouts };
    for (key, given, value) in [
        ("tcp_opening", &raw.tcp_opening, &mut timeouts.tcp_opening),
        ("tcp", &raw.tcp, &mut timeouts.tcp),
        ("tcp_half_closed", &raw.tcp_half_closed, &mut timeouts.tcp_half_closed),
        ("tcp_closed", &raw.tcp_closed, &mut timeouts.tcp_closed),
        ("udp_opening", &raw.udp_opening, &mut timeouts.udp_opening),
        ("udp", &raw.udp, &mut timeouts.udp),
        ("other", &raw.other, &mut timeouts.other),
    ] {
        let path = join(path, key);
        let Some(seconds) = c.plain(&path, given) else { continue };
        if !SECONDS.contains(seconds) {
            let why = format!("a time-out is {} to {} seconds", SECONDS.start(), SECONDS.end());
            c.wrong(&path, Some(&Value::from(*seconds)), why, None);
        }
        *value = Duration::from_secs(u64::from(*seconds));
    }
    timeouts
}
