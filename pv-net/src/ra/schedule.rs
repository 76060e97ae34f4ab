//! When a pool advertises (RFC 4861 section 6.2): periodically, after a change, and after a solicitation.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// How many advertisements after a start or a change have a short interval (MAX_INITIAL_RTR_ADVERTISEMENTS).
const FIRST_ONES: u32 = 3;
/// Their longest interval (MAX_INITIAL_RTR_ADVERT_INTERVAL).
const FIRST_PAUSE: Duration = Duration::from_secs(16);
/// The shortest interval of multicast advertisements (MIN_DELAY_BETWEEN_RAS).
const LEAST_PAUSE: Duration = Duration::from_secs(3);
/// Their longest interval (the default of MaxRtrAdvInterval).
const MOST_PAUSE: Duration = Duration::from_secs(600);
/// The longest delay of an answer (MAX_RA_DELAY_TIME).
const ANSWER: Duration = Duration::from_millis(500);
/// How many hosts may wait for a unicast answer. When more ask at the same time, one multicast answers all of them.
const MOST_HOSTS: usize = 32;

/// Whom an advertisement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// All hosts on the link, unsolicited.
    All,
    /// All hosts on the link, since some have asked.
    Askers,
    /// The host that asked.
    Host(Ipv6Addr),
}

/// When a pool advertises next.
#[derive(Debug)]
pub struct Schedule {
    /// The longest interval of multicasts.
    most: Duration,
    first_ones: u32,
    /// The time of the last multicast.
    last: Option<Instant>,
    /// The time of the next multicast.
    next: Instant,
    /// The next multicast answers solicitations.
    asked: bool,
    /// Hosts that have asked, with the time of their answer.
    hosts: BTreeMap<Ipv6Addr, Instant>,
}

impl Schedule {
    /// The first advertisement is due at once. There are three or more in each `lifetime_secs`, the router lifetime.
    #[must_use]
    pub fn new(lifetime_secs: u32, now: Instant) -> Self {
        let most = most(lifetime_secs);
        Self { most, first_ones: FIRST_ONES, last: None, next: now, asked: false, hosts: BTreeMap::new() }
    }

    /// The contents have changed: they are advertised soon, and then a few times at short intervals.
    pub fn changed(&mut self, lifetime_secs: u32, now: Instant) {
        (self.most, self.first_ones) = (most(lifetime_secs), FIRST_ONES);
        self.next = self.earliest(now);
    }

    /// A host has sent a solicitation from the address `from`, which may be `::`. `jitter` is a random number from 0 to
    /// 1.
    pub fn solicited(&mut self, from: Ipv6Addr, now: Instant, jitter: f64) {
        let due = now + ANSWER.mul_f64(jitter.clamp(0.0, 1.0));
        if !from.is_unspecified() && (self.hosts.len() < MOST_HOSTS || self.hosts.contains_key(&from)) {
            self.hosts.entry(from).or_insert(due);
            return;
        }
        let due = due.max(self.earliest(now));
        if due < self.next {
            self.next = due;
        }
        self.asked = true;
    }

    /// When something is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.hosts.values().min().copied().map_or(self.next, |host| host.min(self.next))
    }

    /// What is due now. `jitter` is a random number from 0 to 1.
    pub fn take(&mut self, now: Instant, jitter: f64) -> Vec<To> {
        if now >= self.next {
            let least = (self.most / 3).max(LEAST_PAUSE);
            let pause = least + self.most.saturating_sub(least).mul_f64(jitter.clamp(0.0, 1.0));
            self.first_ones = self.first_ones.saturating_sub(1);
            self.next = now + if self.first_ones > 0 { pause.min(FIRST_PAUSE) } else { pause };
            self.last = Some(now);
            // The multicast also answers the hosts that wait for a unicast.
            let asked = std::mem::take(&mut self.asked) || !self.hosts.is_empty();
            self.hosts.clear();
            return vec![if asked { To::Askers } else { To::All }];
        }
        let due: Vec<Ipv6Addr> = self.hosts.iter().filter(|(_, at)| **at <= now).map(|(host, _)| *host).collect();
        self.hosts.retain(|_, at| *at > now);
        due.into_iter().map(To::Host).collect()
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| now.max(last + LEAST_PAUSE))
    }
}

