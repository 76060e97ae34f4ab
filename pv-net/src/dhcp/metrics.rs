//! Counts messages, both ways, by type.

use super::message::{Kind, Unread};
use std::sync::atomic::{AtomicU64, Ordering};

/// A message that came, or what it was instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of a client.
    Query(Kind),
    /// It was not read.
    Unread(Unread),
    /// Its MAC is not that of its frame.
    Forged,
    /// Its client sends too many.
    Limited,
}

/// A message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// This address can be had.
    Offer,
    /// It is yours; or what was asked for besides.
    Ack,
    /// It is not yours.
    Nak,
}

/// Why a client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It is not managed, and the pool has no range.
    NoRange,
    /// All addresses of the range are in use.
    Exhausted,
    /// Clients behind its port have all that they may have.
    PortLimit,
    /// It speaks to another server.
    OtherServer,
    /// Nothing is known of its address (RFC 2131 section 4.3.2: another server may know).
    Unknown,
    /// What it asked for before is not done yet, or too much is being done.
    Busy,
    /// Its message says nothing that could be answered.
    Senseless,
    /// What it says is noted, and needs no answer.
    Done,
}

const RECEIVED: [(Received, &str); 11] = [
    (Received::Query(Kind::Discover), "discover"),
    (Received::Query(Kind::Request), "request"),
    (Received::Query(Kind::Decline), "decline"),
    (Received::Query(Kind::Release), "release"),
    (Received::Query(Kind::Inform), "inform"),
    (Received::Unread(Unread::Malformed), "malformed"),
    (Received::Unread(Unread::Bootp), "bootp"),
    (Received::Unread(Unread::Relayed), "relayed"),
    (Received::Unread(Unread::Other), "other"),
    (Received::Forged, "forged"),
    (Received::Limited, "limited"),
];

const SENT: [(Sent, &str); 3] = [(Sent::Offer, "offer"), (Sent::Ack, "ack"), (Sent::Nak, "nak")];

const SILENCES: [(Silence, &str); 8] = [
    (Silence::NoRange, "no-range"),
    (Silence::Exhausted, "exhausted"),
    (Silence::PortLimit, "port-limit"),
    (Silence::OtherServer, "other-server"),
    (Silence::Unknown, "unknown"),
    (Silence::Busy, "busy"),
    (Silence::Senseless, "senseless"),
    (Silence::Done, "done"),
];

/// The counts.
#[derive(Debug, Default)]
pub struct Metrics {
    received: [AtomicU64; RECEIVED.len()],
    sent: [AtomicU64; SENT.len()],
    silent: [AtomicU64; SILENCES.len()],
}

fn count<T: PartialEq>(names: &[(T, &str)], counters: &[AtomicU64], what: &T) {
    let at = names.iter().position(|(known, _)| known == what);
    if let Some(counter) = at.and_then(|at| counters.get(at)) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn all<T: Copy>(
    names: &'static [(T, &'static str)],
    counters: &[AtomicU64],
) -> impl Iterator<Item = (&'static str, u64)> {
    names.iter().zip(counters).map(|((_, name), counter)| (*name, counter.load(Ordering::Relaxed)))
}

impl Metrics {
    /// A message came.
    pub fn received(&self, what: Received) {
        count(&RECEIVED, &self.received, &what);
    }

    /// A message was sent.
    pub fn sent(&self, what: Sent) {
        count(&SENT, &self.sent, &what);
    }

    /// A message of a client is not answered.
    pub fn silent(&self, why: Silence) {
        count(&SILENCES, &self.silent, &why);
    }

    /// What came, by its name.
    pub fn all_received(&self) -> impl Iterator<Item = (&'static str, u64)> {
        all(&RECEIVED, &self.received)
    }

    /// What was sent, by its name.
    pub fn all_sent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        all(&SENT, &self.sent)
    }

    /// What was not answered, by why.
    pub fn all_silent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        all(&SILENCES, &self.silent)
    }
}
