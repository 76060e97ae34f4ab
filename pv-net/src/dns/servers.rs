//! Chooses the order in which servers are asked, and how long to wait for each, by how they answered before. Pure.

use crate::model::NameServer;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long a server that did not answer is asked last. The time doubles with each failure, up to [`LONGEST_REST`].
const FIRST_REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Bounds of the time after which the next server is asked too. Between them it is three times what the server's
/// answers usually take.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_millis(800);
/// That time for a server of which nothing is known.
const UNKNOWN: Duration = Duration::from_millis(400);
/// How long an answer shows that a server works.
const RECENT: Duration = Duration::from_secs(2);
/// Most servers that are remembered.
const MOST: usize = 256;

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    /// How long an answer takes, as a moving average.
    takes: Option<Duration>,
    failures: u32,
    rests_until: Option<Instant>,
    /// When it answered last.
    answered: Option<Instant>,
}

/// How servers have answered so far.
#[derive(Debug, Default)]
pub struct Servers {
    known: HashMap<NameServer, Health>,
}

impl Servers {
    /// `list` in the order in which the servers are asked: as given, with those at the end that recently did not
    /// answer.
    #[must_use]
    pub fn order(&self, list: &[NameServer], now: Instant) -> Vec<NameServer> {
        let mut order = list.to_vec();
        let rests = |server: &NameServer| {
            let until = self.known.get(server).and_then(|h| h.rests_until);
            until.filter(|until| *until > now)
        };
        // The sort is stable, and `None` (no rest) orders before any time.
        order.sort_by_key(rests);
        order
    }

    /// How long to wait for a server before the next one is asked too.
    #[must_use]
    pub fn patience(&self, server: &NameServer) -> Duration {
        let takes = self.known.get(server).and_then(|h| h.takes);
        takes.map_or(UNKNOWN, |t| (t * 3).clamp(SOONEST, LATEST))
    }

    /// Notes that the server answered after `took`.
    pub fn answered(&mut self, server: &NameServer, took: Duration, now: Instant) {
        let health = self.entry(server);
        health.answered = Some(now);
        health.takes = Some(health.takes.map_or(took, |before| (before * 7 + took) / 8));
        (health.failures, health.rests_until) = (0, None);
    }

    /// Notes that the server did not answer the question of `since`, or not usefully. When it has answered others
    /// meanwhile, or just before, that is because of the name, and no reason to ask another server about other names.
    pub fn failed(&mut self, server: &NameServer, since: Instant, now: Instant) {
        let health = self.entry(server);
        if health.answered.is_some_and(|answered| answered + RECENT > since) {
            return;
        }
        let rest = FIRST_REST * 2_u32.saturating_pow(health.failures.min(5));
        health.failures = health.failures.saturating_add(1);
        health.rests_until = Some(now + rest.min(LONGEST_REST));
    }

    fn entry(&mut self, server: &NameServer) -> &mut Health {
        if self.known.len() >= MOST && !self.known.contains_key(server) {
            self.known.clear();
        }
        self.known.entry(server.clone()).or_default()
    }

    /// All known servers, each with the average time of an answer, and its failures since the last answer.
    pub fn all(&self) -> impl Iterator<Item = (&NameServer, Option<Duration>, u32)> {
        self.known.iter().map(|(server, h)| (server, h.takes, h.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_comes_last_for_a_while() {
        let [a, b] = [1, 2].map(|n| NameServer::plain(([192, 0, 2, n], 53).into()));
        let (ab, ba) = ([a.clone(), b.clone()], [b.clone(), a.clone()]);
        let (mut servers, now) = (Servers::default(), Instant::now());
        assert_eq!(servers.order(&ab, now), ab);
        servers.failed(&a, now, now);
        assert_eq!(servers.order(&ab, now), ba);
        assert_eq!(servers.order(&ab, now + FIRST_REST), ab);
        servers.failed(&a, now, now);
        assert_eq!(servers.order(&ab, now + FIRST_REST), ba, "twice as long");
        servers.failed(&b, now, now);
        assert_eq!(servers.order(&ab, now), ba, "who comes back sooner");
        servers.answered(&a, Duration::from_millis(1), now);
        assert_eq!(servers.order(&ab, now), ab);
        assert_eq!((servers.patience(&a), servers.patience(&b)), (SOONEST, UNKNOWN));
        // A name that nobody answers is not the server's fault: it has answered others meanwhile.
        servers.failed(&a, now + RECENT / 2, now + Duration::from_secs(5));
        assert_eq!(servers.order(&ab, now), ab);
        servers.failed(&a, now + RECENT, now + Duration::from_secs(5));
        assert_eq!(servers.order(&ab, now + Duration::from_secs(5)), ba);
    }
}
