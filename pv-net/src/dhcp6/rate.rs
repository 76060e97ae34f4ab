//! The rate of messages that are answered for each sender.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// Messages a second, and the size of a burst. A client sends a few messages at first, and then none for a long time.
const RATE: f64 = 10.0;
const BURST: f64 = 40.0;
/// How many senders are remembered. While so many have sent within the time that a bucket takes to fill, nobody else is
/// answered.
const MOST: usize = 1024;
/// The time that an empty bucket takes to fill.
const FULL: Duration = Duration::from_secs(4);

/// A token bucket for each sender.
#[derive(Debug, Default)]
pub struct Rates(HashMap<Ipv6Addr, (f64, Instant)>);

impl Rates {
    /// Whether a message of `from` is answered.
    pub fn take(&mut self, from: Ipv6Addr, now: Instant) -> bool {
        if self.0.len() >= MOST && !self.0.contains_key(&from) {
            self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < FULL);
            if self.0.len() >= MOST {
                return false;
            }
        }
        let (tokens, at) = self.0.entry(from).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_duration_since(*at).as_secs_f64() * RATE).min(BURST);
        *at = now;
        let may = *tokens >= 1.0;
        *tokens -= f64::from(u8::from(may));
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_floods_is_not_answered_and_others_are() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let [a, b] = [1, 2].map(|n| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n));
        assert_eq!((0..1000).filter(|_| rates.take(a, now)).count(), 40);
        assert!(rates.take(b, now));
        assert_eq!((0..1000).filter(|_| rates.take(a, now + Duration::from_secs(1))).count(), 10);
        // Many senders do not give one of them a new burst, and are forgotten.
        let many = (0..2000).map(|n| Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 0, 0, n));
        let later = now + Duration::from_secs(2);
        assert_eq!(many.filter(|from| rates.take(*from, later)).count(), MOST - 2);
        assert_eq!((0..1000).filter(|_| rates.take(a, later)).count(), 10);
        assert!(rates.take(Ipv6Addr::new(0xfe80, 0, 0, 0, 2, 0, 0, 1), later + FULL));
    }
}
