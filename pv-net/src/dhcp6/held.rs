//! Addresses that are held back for a time: offered ones for their client, declined ones for nobody.

use crate::ipam::ClientId;
use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Instant;

/// How many addresses are held. Beyond that, an offered address is not held, and whoever requests it first has it.
const MOST: usize = 8192;

/// The addresses of a pool that are held back.
#[derive(Debug, Default)]
pub struct Held {
    addresses: HashMap<Ipv6Addr, (Option<ClientId>, Instant)>,
    clients: HashMap<ClientId, Ipv6Addr>,
}

impl Held {
    /// Holds `address` for a client, or for nobody, until a time. What was held for the client before is free.
    pub fn hold(&mut self, address: Ipv6Addr, client: Option<ClientId>, until: Instant, now: Instant) {
        if self.addresses.len() >= MOST {
            self.addresses.retain(|_, (_, until)| *until > now);
            let addresses = &self.addresses;
            self.clients.retain(|_, address| addresses.contains_key(address));
        }
        if let Some(client) = &client {
            self.release(client);
        }
        if self.addresses.len() < MOST || self.addresses.contains_key(&address) {
            if let Some(client) = &client {
                self.clients.insert(client.clone(), address);
            }
            self.addresses.insert(address, (client, until));
        }
    }

    /// Nothing is held for `client` any more.
    pub fn release(&mut self, client: &ClientId) {
        if let Some(address) = self.clients.remove(client)
            && self.addresses.get(&address).is_some_and(|(holder, _)| holder.as_ref() == Some(client))
        {
            self.addresses.remove(&address);
        }
    }

    /// Whether `client` may have `address`.
    #[must_use]
    pub fn is_free_for(&self, address: Ipv6Addr, client: &ClientId, now: Instant) -> bool {
        self.addresses.get(&address).is_none_or(|(holder, until)| *until <= now || holder.as_ref() == Some(client))
    }

    /// The address that is held for `client`.
    #[must_use]
    pub fn of(&self, client: &ClientId, now: Instant) -> Option<Ipv6Addr> {
        let address = *self.clients.get(client)?;
        let (holder, until) = self.addresses.get(&address)?;
        (*until > now && holder.as_ref() == Some(client)).then_some(address)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }
}
