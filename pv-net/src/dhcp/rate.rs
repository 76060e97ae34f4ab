//! How many messages a client may send.

use crate::model::Mac;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Messages a second of one MAC, and those that may come at once. A client that boots sends four.
const EACH: Rate = Rate { a_second: 10.0, at_once: 30.0 };
/// Those of all MACs behind one port together that are not remembered: a part of what a server can do, so that one port
/// leaves the others most of it.
const PORT: Rate = Rate { a_second: 4000.0, at_once: 4000.0 };
/// Ports that are remembered: as many as a bridge has.
const PORTS: usize = 1024;
/// MACs that are remembered.
const MOST: usize = 4096;
/// Who sent nothing for so long is as one that never did.
const SILENT: Duration = Duration::from_secs(3);

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
    each: HashMap<Mac, Bucket>,
    ports: HashMap<u32, Bucket>,
    looked: Option<Instant>,
}

/// Whether a message is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is.
    Yes,
    /// Its sender has sent too many.
    No,
    /// As many MACs as can be remembered have just sent: its port decides.
    ByPort,
}

impl Rates {
    /// Whether a message of `mac` is read. However many MACs somebody makes up, they take no more memory, and those that
    /// are remembered go on.
    pub fn take(&mut self, mac: Mac, now: Instant) -> Take {
        if self.each.len() >= MOST && !self.each.contains_key(&mac) {
            // No more than once in a while: it looks at all of them.
            if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= SILENT) {
                self.looked = Some(now);
                self.each.retain(|_, bucket| now.saturating_duration_since(bucket.at) < SILENT);
            }
            if self.each.len() >= MOST {
                return Take::ByPort;
            }
        }
        let bucket = self.each.entry(mac).or_insert(Bucket { tokens: EACH.at_once, at: now });
        if bucket.take(EACH, now) { Take::Yes } else { Take::No }
    }

    /// Whether a message that came by `port` is read, when it is for the port to decide.
    pub fn take_by_port(&mut self, port: u32, now: Instant) -> bool {
        if self.ports.len() >= PORTS {
            self.ports.clear();
        }
        self.ports.entry(port).or_insert(Bucket { tokens: PORT.at_once, at: now }).take(PORT, now)
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
        assert_eq!((0..1000).filter(|_| rates.take(mac(1), now) == Take::Yes).count(), 30);
        assert_eq!(rates.take(mac(2), now), Take::Yes);
        assert_eq!(rates.take(mac(1), now + Duration::from_millis(50)), Take::No);
        assert_eq!(rates.take(mac(1), now + Duration::from_millis(150)), Take::Yes);
    }

    #[test]
    fn made_up_macs_take_no_memory_and_stop_nobody_who_is_known_or_behind_another_port() {
        let now = Instant::now();
        let mut rates = Rates::default();
        let taken = (0..100_000).filter(|n| rates.take(mac(*n), now) == Take::Yes).count();
        assert_eq!((taken, rates.each.len()), (MOST, MOST));
        assert_eq!(rates.take(mac(1), now), Take::Yes);
        assert_eq!(rates.take(mac(200_000), now), Take::ByPort);
        assert_eq!((0..9000).filter(|_| rates.take_by_port(1, now)).count(), 4000);
        assert!(rates.take_by_port(2, now));
        // And when it is over they are forgotten.
        let later = now + 2 * SILENT;
        assert_eq!(rates.take(mac(200_000), later), Take::Yes);
        assert!(rates.each.len() < MOST);
    }
}
