//! Which addresses are being looked for by ARP. An address that is new to its client is given to it when nobody has
//! answered for it.

use super::Now;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long somebody has to answer a probe for the address that he uses.
const WAIT: Duration = Duration::from_millis(100);
/// For how long silence means that nobody uses the address. After that it is asked for again.
const FRESH: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
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
    /// When each address was asked for.
    asked: HashMap<Ipv4Addr, Instant>,
    /// Probes that are to be sent.
    due: Vec<Ipv4Addr>,
}

impl Probes {
    /// What is known of `address`.
    pub fn of(&self, address: Ipv4Addr, now: Now) -> Probe {
        let Some(at) = self.asked.get(&address) else { return Probe::Unknown };
        match now.at.saturating_duration_since(*at) {
            since if since < WAIT => Probe::Waiting(*at + WAIT),
            since if since < FRESH => Probe::Clear,
            _ => Probe::Unknown,
        }
    }

    /// Has `address` asked for, unless it was lately. Returns what is known of it then: [`Probe::Unknown`] when too many
    /// are asked for.
    pub fn ask(&mut self, address: Ipv4Addr, now: Now) -> Probe {
        let known = self.of(address, now);
        if known != Probe::Unknown {
            return known;
        }
        if self.asked.len() >= MOST {
            self.asked.retain(|_, at| now.at.saturating_duration_since(*at) < FRESH);
            if self.asked.len() >= MOST {
                return Probe::Unknown;
            }
        }
        self.asked.insert(address, now.at);
        self.due.push(address);
        Probe::Waiting(now.at + WAIT)
    }

    /// A client has it, or somebody else was found to use it: the next one who is to have it needs a new probe.
    pub fn forget(&mut self, address: Ipv4Addr) {
        self.asked.remove(&address);
    }

    /// The probes to be sent.
    pub fn take_due(&mut self) -> Vec<Ipv4Addr> {
        std::mem::take(&mut self.due)
    }
}
