//! Which address of the range is whose, and which one is next.

mod held;

use super::ahead::Ahead;
use super::probe::{Probe, Probes};
use super::shares::{MOST_CLIENTS, Shares};
use super::{Config, Now, Origin};
use crate::ipam::{ClientId, ClientLease};
use crate::model::Mac;
use held::{Conflict, Offer};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Leases that one MAC may have under several identifiers: those of a boot loader, an installer and two systems.
const LEASES_PER_MAC: u32 = 4;

/// An address for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub address: Ipv4Addr,
    /// It is new to the client, so somebody else might use it.
    pub is_new: bool,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no range.
    NoRange,
    /// All of it is in use.
    Exhausted,
    /// All that clients of this port may have is.
    PortLimit,
}

/// The addresses of a pool's range.
#[derive(Debug, Default)]
pub(super) struct Table {
    leases: HashMap<ClientId, Arc<ClientLease>>,
    holders: HashMap<Ipv4Addr, ClientId>,
    offers: HashMap<ClientId, Offer>,
    offered: HashMap<Ipv4Addr, ClientId>,
    conflicts: HashMap<Ipv4Addr, Conflict>,
    /// Those of attached containers.
    managed: HashSet<Ipv4Addr>,
    /// Those that other containers have leases of, or have reserved.
    reserved: HashSet<Ipv4Addr>,
    shares: Shares<Ipv4Addr>,
    /// How many addresses each MAC answered a probe for when it was counted last, and since.
    claims: HashMap<Mac, u32>,
    ahead: Ahead,
    probes: Probes,
    /// How far addresses were given that nobody had.
    next: u32,
}

fn v4(lease: &ClientLease) -> Option<Ipv4Addr> {
    if let IpAddr::V4(address) = lease.address { Some(address) } else { None }
}

impl Table {
    /// One with these leases.
    pub fn new(leases: impl Iterator<Item = Arc<ClientLease>>) -> Self {
        let mut table = Self::default();
        leases.for_each(|lease| table.granted(lease));
        table
    }

    /// Follows a configuration.
    pub fn follow(&mut self, config: &Config) {
        self.managed = config.managed.values().map(|interface| interface.address).collect();
        self.offers.retain(|_, offer| config.is_in_range(offer.address));
        self.offered.retain(|address, _| config.is_in_range(*address));
        self.conflicts.retain(|address, _| config.is_in_range(*address));
        self.ahead.follow(config);
        self.shares = Shares::default();
    }

    /// Follows the leases and reservations of containers, attached or not: no client is given their addresses.
    pub fn reserve(&mut self, addresses: HashSet<Ipv4Addr>) {
        self.reserved = addresses;
    }

    /// The lease of a client, also one that is over.
    pub fn lease(&self, client: &ClientId) -> Option<&Arc<ClientLease>> {
        self.leases.get(client)
    }

    /// The address of that lease.
    pub fn address(&self, client: &ClientId) -> Option<Ipv4Addr> {
        v4(self.leases.get(client)?)
    }

    /// Who has, or had last, the lease of an address.
    pub fn holder(&self, address: Ipv4Addr) -> Option<&ClientId> {
        self.holders.get(&address)
    }

    /// What a client was offered.
    pub fn offer(&self, client: &ClientId, now: Now) -> Option<&Offer> {
        self.offers.get(client).filter(|offer| offer.is_live(now))
    }

    /// Whom an address was offered to.
    pub fn offered(&self, address: Ipv4Addr) -> Option<&ClientId> {
        self.offered.get(&address)
    }

    /// Whether `mac` has a lease or an offer, as it was counted last.
    pub fn is_client(&self, mac: Mac) -> bool {
        self.shares.of_mac(mac) > 0
    }

    /// Whether `address` is in use by anybody but `client`, as far as is known here.
    pub fn is_taken(&self, address: Ipv4Addr, client: &ClientId, now: Now) -> bool {
        let is_live = |holder: &ClientId| self.leases.get(holder).is_some_and(|lease| !lease.is_over(now.unix));
        let is_leased = self.holders.get(&address).is_some_and(|holder| holder != client && is_live(holder));
        is_leased || self.is_of_container(address) || self.is_offered(address, Some(client), now)
    }

