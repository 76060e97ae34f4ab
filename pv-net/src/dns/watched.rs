//! Questions and their answers for whoever watches them. While nobody does, nothing is copied.

use super::metrics::Ended;
use super::name;
use super::show::{self, Shown};
use super::wire::{HEADER, Query};
use super::zone::{Client, Whose, Zone};
use crate::bus::{Bus, Listener};
use crate::model::{NameServer, PoolName};
use nix::time::{ClockId, clock_gettime};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many answered questions a listener may be behind before it misses some.
const BACKLOG: usize = 1024;
/// Of a longer answer only the header is kept, so that the backlog is bounded in bytes too: it is larger than a datagram.
const LARGEST: usize = super::wire::LARGEST;
/// Most records that are shown of an answer. A name of two bytes may mean one of 255, so the text of few bytes is long.
const SHOWN: usize = 32;

/// A question that was answered.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// When it was answered, since boot.
    pub time: Duration,
    /// How long that took.
    pub took: Duration,
    /// Who asked.
    pub whose: Whose,
    /// The pool of the client; none for the device.
    pub pool: Option<PoolName>,
    /// The address that the question came from.
    pub address: IpAddr,
    /// Whether it came in a datagram.
    pub is_datagram: bool,
    /// Where the answer comes from.
    pub ended: Ended,
    /// The other server that has given the answer, now or some time ago.
    pub server: Option<NameServer>,
    /// The question, without what follows; empty when the message was none.
    question: Box<[u8]>,
    answer: Box<[u8]>,
    /// How long all of the answer was, bytes.
    answer_len: usize,
}

impl Exchange {
    /// The name and the type that were asked for; none when the message was no question.
    #[must_use]
    pub fn asked(&self) -> Option<(String, String)> {
        let mut message = self.question.to_vec();
        // What follows the question was left out, so there is nothing to count.
        message.get_mut(6..HEADER)?.fill(0);
        let query = Query::parse(&message).ok()?;
        Some((name::to_text(query.asked.name()), show::type_name(query.rtype())))
    }

    /// The answer, with its first records.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let mut shown = show::show(&self.answer);
        let more = shown.records.len().saturating_sub(SHOWN);
        if more > 0 {
            shown.records.truncate(SHOWN);
            shown.why = Some(format!("{more} more records are not shown"));
        } else if self.answer_len > self.answer.len() {
            shown.why = Some(format!("{} bytes, which are not shown", self.answer_len));
        }
        shown
    }
}

/// A question that is being answered while somebody watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub client: Client,
    pub address: IpAddr,
    pub is_datagram: bool,
    since: Instant,
}

/// Tells listeners which questions were answered, and how.
#[derive(Debug)]
pub(super) struct Watched(Bus<Arc<Exchange>>);

impl Default for Watched {
    fn default() -> Self {
        Self(Bus::with_backlog(BACKLOG))
    }
}

impl Watched {
    /// Notes the beginning of a question. `None` while nobody watches; then there is nothing to tell about it later.
    pub fn begin(&self, client: Client, address: IpAddr, is_datagram: bool) -> Option<Begun> {
        self.0.is_heard().then(|| Begun { client, address, is_datagram, since: Instant::now() })
    }

    /// Whether somebody watches.
    pub fn is_heard(&self) -> bool {
        self.0.is_heard()
    }

    /// Tells that the question in `message` was answered.
    pub fn tell(
        &self,
        begun: &Begun,
        zone: &Zone,
        message: &[u8],
        answer: &[u8],
        ended: Ended,
        server: Option<NameServer>,
    ) {
        let question = Query::parse(message).ok().and_then(|query| message.get(..query.question_end()));
        let whose = begun.client.whose();
        let pool = zone.pool(begun.client).filter(|_| whose != Whose::Device);
        let answer_len = answer.len();
        let answer = if answer.len() > LARGEST { answer.get(..HEADER) } else { Some(answer) };
        self.0.publish(Arc::new(Exchange {
            // The clock of all events.
            time: clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from),
            took: begun.since.elapsed(),
            whose,
            pool: pool.map(|pool| pool.name.clone()),
            address: begun.address,
            is_datagram: begun.is_datagram,
            ended,
            server,
            question: question.unwrap_or_default().into(),
            answer: answer.unwrap_or_default().into(),
            answer_len,
        }));
    }

    pub fn listen(&self) -> Listener<Arc<Exchange>> {
        self.0.listen()
    }

    /// How many questions listeners have missed.
    pub fn missed(&self) -> u64 {
        self.0.missed()
    }
}
