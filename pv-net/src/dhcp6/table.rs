//! Who has which address of the range, and how much each may have.

use super::held::{Held, Hold};
use crate::dhcp::shares::{MOST_CLIENTS, Shares};
use crate::dhcp::{Now, Origin};
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use crate::model::{Mac, PoolName};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many addresses of a pool a client may have at a time, by its MAC: the associations of two messages.
const MOST_OF_ONE: u32 = 8;
/// How long an address that was offered is kept for its client.
const OFFERED: Duration = Duration::from_secs(30);
/// How long a declined address is given to nobody.
const DECLINED: Duration = Duration::from_secs(3600);

/// The leases of a pool's clients, and what is being written.
#[derive(Debug, Default)]
pub struct Table {
    leases: HashMap<ClientId, Arc<ClientLease>>,
    holders: HashMap<Ipv6Addr, ClientId>,
    /// Clients whose lease is being written, with the address that it is of.
    writing: HashMap<ClientId, Option<Ipv6Addr>>,
    /// Those addresses.
    written: HashSet<Ipv6Addr>,
    /// Those of containers.
    containers: HashSet<Ipv6Addr>,
    held: Held,
    shares: Shares<Ipv6Addr>,
    is_exhausted: bool,
}

impl Table {
    /// One that begins with the leases of `clients` in `pool`.
    #[must_use]
    pub fn new(pool: &PoolName, clients: &[Arc<ClientLease>]) -> Self {
        let mut table = Self::default();
        let own = clients.iter().filter(|lease| lease.pool == *pool && lease.address.is_ipv6());
        own.for_each(|lease| table.granted(lease.clone()));
        table
    }

    /// Follows the leases and reservations of containers: no client is given their addresses.
    pub fn reserve(&mut self, addresses: HashSet<Ipv6Addr>) {
        self.containers = addresses;
    }

    /// Whether the last client that needed a new address got none, for all addresses of the range are in use.
    #[must_use]
    pub const fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Notes whether a client that needed a new address got one.
    pub const fn note_exhausted(&mut self, is_exhausted: bool) {
        self.is_exhausted = is_exhausted;
    }

    /// The lease of a client, also one that is over.
    #[must_use]
    pub fn lease(&self, client: &ClientId) -> Option<&Arc<ClientLease>> {
        self.leases.get(client)
    }

    /// Whether `mac` has a lease or an offer, as it was counted last.
    #[must_use]
    pub fn is_client(&self, mac: Mac) -> bool {
        self.shares.of_mac(mac) > 0
    }

    /// Whose lease an address is, or was last.
    #[must_use]
    pub fn holder(&self, address: Ipv6Addr) -> Option<&ClientId> {
        self.holders.get(&address)
    }

    /// The address that a client was offered, and whom that counts for.
    #[must_use]
    pub fn offer(&self, client: &ClientId, now: Now) -> Option<(Ipv6Addr, Option<Origin>)> {
        self.held.of(client, now.at)
    }

    /// Offers a client an address. It counts as if the client had it.
    pub fn hold(&mut self, address: Ipv6Addr, client: &ClientId, from: Origin, now: Now) {
        if !self.has_one(client, now) {
            self.shares.add(from);
        }
        let hold = Hold { client: Some(client.clone()), from: Some(from), until: now.at + OFFERED };
        self.held.hold(address, hold, now.at);
    }

    /// Somebody uses an address who was not given it, as a client says. The lease that the client had counts for its port
    /// until the next count, and the hold from then on; or one client could take the range by declining it.
    pub fn decline(&mut self, address: Ipv6Addr, from: Origin, now: Now) {
        self.held.hold(address, Hold { client: None, from: Some(from), until: now.at + DECLINED }, now.at);
    }

    /// The lease book gives an address to no client for now.
    pub fn refused(&mut self, address: Ipv6Addr, until: Instant, now: Now) {
        self.held.hold(address, Hold { client: None, from: None, until }, now.at);
    }

