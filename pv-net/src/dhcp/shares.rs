//! Who has how much of a pool's range: what one MAC has, what all behind one port of the bridge have, and which addresses
//! can be had again. Both families count with it, each by its own limits.

use super::{Now, Origin};
use crate::ipam::ClientLease;
use crate::model::Mac;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How many clients of a pool are remembered, with present or former leases.
pub const MOST_CLIENTS: usize = 1 << 16;
/// How often it is counted who has how much. Between, only what is added is counted.
const COUNT: Duration = Duration::from_secs(1);

/// How much each had when it was counted last, and what was added since.
#[derive(Debug)]
pub struct Shares<A> {
    at: Option<Instant>,
    ports: HashMap<u32, u32>,
    macs: HashMap<Mac, u32>,
    /// Addresses of leases that are over, the one that is over for the longest first.
    over: VecDeque<A>,
    /// When it was looked last, no address of the range was unused.
    is_used_up: bool,
}

impl<A> Default for Shares<A> {
    fn default() -> Self {
        let (ports, macs, over) = Default::default();
        Self { at: None, ports, macs, over, is_used_up: false }
    }
}

impl<A: Copy + Ord> Shares<A> {
    /// Whether it is long ago that it was counted.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        self.at.is_none_or(|at| now.at.saturating_duration_since(at) >= COUNT)
    }

    /// Counts these leases, which have these addresses, and nothing else.
    pub fn count<'a>(&mut self, leases: impl Iterator<Item = (&'a ClientLease, A)>, now: Now) {
        *self = Self { at: Some(now.at), ..Self::default() };
        let mut over = Vec::new();
        for (lease, address) in leases {
            if lease.is_over(now.unix) {
                over.push((lease.expires, address));
                continue;
            }
            self.add_to_port(lease.port);
            if let Some(mac) = lease.mac {
                *self.macs.entry(mac).or_default() += 1;
            }
        }
        over.sort_unstable();
        self.over = over.into_iter().map(|(_, address)| address).collect();
    }

    /// One more is that of a client.
    pub fn add(&mut self, from: Origin) {
        self.add_to_port(Some(from.port));
        *self.macs.entry(from.mac).or_default() += 1;
    }

    /// One more counts for those behind this port, if the port is known.
    pub fn add_to_port(&mut self, port: Option<u32>) {
        if let Some(port) = port {
            *self.ports.entry(port).or_default() += 1;
        }
    }

    /// How much those behind `port` have.
    #[must_use]
    pub fn of_port(&self, port: u32) -> u32 {
        self.ports.get(&port).copied().unwrap_or(0)
    }

    /// How much `mac` has.
    #[must_use]
    pub fn of_mac(&self, mac: Mac) -> u32 {
        self.macs.get(&mac).copied().unwrap_or(0)
    }

    /// The next address whose lease was over when it was counted.
    pub fn next_over(&mut self) -> Option<A> {
        self.over.pop_front()
    }

    /// Whether it is known that no address of the range is unused.
    #[must_use]
    pub const fn is_used_up(&self) -> bool {
        self.is_used_up
    }

    /// No address of the range is unused: until one is free or it is counted again, nobody looks for one.
    pub const fn used_up(&mut self) {
        self.is_used_up = true;
    }

    /// An address is free again.
    pub const fn freed(&mut self) {
        self.is_used_up = false;
    }
}
