//! Who has which address of the range, and how much each may have.

use super::held::Held;
use crate::dhcp::{Now, Origin};
use crate::ipam::{ClientId, ClientLease, Lease, is_one_machine};
use crate::lease::Step;
use crate::model::{Mac, PoolName};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many clients of a pool are remembered, with current or former leases.
const MOST_CLIENTS: usize = 1 << 16;
/// How many addresses of a pool a client may have at a time, by its MAC: the associations of two messages.
const MOST_OF_ONE: u32 = 8;
/// How often it is counted who has how much. Between, only what is added is counted.
const COUNT: Duration = Duration::from_secs(1);

/// Who has how much.
#[derive(Debug, Default)]
struct Counts {
    at: Option<Instant>,
    ports: HashMap<u32, u32>,
    macs: HashMap<Mac, u32>,
    /// Addresses of leases that are over, the one that is over for the longest first.
    over: VecDeque<Ipv6Addr>,
}

/// The leases of a pool's clients, and what is being written.
#[derive(Debug, Default)]
pub struct Table {
    leases: HashMap<ClientId, Arc<ClientLease>>,
    holders: HashMap<Ipv6Addr, ClientId>,
    /// Where clients with a lease were seen last; not known from before the daemon's start.
    ports: HashMap<ClientId, u32>,
    /// Clients whose lease is being written, with the address that it is of.
    writing: HashMap<ClientId, Option<Ipv6Addr>>,
    /// Those addresses.
    written: HashSet<Ipv6Addr>,
    /// Those of containers.
    containers: HashSet<Ipv6Addr>,
    held: Held,
    counts: Counts,
}

impl Table {
    /// One that begins with the leases of `clients` in `pool`.
    #[must_use]
    pub fn new(pool: &PoolName, clients: &[Arc<ClientLease>]) -> Self {
        let mut table = Self::default();
        let own = clients.iter().filter(|lease| lease.pool == *pool && lease.address.is_ipv6());
        own.for_each(|lease| table.granted(lease.clone(), None));
        table
    }

    /// Follows the leases of containers: their addresses are given to no client.
    pub fn follow(&mut self, leases: &[Arc<Lease>]) {
        self.containers = leases.iter().filter_map(|lease| lease.ipv6).collect();
    }

    /// The lease of a client, also one that is over.
    #[must_use]
    pub fn lease(&self, client: &ClientId) -> Option<&Arc<ClientLease>> {
        self.leases.get(client)
    }

    /// Whether another machine than `me` has the name, by a lease that is not over.
    #[must_use]
    pub fn is_name_of_another(&self, name: &str, me: (&ClientId, Option<Mac>), now: Now) -> bool {
        let has_it = |lease: &Arc<ClientLease>| {
            lease.hostname.as_deref() == Some(name)
                && !lease.is_over(now.unix)
                && !is_one_machine(me, (&lease.client, lease.mac))
        };
        self.leases.values().any(has_it)
    }

    /// Whose lease an address is, or was last.
    #[must_use]
    pub fn holder(&self, address: Ipv6Addr) -> Option<&ClientId> {
        self.holders.get(&address)
    }

    /// The addresses that are held back.
    pub const fn held(&mut self) -> &mut Held {
        &mut self.held
    }

    /// Whether a lease of the client is being written.
    #[must_use]
    pub fn is_writing(&self, client: &ClientId) -> bool {
        self.writing.contains_key(client)
    }

    /// Whether a client may have the address: nobody else has it, or is about to, and it is held for nobody else. A lease
    /// that is over does not count.
    #[must_use]
    pub fn is_free(&self, address: Ipv6Addr, client: &ClientId, now: Now) -> bool {
        let is_taken = |holder: &ClientId| {
            self.is_writing(holder) || self.lease(holder).is_some_and(|lease| !lease.is_over(now.unix))
        };
        let is_others = self.holders.get(&address).is_some_and(|holder| holder != client && is_taken(holder));
        !is_others
            && !self.written.contains(&address)
            && !self.containers.contains(&address)
            && self.held.is_free_for(address, client, now.at)
    }

    /// Whether nobody has had the address.
    #[must_use]
    pub fn is_unused(&self, address: Ipv6Addr, client: &ClientId, now: Now) -> bool {
        !self.holders.contains_key(&address) && self.is_free(address, client, now)
    }

    /// Among this many addresses of the range, at least one is not taken.
    #[must_use]
    pub fn most_taken(&self) -> usize {
        self.holders.len() + self.containers.len() + self.held.len() + self.written.len() + 1
    }

