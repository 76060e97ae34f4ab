//! Counts questions by type and by result.

use super::wire::RecordType;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The result of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Answered with records of the device's own names.
    Own,
    /// The device has the name, but not this type.
    NoData,
    /// The device knows that this client sees no such name.
    NoName,
    /// It was refused.
    Refused,
    /// The message was no valid question.
    Malformed,
    /// Answered from the cache.
    Cache,
    /// Answered with an old answer from the cache, since no server has answered.
    Stale,
    /// Answered by another server.
    Upstream,
    /// No server answered.
    Failed,
    /// The client has asked too many questions.
    Limited,
    /// The answer was withheld, since it had private addresses and may not have any.
    Blocked,
}

const ENDS: [(Ended, &str); 11] = [
    (Ended::Own, "own"),
    (Ended::NoData, "nodata"),
    (Ended::NoName, "noname"),
    (Ended::Refused, "refused"),
    (Ended::Malformed, "malformed"),
    (Ended::Cache, "cache"),
    (Ended::Stale, "stale"),
    (Ended::Upstream, "upstream"),
    (Ended::Failed, "failed"),
    (Ended::Limited, "limited"),
    (Ended::Blocked, "blocked"),
];

/// Types that are counted separately; all others are counted together.
const TYPES: [(RecordType, &str); 10] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::PTR, "PTR"),
    (RecordType::SRV, "SRV"),
    (RecordType::TXT, "TXT"),
    (RecordType::MX, "MX"),
    (RecordType::NS, "NS"),
    (RecordType::SOA, "SOA"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::ZERO, "other"),
];

/// The counts.
#[derive(Debug)]
pub struct Metrics {
    queries: [[AtomicU64; ENDS.len()]; TYPES.len()],
    /// Seconds until another server answered.
    pub upstream_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // From 1 ms to 4 s.
        Self { queries: Default::default(), upstream_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 13)) }
    }
}

impl Metrics {
    /// Counts a question for records of type `kind` with this result.
    pub fn count(&self, kind: RecordType, ended: Ended) {
        let at = TYPES.iter().position(|(known, _)| *known == kind).unwrap_or(TYPES.len() - 1);
        let counters = &self.queries[at];
        if let Some(counter) = ENDS.iter().position(|(known, _)| *known == ended).and_then(|at| counters.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that another server has answered after `took`.
    pub fn upstream(&self, took: Duration) {
        self.upstream_seconds.observe(took.as_secs_f64());
    }

    /// Every count that is not zero, with the names of its type and result.
    pub fn queries(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.queries.iter().zip(TYPES).flat_map(|(ends, (_, kind))| {
            let each = ends.iter().zip(ENDS).map(move |(n, (_, end))| (kind, end, n.load(Ordering::Relaxed)));
            each.filter(|(.., n)| *n > 0)
        })
    }
}
