//! The addresses that the next new clients get. They are probed by ARP before there is a client, so that no client waits
//! for the probe.

use super::probe::{Probe, Probes};
use super::{Config, Now};
use std::collections::VecDeque;
use std::net::Ipv4Addr;

/// How many there are, unless new clients come so fast that they run out.
const FEW: usize = 8;
/// The most that there are.
const MOST: usize = 1024;

/// The next addresses, the first one first.
#[derive(Debug)]
pub(super) struct Ahead {
    next: VecDeque<Ipv4Addr>,
    wanted: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { next: VecDeque::new(), wanted: FEW }
    }
}

impl Ahead {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.next.len()
    }

    /// Whether `address` is one of them.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.next.contains(&address)
    }

    /// Forgets those that are not in the range any more.
    pub fn follow(&mut self, config: &Config) {
        self.next.retain(|address| config.is_in_range(*address));
    }

    /// The next one that fits a client.
    pub fn take(&mut self, is_fit: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        while let Some(address) = self.next.pop_front() {
            if is_fit(address) {
                return Some(address);
            }
        }
        None
    }

    /// How many there should be, after one was taken of which `known` was known.
    pub fn adapt(&mut self, config: &Config, known: Probe) {
        self.wanted = match known {
            Probe::Waiting(_) => (self.wanted * 2).min(MOST),
            Probe::Clear => self.wanted,
            // It is long since a new client came.
            Probe::Unknown => FEW,
        };
        self.next.truncate(self.wanted_of(config));
    }

    /// How many more there should be.
    pub fn missing(&self, config: &Config) -> usize {
        self.wanted_of(config).saturating_sub(self.next.len())
    }

    /// No more than a quarter of a small range: the rest is for clients that ask for their address.
    fn wanted_of(&self, config: &Config) -> usize {
        let size = config.range.map_or(0, |(first, last)| u32::from(last) - u32::from(first) + 1) as usize;
        self.wanted.min((size / 4).max(1))
    }

    /// A client has this one: it is for no other.
    pub fn remove(&mut self, address: Ipv4Addr) {
        if let Some(at) = self.next.iter().position(|next| *next == address) {
            self.next.remove(at);
        }
    }

    /// One more.
    pub fn push(&mut self, address: Ipv4Addr) {
        self.next.push_back(address);
    }

    /// Has those probed that were not, or too long ago.
    pub fn ask(&self, probes: &mut Probes, now: Now) {
        // The ones in front were probed first. So if the first one's probe still counts, only the last ones need one.
        let is_unknown = |address: &Ipv4Addr| probes.of(*address, now) == Probe::Unknown;
        let from = if self.next.front().is_some_and(is_unknown) {
            0
        } else {
            self.next.iter().rposition(|address| !is_unknown(address)).map_or(0, |at| at + 1)
        };
        for address in self.next.iter().skip(from) {
            probes.ask(*address, now);
        }
    }
}