    fn is_of_container(&self, address: Ipv4Addr) -> bool {
        self.managed.contains(&address) || self.reserved.contains(&address)
    }

    /// Whether one more client can be remembered.
    fn has_room(&self) -> bool {
        self.leases.len() + self.offers.len() < MOST_CLIENTS
    }

    /// Whether somebody but `client` was offered `address`.
    fn is_offered(&self, address: Ipv4Addr, client: Option<&ClientId>, now: Now) -> bool {
        let other = self.offered.get(&address).filter(|other| Some(*other) != client);
        other.and_then(|other| self.offer(other, now)).is_some_and(|offer| offer.address == address)
    }

    fn is_in_conflict(&self, address: Ipv4Addr, now: Now) -> bool {
        self.conflicts.get(&address).is_some_and(|conflict| conflict.until > now.at)
    }

    /// Whether nobody has or had `address`, and it can be given to `client`.
    fn is_free(&self, config: &Config, address: Ipv4Addr, client: Option<&ClientId>, now: Now) -> bool {
        config.is_in_range(address)
            && !self.holders.contains_key(&address)
            && !self.is_of_container(address)
            && !self.is_in_conflict(address, now)
            && !self.is_offered(address, client, now)
    }

    /// Whether a client may have an address that it had not before: nobody has it now.
    fn is_fit(&self, config: &Config, address: Ipv4Addr, client: &ClientId, now: Now) -> bool {
        config.is_in_range(address) && !self.is_taken(address, client, now) && !self.is_in_conflict(address, now)
    }

    /// The probes for addresses of the range.
    pub const fn probes(&mut self) -> &mut Probes {
        &mut self.probes
    }

    /// Finds the addresses that the next new clients get, and has them asked for.
    pub fn look_ahead(&mut self, config: &Config, now: Now) {
        let Some(range) = config.range else { return };
        self.count(now);
        for _ in 0..self.ahead.missing(config) {
            let found = self.unused(range, config, now).or_else(|| self.over(config, now));
            let Some(address) = found else { break };
            self.ahead.push(address);
        }
        self.ahead.ask(&mut self.probes, now);
    }

