//! Limits how many questions of each client go to other servers: a rate, and a number at the same time. Pure.

use super::zone::Whose;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Questions a second for each client, and how many may come at once.
const RATE: f64 = 300.0;
const BURST: f64 = 600.0;
/// Most questions of one client that wait for answers at the same time.
const WAITING: u32 = 64;
/// Most questions of all clients that wait. Each may use several open files, and the API needs some too.
const ALL_WAITING: u32 = 256;
/// How many questions each client may still have waiting when half of [`ALL_WAITING`] are in use, so that a few clients
/// cannot take all places.
const FEW: u32 = 8;
/// Most clients that are remembered. A client that asks nothing is forgotten without loss.
const MOST: usize = 4096;

#[derive(Debug)]
struct Share {
    tokens: f64,
    at: Instant,
    waiting: u32,
}

/// The shares of all clients.
#[derive(Debug, Default)]
pub struct Shares {
    shares: HashMap<Whose, Share>,
    waiting: u32,
}

impl Shares {
    /// Whether `who` may ask now. The question then counts as waiting until [`Shares::done`].
    pub fn take(&mut self, who: Whose, now: Instant) -> bool {
        if self.shares.len() >= MOST {
            self.shares.retain(|_, s| s.waiting > 0 || now.saturating_duration_since(s.at) < Duration::from_secs(2));
        }
        if self.waiting >= ALL_WAITING || (self.shares.len() >= MOST && !self.shares.contains_key(&who)) {
            return false;
        }
        let share = self.shares.entry(who).or_insert(Share { tokens: BURST, at: now, waiting: 0 });
        let since = now.saturating_duration_since(share.at).as_secs_f64();
        share.tokens = (share.tokens + since * RATE).min(BURST);
        share.at = now;
        let most = if self.waiting < ALL_WAITING / 2 { WAITING } else { FEW };
        if share.tokens < 1.0 || share.waiting >= most {
            return false;
        }
        share.tokens -= 1.0;
        share.waiting += 1;
        self.waiting += 1;
        true
    }

    /// Notes that a question of `who` was answered.
    pub fn done(&mut self, who: Whose) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(share) = self.shares.get_mut(&who) {
            share.waiting = share.waiting.saturating_sub(1);
        }
    }

    /// How many questions wait for answers.
    #[must_use]
    pub const fn waiting(&self) -> u32 {
        self.waiting
    }
}

/// How many questions a second each client may ask on a socket, and at once, when more questions wait than are read at
/// a time and others ask too.
const FLOOD_RATE: f64 = 50_000.0;
const FLOOD_BURST: f64 = 5_000.0;
/// For how long a client counts as asking after its last question.
const LATELY: Duration = Duration::from_secs(60);

/// Limits floods on a socket. The device's own answers cost so little that a client that asks alone is not limited. But
/// when the socket's queue is full, a flood would displace the questions of others. Dropping a question is faster than
/// answering it, so the queue becomes empty again.
#[derive(Debug, Default)]
pub struct Floods {
    askers: HashMap<Whose, Tokens>,
    /// The last client, and the last one before that was another client.
    last: Option<(Whose, Instant)>,
    other: Option<(Whose, Instant)>,
}

#[derive(Debug)]
struct Tokens {
    left: f64,
    at: Instant,
}

impl Floods {
    /// Whether a question of `who` is answered. `is_full` says that more questions wait than are read at a time.
    pub fn may_ask(&mut self, who: Whose, is_full: bool, now: Instant) -> bool {
        if self.askers.len() >= MOST && !self.askers.contains_key(&who) {
            // All clients get a full share again, which is no disadvantage for anybody.
            self.askers.clear();
        }
        if self.last.is_some_and(|(last, _)| last != who) {
            self.other = self.last;
        }
        self.last = Some((who, now));
        let tokens = self.askers.entry(who).or_insert(Tokens { left: FLOOD_BURST, at: now });
        let since = now.saturating_duration_since(tokens.at).as_secs_f64();
        tokens.left = (tokens.left + since * FLOOD_RATE).min(FLOOD_BURST);
        tokens.at = now;
        let has = tokens.left >= 1.0;
        tokens.left = (tokens.left - 1.0).max(0.0);
        let others_ask = self.other.is_some_and(|(_, at)| now.saturating_duration_since(at) < LATELY);
        has || !is_full || !others_ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_its_own_share_only() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let [a, b] = [1, 2].map(Whose::Container);
        let taken = (0..1000).filter(|_| shares.take(a, now)).count();
        assert_eq!(taken as u32, WAITING);
        assert!(shares.take(b, now));
        // As fast as the questions are answered.
        let mut taken = taken;
        loop {
            shares.done(a);
            if !shares.take(a, now) {
                break;
            }
            taken += 1;
        }
        assert_eq!(taken as f64, BURST);
        assert!(shares.take(a, now + Duration::from_millis(100)));
    }

    #[test]
    fn who_floods_is_left_out_when_others_ask() {
        let (mut floods, now) = (Floods::default(), Instant::now());
        let [a, b] = [1, 2].map(Whose::Container);
        let answered = |floods: &mut Floods, now| (0..20_000).filter(|_| floods.may_ask(a, true, now)).count();
        assert_eq!(answered(&mut floods, now), 20_000, "alone");
        assert!(floods.may_ask(b, true, now));
        assert_eq!(answered(&mut floods, now), 0);
        let later = now + Duration::from_millis(20);
        assert_eq!(answered(&mut floods, later), 1000);
        assert!(floods.may_ask(b, true, later));
        assert!(floods.may_ask(a, false, later), "nobody waits");
        let later = later + LATELY;
        assert_eq!(answered(&mut floods, later), 20_000, "alone again");
        for n in 0..10_000 {
            floods.may_ask(Whose::Container(n), true, later);
        }
        assert!(floods.askers.len() <= MOST);
    }

    #[test]
    fn a_few_leave_room_for_the_others() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        for n in 0..16 {
            while shares.take(Whose::Container(n), now) {}
        }
        assert_eq!(shares.waiting(), 2 * WAITING + 14 * FEW);
        assert!(shares.take(Whose::Others(0), now) && shares.take(Whose::Device, now));
    }
}
