//! Limits how many questions of each client go to other servers: a rate, and a number at the same time. Pure.

use super::zone::{Part, Whose};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Questions a second for each client, and how many may come at once.
const RATE: f64 = 300.0;
const BURST: f64 = 600.0;
/// Most questions of one client that wait for answers at the same time.
const WAITING: u32 = 64;
/// The same for one host of a pool that is no container. All of them together have no more than a container.
const WAITING_OF_HOST: u32 = 16;
/// So many times as many questions a second as one of them all of these hosts have together: whoever makes up addresses must
/// not ask other servers without a limit.
const OF_HOSTS: f64 = 4.0;
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

impl Share {
    /// One of so many times the rate of a client.
    fn new(times: f64, now: Instant) -> Self {
        Self { tokens: BURST * times, at: now, waiting: 0 }
    }

    /// Whether one more may be asked, while `most` may wait.
    fn has_room(&mut self, times: f64, most: u32, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * RATE * times).min(BURST * times);
        self.at = now;
        self.tokens >= 1.0 && self.waiting < most
    }

    fn take(&mut self) {
        self.tokens -= 1.0;
        self.waiting += 1;
    }

    fn done(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }
}

/// The shares of all clients.
#[derive(Debug, Default)]
pub struct Shares {
    shares: HashMap<Part, Share>,
    /// What all hosts of a pool have together that are no containers, by the pool's number.
    others: HashMap<u16, Share>,
    waiting: u32,
}

impl Shares {
    /// Whether `who` may ask now. The question then counts as waiting until [`Shares::done`].
    pub fn take(&mut self, who: Part, now: Instant) -> bool {
        if self.shares.len() >= MOST {
            self.shares.retain(|_, s| s.waiting > 0 || now.saturating_duration_since(s.at) < Duration::from_secs(2));
        }
        if self.waiting >= ALL_WAITING || (self.shares.len() >= MOST && !self.shares.contains_key(&who)) {
            return false;
        }
        let mut others = match who.whose {
            Whose::Others(pool) => Some(self.others.entry(pool).or_insert_with(|| Share::new(OF_HOSTS, now))),
            Whose::Container(_) | Whose::Device => None,
        };
        let most = match others {
            _ if self.waiting >= ALL_WAITING / 2 => FEW,
            Some(_) => WAITING_OF_HOST,
            None => WAITING,
        };
        let share = self.shares.entry(who).or_insert_with(|| Share::new(1.0, now));
        let have_room = others.as_mut().is_none_or(|all| all.has_room(OF_HOSTS, WAITING, now));
        if !have_room || !share.has_room(1.0, most, now) {
            return false;
        }
        share.take();
        others.into_iter().for_each(Share::take);
        self.waiting += 1;
        true
    }

    /// Notes that a question of `who` was answered.
    pub fn done(&mut self, who: Part) {
        self.waiting = self.waiting.saturating_sub(1);
        self.shares.get_mut(&who).into_iter().for_each(Share::done);
        if let Whose::Others(pool) = who.whose {
            self.others.get_mut(&pool).into_iter().for_each(Share::done);
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
    askers: HashMap<Part, Tokens>,
    /// The last client, and the last one before that was another client.
    last: Option<(Part, Instant)>,
    other: Option<(Part, Instant)>,
}

#[derive(Debug)]
struct Tokens {
    left: f64,
    at: Instant,
}

impl Floods {
    /// Whether a question of `who` is answered. `is_full` says that more questions wait than are read at a time.
    pub fn may_ask(&mut self, who: Part, is_full: bool, now: Instant) -> bool {
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
    use crate::dns::Zone;
    use crate::snapshot::Snapshot;

    fn container(identity: u32) -> Part {
        Part::all_of(Whose::Container(identity))
    }

    #[test]
    fn one_client_takes_its_own_share_only() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let [a, b] = [1, 2].map(container);
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
        let [a, b] = [1, 2].map(container);
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
            floods.may_ask(container(n), true, later);
        }
        assert!(floods.askers.len() <= MOST);
    }

    #[test]
    fn a_few_leave_room_for_the_others() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        for n in 0..16 {
            while shares.take(container(n), now) {}
        }
        assert_eq!(shares.waiting(), 2 * WAITING + 14 * FEW);
        assert!(shares.take(Part::all_of(Whose::Others(0)), now) && shares.take(Part::all_of(Whose::Device), now));
    }

    #[test]
    fn one_host_of_a_pool_does_not_keep_the_others_from_asking() {
        let net = "10.0.3.0/24";
        let device = format!(r#"{{"network": {{"pools": {{"internal": {{"subnet": "{net}"}}}}}}}}"#);
        let device = crate::config::parse_device("device", &device).expect("a device");
        let zone = Zone::new(&Snapshot { device: device.into(), ..Snapshot::default() });
        let part = |n: u8| zone.client(0, [10, 0, 3, n].into()).expect("in the pool").part();
        let (mut shares, now) = (Shares::default(), Instant::now());
        while shares.take(part(9), now) {}
        assert_eq!((shares.waiting(), part(9)), (WAITING_OF_HOST, part(9)));
        // By chance another host may have the same part.
        let others: Vec<Part> = (10..30).map(part).filter(|other| *other != part(9)).collect();
        assert!(others.len() > 15, "{others:?}");
        assert!(shares.take(others[0], now), "another host");
        for other in &others {
            while shares.take(*other, now) {}
        }
        assert_eq!(shares.waiting(), WAITING, "more than a container");
        assert!(shares.take(container(1), now));
        shares.done(others[0]);
        assert!(shares.take(others[0], now));
        // As fast as the questions are answered, from any number of addresses.
        let (mut shares, mut taken) = (Shares::default(), 0);
        for n in (1..=255).cycle().take(5_000) {
            if shares.take(part(n), now) {
                shares.done(part(n));
                taken += 1;
            }
        }
        assert_eq!(f64::from(taken), BURST * OF_HOSTS);
    }
}