    /// Whether one more client can be remembered, beside `more`.
    #[must_use]
    pub fn has_room(&self, more: usize) -> bool {
        self.leases.len() + self.writing.len() + more < MOST_CLIENTS
    }

    /// Whether a client without a current lease may have one, beside `more` that this message has been given: one MAC has
    /// only so many, and so do all that are behind one port of the bridge. The bridge knows both of a frame; what else a
    /// message says of its client can be made up.
    pub fn may_have_more(&mut self, from: Origin, of_port: u32, more: u32, now: Now) -> bool {
        self.count(now);
        let of = |counts: Option<&u32>| counts.copied().unwrap_or(0) + more;
        of(self.counts.macs.get(&from.mac)) < MOST_OF_ONE && of(self.counts.ports.get(&from.port)) < of_port
    }

    /// The address of the lease that is over for the longest, and that `may` be given.
    pub fn over(&mut self, now: Now, may: impl Fn(&Self, Ipv6Addr) -> bool) -> Option<Ipv6Addr> {
        self.count(now);
        while let Some(address) = self.counts.over.pop_front() {
            if may(self, address) {
                return Some(address);
            }
        }
        None
    }

    /// Counts who has what, when that was long ago.
    fn count(&mut self, now: Now) {
        if self.counts.at.is_some_and(|at| now.at.saturating_duration_since(at) < COUNT) {
            return;
        }
        let mut counts = Counts { at: Some(now.at), ..Counts::default() };
        let mut over = Vec::new();
        for (client, lease) in &self.leases {
            if lease.is_over(now.unix) {
                over.extend(v6(lease.address).map(|address| (lease.expires, address)));
                continue;
            }
            if let Some(port) = self.ports.get(client) {
                *counts.ports.entry(*port).or_default() += 1;
            }
            if let Some(mac) = lease.mac {
                *counts.macs.entry(mac).or_default() += 1;
            }
        }
        over.sort_unstable();
        counts.over = over.into_iter().map(|(_, address)| address).collect();
        self.counts = counts;
    }

    /// These steps of a message from `from` are being written: until that is done, others of the same clients wait, and
    /// nobody is given the addresses.
    pub fn begin(&mut self, steps: &[Step], from: Origin, now: Now) {
        for step in steps {
            match step {
                Step::Lend(lease) => {
                    if self.lease(&lease.client).is_none_or(|old| old.is_over(now.unix)) {
                        *self.counts.ports.entry(from.port).or_default() += 1;
                        *self.counts.macs.entry(from.mac).or_default() += 1;
                    }
                    let address = v6(lease.address);
                    self.written.extend(address);
                    self.writing.insert(lease.client.clone(), address);
                }
                Step::End(key) => drop(self.writing.entry(key.client.clone()).or_insert(None)),
                Step::Assign(_) | Step::Release(_) | Step::Learn(_) => {}
            }
        }
    }

    /// They are not written: it is as before.
    pub fn undo(&mut self, steps: &[Step]) {
        for step in steps {
            let client = match step {
                Step::Lend(lease) => &lease.client,
                Step::End(key) => &key.client,
                Step::Assign(_) | Step::Release(_) | Step::Learn(_) => continue,
            };
            if let Some(Some(address)) = self.writing.remove(client) {
                self.written.remove(&address);
            }
        }
    }

    /// They are written.
    pub fn done(&mut self, steps: &[Step], port: u32) {
        self.undo(steps);
        for step in steps {
            match step {
                Step::Lend(lease) => self.granted(lease.clone(), Some(port)),
                Step::End(key) => self.ended(&key.client),
                Step::Assign(_) | Step::Release(_) | Step::Learn(_) => {}
            }
        }
    }

    fn granted(&mut self, lease: Arc<ClientLease>, port: Option<u32>) {
        let (client, Some(address)) = (lease.client.clone(), v6(lease.address)) else { return };
        self.ended(&client);
        self.held.release(&client);
        self.holders.insert(address, client.clone());
        if let Some(port) = port {
            self.ports.insert(client.clone(), port);
        }
        self.leases.insert(client, lease);
    }

    fn ended(&mut self, client: &ClientId) {
        let Some(lease) = self.leases.remove(client) else { return };
        self.ports.remove(client);
        if let Some(address) = v6(lease.address)
            && self.holders.get(&address) == Some(client)
        {
            self.holders.remove(&address);
        }
    }
}

/// The address, if it is one of IPv6.
pub(super) const fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}