    /// Whether a client has a lease that is not over, or an offer.
    fn has_one(&self, client: &ClientId, now: Now) -> bool {
        self.lease(client).is_some_and(|lease| !lease.is_over(now.unix)) || self.offer(client, now).is_some()
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

    /// Whether no address was unused when it was looked last.
    #[must_use]
    pub const fn is_used_up(&self) -> bool {
        self.shares.is_used_up()
    }

    /// No address is unused: until one is free or it is counted again, nobody looks for one.
    pub const fn used_up(&mut self) {
        self.shares.used_up();
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

    /// Whether a client may have a lease, beside `more` that this message has been given: one MAC has only so many, and so
    /// do all that are behind one port of the bridge. The bridge knows both of a frame; what else a message says of its
    /// client can be made up. One that has a lease or an offer may keep it.
    pub fn may_have_more(&mut self, client: &ClientId, from: Origin, of_port: u32, more: u32, now: Now) -> bool {
        self.count(now);
        self.has_one(client, now)
            || self.shares.of_mac(from.mac).saturating_add(more) < MOST_OF_ONE
                && self.shares.of_port(from.port).saturating_add(more) < of_port
    }

    /// The address of the lease that is over for the longest, and that `may` be given.
    pub fn over(&mut self, now: Now, may: impl Fn(&Self, Ipv6Addr) -> bool) -> Option<Ipv6Addr> {
        self.count(now);
        while let Some(address) = self.shares.next_over() {
            if may(self, address) {
                return Some(address);
            }
        }
        None
    }

    /// Counts who has what, when that was long ago.
    fn count(&mut self, now: Now) {
        if !self.shares.is_due(now) {
            return;
        }
        self.held.forget_ended(now.at);
        self.shares.count(self.leases.values().filter_map(|lease| Some((lease.as_ref(), v6(lease.address)?))), now);
        for hold in self.held.all() {
            match (&hold.client, hold.from) {
                (Some(client), Some(from)) => {
                    if self.leases.get(client).is_none_or(|lease| lease.is_over(now.unix)) {
                        self.shares.add(from);
                    }
                }
                (None, from) => self.shares.add_to_port(from.map(|from| from.port)),
                (Some(_), None) => {}
            }
        }
    }

    /// Notes behind which port a client with a lease is. The disk has it with the next renewal.
    pub fn seen(&mut self, client: &ClientId, port: u32) {
        if let Some(lease) = self.leases.get_mut(client).filter(|lease| lease.port != Some(port)) {
            *lease = Arc::new(ClientLease { port: Some(port), ..ClientLease::clone(lease) });
        }
    }

    /// These steps of a message from `from` are being written: until that is done, others of the same clients wait, and
    /// nobody is given the addresses.
    pub fn begin(&mut self, steps: &[Step], from: Origin, now: Now) {
        for step in steps {
            match step {
                Step::Lend(lease) => {
                    if !self.has_one(&lease.client, now) {
                        self.shares.add(from);
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
    pub fn done(&mut self, steps: &[Step]) {
        self.undo(steps);
        for step in steps {
            match step {
                Step::Lend(lease) => self.granted(lease.clone()),
                // Its address is another's now.
                Step::End(key) if steps.iter().any(|step| matches!(step, Step::Lend(_))) => self.forget(&key.client),
                Step::End(key) => self.ended(&key.client),
                Step::Assign(_) | Step::Release(_) | Step::Learn(_) => {}
            }
        }
    }

    fn granted(&mut self, lease: Arc<ClientLease>) {
        let (client, Some(address)) = (lease.client.clone(), v6(lease.address)) else { return };
        if self.lease(&client).is_some_and(|before| before.address == lease.address) {
            self.forget(&client);
        } else {
            self.ended(&client);
        }
        self.held.release(&client);
        self.holders.insert(address, client.clone());
        self.leases.insert(client, lease);
    }

    fn ended(&mut self, client: &ClientId) {
        self.forget(client);
        self.shares.freed();
    }

    fn forget(&mut self, client: &ClientId) {
        let Some(lease) = self.leases.remove(client) else { return };
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
