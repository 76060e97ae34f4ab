//! Counts messages of DHCPv6 by type and by what became of them.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was answered.
    Answered,
    /// It was answered that there is no address.
    NoAddress,
    /// This server does not answer it.
    Ignored,
    /// Its sender exceeds the rate.
    Limited,
    /// The lease was not written, or the answer not sent.
    Failed,
}

const ENDS: [(Ended, &str); 5] = [
    (Ended::Answered, "answered"),
    (Ended::NoAddress, "no-address"),
    (Ended::Ignored, "ignored"),
    (Ended::Limited, "limited"),
    (Ended::Failed, "failed"),
];

/// Types of clients' messages, by their numbers (RFC 8415 section 7.3); the rest is one.
const TYPES: [(u8, &str); 9] = [
    (1, "solicit"),
    (3, "request"),
    (4, "confirm"),
    (5, "renew"),
    (6, "rebind"),
    (8, "release"),
    (9, "decline"),
    (11, "information-request"),
    (0, "other"),
];

/// The counts.
#[derive(Debug, Default)]
pub struct Metrics([[AtomicU64; ENDS.len()]; TYPES.len()]);

impl Metrics {
    /// A message of this type ended so.
    pub fn count(&self, kind: u8, ended: Ended) {
        let at = TYPES.iter().position(|(known, _)| *known == kind).unwrap_or(TYPES.len() - 1);
        let end = ENDS.iter().position(|(known, _)| *known == ended);
        if let Some(counter) = end.and_then(|end| self.0.get(at)?.get(end)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every count that is not zero, with type and result.
    pub fn messages(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.0.iter().zip(TYPES).flat_map(|(ends, (_, kind))| {
            let each = ends.iter().zip(ENDS).map(move |(n, (_, end))| (kind, end, n.load(Ordering::Relaxed)));
            each.filter(|(.., n)| *n > 0)
        })
    }
}
