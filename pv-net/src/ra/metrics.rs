//! Counts messages of router discovery.

use std::sync::atomic::{AtomicU64, Ordering};

/// A message and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A solicitation that is answered.
    Solicited,
    /// One that is not as it should be.
    Ignored,
    /// An advertisement that nobody asked for.
    Unasked,
    /// One to all, because some asked.
    ToAskers,
    /// One to who asked.
    ToHost,
    /// The last one.
    Last,
    /// One that was not sent.
    Failed,
}

/// Each with its type and what became of it.
const MESSAGES: [(Message, &str, &str); 7] = [
    (Message::Solicited, "solicitation", "answered"),
    (Message::Ignored, "solicitation", "ignored"),
    (Message::Unasked, "advertisement", "unasked"),
    (Message::ToAskers, "advertisement", "multicast"),
    (Message::ToHost, "advertisement", "unicast"),
    (Message::Last, "advertisement", "last"),
    (Message::Failed, "advertisement", "failed"),
];

/// The counts.
#[derive(Debug, Default)]
pub struct Metrics([AtomicU64; MESSAGES.len()]);

impl Metrics {
    /// One more of these.
    pub fn count(&self, message: Message) {
        let at = MESSAGES.iter().position(|(known, ..)| *known == message);
        if let Some(counter) = at.and_then(|at| self.0.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every count that is not zero, with type and result.
    pub fn messages(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let each = self.0.iter().zip(MESSAGES).map(|(n, (_, kind, result))| (kind, result, n.load(Ordering::Relaxed)));
        each.filter(|(.., n)| *n > 0)
    }
}
