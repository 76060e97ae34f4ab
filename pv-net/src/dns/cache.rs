//! Keeps answers of other servers as long as they are valid, and some time longer for when no server answers (RFC
//! 8767). Pure.

use super::response::Response;
use super::wire::Query;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most answers that are kept.
const MOST: usize = 4096;
/// Most bytes that all answers use.
const MOST_BYTES: usize = 2 << 20;
/// The size of the largest answer that is kept: a larger one would displace too many others.
const LARGEST: usize = 16 << 10;
/// How long an answer is kept after it has become invalid.
const STALE: Duration = Duration::from_secs(86_400);
/// An answer that was used this often is fetched again shortly before it ends, if it was valid for at least
/// [`SHORTEST`] seconds.
const HOT: u32 = 4;
const SHORTEST: u32 = 10;
/// Bytes that an entry uses besides its key and answer.
const OVERHEAD: usize = 160;

/// The key of an answer: the servers that were asked, the question, and its flags.
pub type Key = Arc<[u8]>;

/// The key for `query` to the servers with number `scope`.
#[must_use]
pub fn key(query: &Query<'_>, scope: u64) -> Key {
    let how = u8::from(query.head.checking_disabled) << 1 | u8::from(query.wants_dnssec());
    let kind = [u16::from(query.rtype()), query.asked.query_class().into()].map(u16::to_be_bytes).concat();
    let mut key = [&scope.to_be_bytes()[..], &[how], &kind].concat();
    for label in query.name.iter() {
        key.push(label.len() as u8);
        key.extend_from_slice(label);
    }
    key.into()
}

/// An answer that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The answer.
    pub response: Arc<Response>,
    came: Instant,
    /// How often the answer was used.
    hits: u32,
    /// No server is asked before this time, since none has answered just now.
    again: Option<Instant>,
}

impl Kept {
    /// Seconds since the answer came.
    #[must_use]
    pub fn age(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.came).as_secs()).unwrap_or(u32::MAX)
    }

    /// Until when clients get it as they do now: then the records' times to live are a second less.
    #[must_use]
    pub fn lasts(&self, now: Instant) -> Instant {
        self.came + Duration::from_secs(u64::from(self.age(now)) + 1)
    }

    /// Whether the answer is still valid.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.age(now) < self.response.ttl
    }

    /// Whether the answer is used often and only a tenth of its time is left. It is then fetched again, so that no
    /// client has to wait.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        let ttl = self.response.ttl;
        self.hits >= HOT && ttl >= SHORTEST && !self.rests(now) && self.age(now) >= ttl - ttl.div_ceil(10)
    }

    /// Whether the old answer is used without asking a server, since none has answered just now.
    #[must_use]
    pub fn rests(&self, now: Instant) -> bool {
        self.again.is_some_and(|again| now < again)
    }
}

struct Entry {
    kept: Kept,
    /// Whether the answer was used since its key was last at the front of the queue.
    is_used: bool,
}

/// The cache.
#[derive(Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// The keys in the order of eviction. A key whose answer was used since is moved to the end instead.
    queue: VecDeque<Key>,
    bytes: usize,
}

fn size(key: &Key, response: &Response) -> usize {
    OVERHEAD + key.len() + response.size()
}

impl Cache {
    /// The answer kept under `key`, whether it is still valid or not.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Kept> {
        let entry = self.entries.get_mut(key)?;
        entry.is_used = true;
        entry.kept.hits = entry.kept.hits.saturating_add(1);
        let is_over = entry.kept.age(now) > entry.kept.response.ttl.saturating_add(STALE.as_secs() as u32);
        (!is_over).then(|| entry.kept.clone())
    }

    /// Keeps an answer, if it is complete, not too large, and valid for some time.
    pub fn put(&mut self, key: Key, response: Arc<Response>, now: Instant) {
        let size = size(&key, &response);
        if response.ttl == 0 || response.is_cut() || size > LARGEST {
            return;
        }
        let kept = Kept { response, came: now, hits: 0, again: None };
        match self.entries.get_mut(&key) {
            Some(there) => {
                self.bytes -= self::size(&key, &there.kept.response);
                there.kept = kept;
            }
            None => {
                self.queue.push_back(key.clone());
                self.entries.insert(key, Entry { kept, is_used: false });
            }
        }
        self.bytes += size;
        while self.entries.len() > MOST || self.bytes > MOST_BYTES {
            self.evict();
        }
    }

    /// Notes that no server has answered: the old answer is used until `again`.
    pub fn rest(&mut self, key: &Key, again: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.kept.again = Some(again);
        }
    }

    fn evict(&mut self) {
        let Some(key) = self.queue.pop_front() else { return };
        match self.entries.get_mut(&key) {
            Some(entry) if entry.is_used => {
                entry.is_used = false;
                self.queue.push_back(key);
            }
            Some(entry) => {
                self.bytes -= size(&key, &entry.kept.response);
                self.entries.remove(&key);
            }
            None => {}
        }
    }

    /// The number of answers, and the bytes that they use.
    #[must_use]
    pub fn used(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}