    /// An address for a client behind `port` of the bridge, the one that it `wants` where that can be.
    pub fn pick(
        &mut self,
        config: &Config,
        client: &ClientId,
        from: Origin,
        wants: Option<Ipv4Addr>,
        now: Now,
    ) -> Result<Pick, Refusal> {
        let Some((first, last)) = config.range else { return Err(Refusal::NoRange) };
        if let Some(address) = self.address(client)
            && config.is_in_range(address)
            && !self.is_taken(address, client, now)
            && !self.is_in_conflict(address, now)
            && self.may_have_more(config, client, from, now)
        {
            return Ok(Pick { address, is_new: false });
        }
        self.count(now);
        if self.shares.of_mac(from.mac) >= LEASES_PER_MAC {
            // One that it has under another identifier.
            return self.oldest_of(config, from.mac, now).ok_or(Refusal::PortLimit);
        }
        if self.shares.of_port(from.port) >= config.settings.leases_per_port {
            return Err(Refusal::PortLimit);
        }
        let has_room = self.has_room() || self.leases.contains_key(client);
        let wants = wants.filter(|wanted| has_room && self.is_free(config, *wanted, Some(client), now));
        if let Some(address) = wants {
            return Ok(Pick { address, is_new: true });
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        let next = ahead.take(|address| self.is_fit(config, address, client, now));
        let known = next.map_or(Probe::Waiting(now.at), |address| self.probes.of(address, now));
        ahead.adapt(config, known);
        self.ahead = ahead;
        let found = next.or_else(|| self.unused((first, last), config, now)).or_else(|| self.over(config, now));
        Ok(Pick { address: found.ok_or(Refusal::Exhausted)?, is_new: true })
    }

    /// Whether a client may have a lease beside those of its MAC and its port. One that has a lease or an offer may keep
    /// it; one whose lease is over asks for one more.
    pub fn may_have_more(&mut self, config: &Config, client: &ClientId, from: Origin, now: Now) -> bool {
        if self.offer(client, now).is_some() || self.lease(client).is_some_and(|lease| !lease.is_over(now.unix)) {
            return true;
        }
        self.count(now);
        self.shares.of_mac(from.mac) < LEASES_PER_MAC
            && self.shares.of_port(from.port) < config.settings.leases_per_port
    }

    /// Notes behind which port a client with a lease is. The disk has it with the next renewal.
    pub fn seen(&mut self, client: &ClientId, port: u32) {
        if let Some(lease) = self.leases.get_mut(client).filter(|lease| lease.port != Some(port)) {
            *lease = Arc::new(ClientLease { port: Some(port), ..ClientLease::clone(lease) });
        }
    }

    /// An address that nobody had.
    fn unused(&mut self, range: (Ipv4Addr, Ipv4Addr), config: &Config, now: Now) -> Option<Ipv4Addr> {
        if self.shares.is_used_up() || !self.has_room() {
            return None;
        }
        let (first, last) = (u32::from(range.0), u32::from(range.1));
        let size = last - first + 1;
        let start = if (first..=last).contains(&self.next) { self.next } else { first };
        // Each that is not free is in one of these, so that of a full range little is looked at.
        let containers = self.managed.len() + self.reserved.len();
        let most = self.holders.len() + self.offered.len() + self.conflicts.len() + containers + self.ahead.len() + 1;
        let candidates = (start..=last).chain(first..start).take(most.min(size as usize));
        let is_free = |address: &Ipv4Addr| self.is_free(config, *address, None, now) && !self.ahead.has(*address);
        let Some(found) = candidates.map(Ipv4Addr::from).find(is_free) else {
            self.shares.used_up();
            return None;
        };
        self.next = u32::from(found).saturating_add(1);
        Some(found)
    }

    /// The address of the lease that is over for the longest.
    fn over(&mut self, config: &Config, now: Now) -> Option<Ipv4Addr> {
        while let Some(address) = self.shares.next_over() {
            let is_over = self.holders.get(&address).and_then(|holder| self.leases.get(holder));
            let is_over = is_over.is_some_and(|lease| lease.is_over(now.unix));
            let is_fit = config.is_in_range(address) && !self.is_in_conflict(address, now) && !self.ahead.has(address);
            if is_over && is_fit && !self.is_of_container(address) && !self.is_offered(address, None, now) {
                return Some(address);
            }
        }
        None
    }

    /// The address of the lease of `mac` that ends first.
    fn oldest_of(&self, config: &Config, mac: Mac, now: Now) -> Option<Pick> {
        let own = self.leases.values().filter(|lease| lease.mac == Some(mac));
        let fit = own.filter(|lease| v4(lease).is_some_and(|a| config.is_in_range(a) && !self.is_in_conflict(a, now)));
        let free = fit.filter(|lease| v4(lease).is_some_and(|a| !self.is_offered(a, Some(&lease.client), now)));
        let oldest = free.min_by_key(|lease| lease.expires)?;
        Some(Pick { address: v4(oldest)?, is_new: false })
    }

    /// A client has a lease, as the disk has it.
    pub fn granted(&mut self, lease: Arc<ClientLease>) {
        let client = lease.client.clone();
        if self.address(&client) == v4(&lease) {
            self.forget(&client);
        } else {
            self.ended(&client);
        }
        self.drop_offer(&client);
        let Some(address) = v4(&lease) else { return };
        self.probes.forget(address);
        self.ahead.remove(address);
        self.holders.insert(address, client.clone());
        self.leases.insert(client, lease);
    }

    /// A client has none any more, not even one that is over.
    pub fn ended(&mut self, client: &ClientId) {
        self.forget(client);
        self.shares.freed();
    }

    /// A client has none any more, and another one has its address.
    pub fn forget(&mut self, client: &ClientId) {
        let Some(lease) = self.leases.remove(client) else { return };
        if let Some(address) = v4(&lease)
            && self.holders.get(&address) == Some(client)
        {
            self.holders.remove(&address);
        }
    }
}
