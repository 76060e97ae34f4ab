//! The clock that leases of clients end by.

/// Seconds since 1970 (UTC).
///
/// A lease outlives the daemon and the device's running, so no other clock can tell when it ends. This one jumps when the
/// device learns the time. Nobody loses an address by that: one whose lease is over too early stays its client's until
/// somebody else needs it, and is looked for by ARP first.
#[must_use]
#[expect(clippy::disallowed_types, reason = "a lease outlives every clock that does not jump")]
pub fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