fn most(lifetime_secs: u32) -> Duration {
    // No less than four seconds (RFC 4861 section 6.2.1).
    (Duration::from_secs(lifetime_secs.into()) / 3).clamp(Duration::from_secs(4), MOST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn host(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n)
    }

    #[test]
    fn the_first_ones_come_soon_and_then_it_is_quiet() {
        let start = Instant::now();
        let mut schedule = Schedule::new(1800, start);
        let mut at = Vec::new();
        for _ in 0..5 {
            let due = schedule.due();
            assert_eq!(schedule.take(due, 1.0), [To::All]);
            at.push((due - start).as_secs());
        }
        assert_eq!(at, [0, 16, 32, 632, 1232]);
        // The least that may be between them.
        let due = schedule.due();
        assert_eq!(schedule.take(due, 0.0), [To::All]);
        assert_eq!(schedule.due() - due, Duration::from_secs(200));
        // What changes is said at once, unless the last one was only just.
        schedule.changed(12, due + SECOND);
        assert_eq!(schedule.due(), due + LEAST_PAUSE);
        schedule.take(due + LEAST_PAUSE, 1.0);
        assert_eq!(schedule.due(), due + LEAST_PAUSE + 4 * SECOND);
    }

    #[test]
    fn who_asks_is_answered_and_many_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(1800, start);
        assert_eq!(schedule.take(start, 0.5), [To::All]);
        let later = start + SECOND;
        schedule.solicited(host(1), later, 1.0);
        schedule.solicited(host(1), later, 0.0);
        assert_eq!(schedule.due(), later + ANSWER, "asked twice, answered once");
        assert_eq!(schedule.take(later, 0.5), []);
        assert_eq!(schedule.take(later + ANSWER, 0.5), [To::Host(host(1))]);
        // Who has no address makes all of them hear, but not too often.
        schedule.solicited(Ipv6Addr::UNSPECIFIED, later, 0.0);
        schedule.solicited(host(2), later, 0.0);
        assert_eq!(schedule.take(later, 0.5), [To::Host(host(2))]);
        assert_eq!(schedule.due(), start + LEAST_PAUSE);
        assert_eq!(schedule.take(schedule.due(), 0.5), [To::Askers]);
        let now = start + 10 * SECOND;
        (0..1000).for_each(|n| schedule.solicited(host(n), now, 0.1));
        assert_eq!(schedule.hosts.len(), MOST_HOSTS);
        let due = schedule.due();
        assert_eq!(schedule.take(due, 0.5), [To::Askers], "one answer for a thousand");
        assert!(schedule.hosts.is_empty() && schedule.due() > due + LEAST_PAUSE);
    }

    proptest! {
        #[test]
        fn nobody_makes_it_speak_too_often(
            lifetime in 12_u32..9001,
            steps in prop::collection::vec((0_u16..80, 0_u64..5000, 0.0..1.0_f64), 1..200),
        ) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(lifetime, now);
            let (mut last, mut hosts) = (None::<Instant>, 0);
            for (from, millis, jitter) in steps {
                now += Duration::from_millis(millis);
                let from = if from == 0 { Ipv6Addr::UNSPECIFIED } else { host(from) };
                schedule.solicited(from, now, jitter);
                // Whoever asks waits for no longer than for the next one to all.
                prop_assert!(schedule.due() <= now + ANSWER + LEAST_PAUSE);
                for to in schedule.take(now, jitter) {
                    match to {
                        To::All | To::Askers => {
                            prop_assert!(last.is_none_or(|last| now - last >= LEAST_PAUSE));
                            last = Some(now);
                        }
                        To::Host(_) => hosts += 1,
                    }
                }
            }
            prop_assert!(hosts <= 200);
        }
    }
}
