//! What is held back of a pool's range: offers for their clients, and addresses that somebody uses who was not given them.
//! Both count as if the client, or those behind its port, had the address.

use super::super::{Config, Now, Origin};
use super::{Table, v4};
use crate::ipam::ClientId;
use crate::model::Mac;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an offer is held for who has not answered it.
const HOLD: Duration = Duration::from_secs(10);
/// How long an address is given to nobody after it was found in use by somebody who was not given it.
const CONFLICT: Duration = Duration::from_secs(600);
/// Addresses that are remembered because somebody uses them who was not given them.
const MOST_CONFLICTS: usize = 8192;
/// How many answers of one MAC to probes are believed. Whoever answers more often is a router with proxy ARP, or lies.
const CLAIMS_PER_MAC: u32 = 8;

/// An address that a client was offered, or will be.
#[derive(Clone, Debug)]
pub struct Offer {
    pub address: Ipv4Addr,
    pub from: Origin,
    /// It is no offer any more from here on; `None` while the lease is being written, however long the disk takes.
    until: Option<Instant>,
}

impl Offer {
    pub(super) fn is_live(&self, now: Now) -> bool {
        self.until.is_none_or(|until| until > now.at)
    }
}

#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) until: Instant,
    /// The port of who said so. It counts there, or one client could take the range by declining it.
    port: Option<u32>,
    /// The MAC that answered a probe.
    claimed_by: Option<Mac>,
}

impl Table {
    /// Counts who has what, when that was long ago, and forgets what is over.
    pub(super) fn count(&mut self, now: Now) {
        if !self.shares.is_due(now) {
            return;
        }
        self.offers.retain(|_, offer| offer.is_live(now));
        let offers = &self.offers;
        self.offered.retain(|address, client| offers.get(client).is_some_and(|offer| offer.address == *address));
        self.conflicts.retain(|_, conflict| conflict.until > now.at);
        self.shares.count(self.leases.values().filter_map(|lease| Some((lease.as_ref(), v4(lease)?))), now);
        for (client, offer) in &self.offers {
            if self.leases.get(client).is_none_or(|lease| lease.is_over(now.unix)) {
                self.shares.add(offer.from);
            }
        }
        self.claims.clear();
        for conflict in self.conflicts.values() {
            self.shares.add_to_port(conflict.port);
            if let Some(mac) = conflict.claimed_by {
                *self.claims.entry(mac).or_default() += 1;
            }
        }
    }

    /// Offers a client an address, instead of what it was offered before.
    pub fn hold(&mut self, client: &ClientId, address: Ipv4Addr, from: Origin, now: Now) {
        self.hold_until(client, Offer { address, from, until: Some(now.at + HOLD) }, now);
    }

    /// Holds an address for a client until its lease is written, or is not.
    pub fn hold_for_write(&mut self, client: &ClientId, address: Ipv4Addr, from: Origin, now: Now) {
        self.hold_until(client, Offer { address, from, until: None }, now);
    }

    fn hold_until(&mut self, client: &ClientId, offer: Offer, now: Now) {
        if self.offer(client, now).is_none() && self.lease(client).is_none_or(|lease| lease.is_over(now.unix)) {
            self.shares.add(offer.from);
        }
        self.drop_offer(client);
        self.offered.insert(offer.address, client.clone());
        self.offers.insert(client.clone(), offer);
    }

    /// The lease of a client was not written: what was held for that is an offer again.
    pub fn not_written(&mut self, client: &ClientId, now: Now) {
        if let Some(offer) = self.offers.get_mut(client) {
            offer.until.get_or_insert(now.at + HOLD);
        }
    }

    /// What a client was offered is free again.
    pub fn drop_offer(&mut self, client: &ClientId) {
        if let Some(offer) = self.offers.remove(client)
            && self.offered.get(&offer.address) == Some(client)
        {
            self.offered.remove(&offer.address);
        }
    }

    /// Somebody behind `port` with this MAC answers a probe for `address`. Returns whether he is believed: not of more
    /// addresses than one MAC may have, and not when those behind his port have all that they may have. A client that is
    /// given one of the others finds that out itself (RFC 2131 section 3.1), and declines it.
    pub fn claim(&mut self, config: &Config, address: Ipv4Addr, Origin { mac, port }: Origin, now: Now) -> bool {
        self.count(now);
        let claims = self.claims.get(&mac).copied().unwrap_or(0);
        if claims >= CLAIMS_PER_MAC || self.shares.of_port(port) >= config.settings.leases_per_port {
            return false;
        }
        self.claims.insert(mac, claims + 1);
        let conflict = Conflict { until: now.at + CONFLICT, port: Some(port), claimed_by: Some(mac) };
        self.in_conflict(config, address, conflict);
        true
    }

    /// Somebody uses an address that he was not given, as a client behind `port` says, or the lease book.
    pub fn conflict(&mut self, config: &Config, address: Ipv4Addr, port: Option<u32>, now: Now) {
        self.in_conflict(config, address, Conflict { until: now.at + CONFLICT, port, claimed_by: None });
    }

    fn in_conflict(&mut self, config: &Config, address: Ipv4Addr, conflict: Conflict) {
        self.probes.forget(address);
        self.shares.add_to_port(conflict.port);
        // Somebody who claims all of the range has no more than half of it: the rest is looked for again by ARP.
        let size = config.range.map_or(0, |(first, last)| u32::from(last) - u32::from(first) + 1);
        if self.conflicts.len() >= MOST_CONFLICTS.min(size.div_ceil(2) as usize) {
            let oldest = self.conflicts.iter().min_by_key(|(_, conflict)| conflict.until).map(|(address, _)| *address);
            oldest.map(|address| self.conflicts.remove(&address));
        }
        self.conflicts.insert(address, conflict);
    }
}
