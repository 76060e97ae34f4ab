//! How many messages a client may send, and all clients behind one port of the bridge. Servers of both families use it.

use crate::model::Mac;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Messages a second of one MAC behind one port, and those that may come at once. A client that boots sends four.
const EACH: Rate = Rate { a_second: 10.0, at_once: 30.0 };
/// Messages of all MACs behind one port together: a part of what a server can do.
const PORT: Rate = Rate { a_second: 4000.0, at_once: 4000.0 };
/// Look-ups of a MAC's port in the bridge's forwarding table: as many as new clients behind four busy ports need. They are
/// before the port is known, so a port that makes up more MACs keeps new clients of others out meanwhile, but none that has
/// a lease.
const LOOK_UPS: Rate = Rate { a_second: 8000.0, at_once: 8000.0 };
/// Ports that are remembered: as many as a bridge has.
const PORTS: usize = 1024;
/// MACs that are remembered.
const MOST: usize = 4096;
/// A MAC that has sent nothing for so long is forgotten.
const SILENT: Duration = Duration::from_secs(3);

/// What is known of the sender of a message by its MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// It is a container's.
    Container,
    /// It has a lease or an offer.
    Client,
    /// Nothing.
    Stranger,
}

#[derive(Clone, Copy)]
struct Rate {
    a_second: f64,
    at_once: f64,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    const fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.at_once, at: now }
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * rate.a_second).min(rate.at_once);
        self.at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

/// What each may send now.
#[derive(Debug, Default)]
pub struct Rates {
    each: HashMap<(Mac, Option<u32>), Bucket>,
    ports: HashMap<u32, Bucket>,
    look_ups: Option<Bucket>,
    looked: Option<Instant>,
}

impl Rates {
    /// Whether a message of `mac` is read that came by `port` of the bridge; by `None` if it is a container's. A message
    /// that exceeds the rate of its MAC is not charged to the port, so that one client does not stop its neighbours.
    pub fn take(&mut self, mac: Mac, port: Option<u32>, now: Instant) -> bool {
        self.take_of_mac(mac, port, now) && port.is_none_or(|port| self.take_of_port(port, now))
    }

    /// Whether the bridge may be asked now for the port of a MAC. Somebody who makes up MACs must not cause a look-up
    /// with each message, nor keep those out who have something: they are as few as the ports may have.
    pub fn may_look_up(&mut self, sender: Sender, now: Instant) -> bool {
        if sender != Sender::Stranger {
            return true;
        }
        self.look_ups.get_or_insert(Bucket::full(LOOK_UPS, now)).take(LOOK_UPS, now)
    }

    /// However many MACs somebody makes up, they take no more memory, and those that are remembered stay so. A MAC that
    /// is not remembered has no rate of its own.
    fn take_of_mac(&mut self, mac: Mac, port: Option<u32>, now: Instant) -> bool {
        let key = (mac, port);
        if self.each.len() >= MOST && !self.each.contains_key(&key) {
            // This looks at all of them, so it must not be done with each message.
            if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= SILENT) {
                self.looked = Some(now);
                self.each.retain(|_, bucket| now.saturating_duration_since(bucket.at) < SILENT);
            }
            // Containers are few, and have no port that is charged.
            if self.each.len() >= MOST && port.is_some() {
                return true;
            }
        }
        self.each.entry(key).or_insert_with(|| Bucket::full(EACH, now)).take(EACH, now)
    }

    fn take_of_port(&mut self, port: u32, now: Instant) -> bool {
        if self.ports.len() >= PORTS && !self.ports.contains_key(&port) {
            self.ports.clear();
        }
        self.ports.entry(port).or_insert_with(|| Bucket::full(PORT, now)).take(PORT, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    #[test]
    fn one_that_floods_is_slowed_down_and_no_other() {
        let now = Instant::now();
        let mut rates = Rates::default();
        assert_eq!((0..10_000).filter(|_| rates.take(mac(1), Some(7), now)).count(), 30);
        assert!(rates.take(mac(2), Some(7), now), "its port was not charged for what was not read");
        assert!(rates.take(mac(1), Some(8), now), "the same MAC behind another port");
        assert!(!rates.take(mac(1), Some(7), now + Duration::from_millis(50)));
        assert!(rates.take(mac(1), Some(7), now + Duration::from_millis(150)));
    }

    /// A port is charged from the first message on, not only when no more MACs can be remembered.
    #[test]
    fn made_up_macs_have_no_more_than_their_port() {
        let now = Instant::now();
        let mut rates = Rates::default();
        assert_eq!((0..100_000).filter(|n| rates.take(mac(*n), Some(1), now)).count(), 4000);
        assert_eq!(rates.each.len(), MOST, "they take no more memory");
        assert!(rates.take(mac(200_000), Some(2), now), "another port has its own");
        // A container is limited although nobody else is remembered, and its port is not charged.
        assert_eq!((0..100).filter(|_| rates.take(mac(300_000), None, now)).count(), 30);
        // When they are silent they are forgotten.
        assert!(rates.take(mac(200_001), Some(2), now + 2 * SILENT));
        assert!(rates.each.len() < MOST);
    }

    #[test]
    fn look_ups_are_bounded() {
        let now = Instant::now();
        let mut rates = Rates::default();
        assert_eq!((0..100_000).filter(|_| rates.may_look_up(Sender::Stranger, now)).count(), 8000);
        assert!(rates.may_look_up(Sender::Client, now), "who has a lease is not kept out");
        assert!(rates.may_look_up(Sender::Stranger, now + Duration::from_millis(1)));
    }
}
