//! Which addresses have been probed by ARP. An address that is new to its client is given to it when nobody has answered
//! the probe.

use super::Now;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long somebody has to answer a probe for the address that he uses.
const WAIT: Duration = Duration::from_millis(100);
/// The same when it was silent a while ago: whoever has come since then answers at once, as hosts of one link do.
const WAIT_AGAIN: Duration = Duration::from_millis(10);
/// Silence that is no older is as good as a new probe's: many new clients in a second need not wait for another one.
const JUST_NOW: Duration = Duration::from_secs(1);
/// For how long silence means that nobody uses the address. After that it is asked for again.
const FRESH: Duration = Duration::from_secs(60);
/// Addresses that are remembered. Beyond that, the one that was asked for the longest ago is forgotten: a client that gets
/// it waits for a new probe.
const MOST: usize = 1 << 14;

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Nobody has answered for it.
    Clear,
    /// Until this time somebody may answer.
    Waiting(Instant),
    /// It was not asked for, or too long ago.
    Unknown,
}

/// The probes of a pool.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// When each address was asked for, and until when somebody may answer.
    asked: HashMap<Ipv4Addr, (Instant, Instant)>,
    /// The same addresses in the order in which they were asked for; also some that were forgotten since.
    order: VecDeque<(Instant, Ipv4Addr)>,
    /// Probes that are to be sent.
    due: Vec<Ipv4Addr>,
}

impl Probes {
    /// What is known of `address`.
    pub fn of(&self, address: Ipv4Addr, now: Now) -> Probe {
        match self.asked.get(&address) {
            Some((_, until)) if now.at < *until => Probe::Waiting(*until),
            Some((at, _)) if now.at.saturating_duration_since(*at) < FRESH => Probe::Clear,
            _ => Probe::Unknown,
        }
    }

    /// Has `address` asked for, unless it was lately. Returns what is known of it then.
    pub fn ask(&mut self, address: Ipv4Addr, now: Now) -> Probe {
        let known = self.of(address, now);
        if known != Probe::Unknown {
            return known;
        }
        while self.order.len() >= MOST {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            if self.asked.get(&oldest).is_some_and(|(asked, _)| *asked == at) {
                self.asked.remove(&oldest);
            }
        }
        self.asked.insert(address, (now.at, now.at + WAIT));
        self.order.push_back((now.at, address));
        self.due.push(address);
        Probe::Waiting(now.at + WAIT)
    }

    /// Has `address` asked for as it is offered. If it was asked for lately, that takes a moment, and none if it was just
    /// now.
    pub fn ask_again(&mut self, address: Ipv4Addr, now: Now) {
        if self.of(address, now) != Probe::Clear {
            self.ask(address, now);
        } else if let Some((_, until)) = self.asked.get_mut(&address)
            && now.at.saturating_duration_since(*until) >= JUST_NOW
        {
            *until = now.at + WAIT_AGAIN;
            self.due.push(address);
        }
    }

    /// Forgets an address that a client has got, or that somebody else uses: before the next client gets it, it is probed
    /// again.
    pub fn forget(&mut self, address: Ipv4Addr) {
        self.asked.remove(&address);
    }

    /// The probes to be sent.
    pub fn take_due(&mut self) -> Vec<Ipv4Addr> {
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_for_an_offer_while_it_is_new() {
        let start = Now { unix: 0, at: Instant::now() };
        let at = |millis: u64| Now { at: start.at + Duration::from_millis(millis), ..start };
        let address = Ipv4Addr::new(10, 0, 3, 7);
        let mut probes = Probes::default();
        assert_eq!(probes.ask(address, start), Probe::Waiting(at(100).at));
        assert_eq!(probes.take_due(), [address]);
        probes.ask_again(address, at(1099));
        assert_eq!((probes.of(address, at(1099)), probes.take_due()), (Probe::Clear, Vec::new()));
        probes.ask_again(address, at(1100));
        assert_eq!((probes.of(address, at(1100)), probes.take_due()), (Probe::Waiting(at(1110).at), vec![address]));
        // Only the end of the last wait is known, so the second silence counts as long as the first one.
        probes.ask_again(address, at(2109));
        assert_eq!((probes.of(address, at(2109)), probes.take_due()), (Probe::Clear, Vec::new()));
        probes.ask_again(address, at(60_000));
        assert_eq!(probes.of(address, at(60_000)), Probe::Waiting(at(60_100).at));
    }

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many() {
        let now = Now { unix: 0, at: Instant::now() };
        let at = |millis: u32| Now { at: now.at + Duration::from_millis(millis.into()), ..now };
        let address = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
        let mut probes = Probes::default();
        for number in 0..3 * MOST as u32 {
            assert!(matches!(probes.ask(address(number), at(number)), Probe::Waiting(_)), "{number} is not asked for");
            // What is forgotten and asked for again takes no more memory either.
            probes.forget(address(number / 2));
        }
        assert!(probes.asked.len() <= MOST && probes.order.len() <= MOST);
        let last = 3 * MOST as u32;
        assert_eq!(probes.of(address(last - 1), at(last + 200)), Probe::Clear);
        assert_eq!(probes.of(address(0), at(last)), Probe::Unknown);
    }
}
