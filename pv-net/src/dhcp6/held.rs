//! Addresses that are held back for a time: offered ones for their client, declined ones for nobody.

use crate::dhcp::Origin;
use crate::ipam::ClientId;
use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Instant;

/// How many addresses are held. Beyond that, an offered address is not held, and whoever requests it first has it.
const MOST: usize = 8192;

/// An address that is held back.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The client that it was offered to; nobody if somebody uses it who was not given it.
    pub client: Option<ClientId>,
    /// Who asked for it or declined it, and has it counted among his; `None` if it is known otherwise.
    pub from: Option<Origin>,
    /// When that ends.
    pub until: Instant,
}

/// The addresses of a pool that are held back.
#[derive(Debug, Default)]
pub struct Held {
    addresses: HashMap<Ipv6Addr, Hold>,
    clients: HashMap<ClientId, Ipv6Addr>,
}

impl Held {
    /// Holds `address` back. What was held for the same client before is free.
    pub fn hold(&mut self, address: Ipv6Addr, hold: Hold, now: Instant) {
        if self.addresses.len() >= MOST {
            self.forget_ended(now);
        }
        if let Some(client) = &hold.client {
            self.release(client);
        }
        if self.addresses.len() < MOST || self.addresses.contains_key(&address) {
            if let Some(client) = &hold.client {
                self.clients.insert(client.clone(), address);
            }
            self.addresses.insert(address, hold);
        }
    }

    /// Forgets what is not held any more.
    pub fn forget_ended(&mut self, now: Instant) {
        self.addresses.retain(|_, hold| hold.until > now);
        let addresses = &self.addresses;
        self.clients.retain(|_, address| addresses.contains_key(address));
    }

    /// All that are held.
    pub fn all(&self) -> impl Iterator<Item = &Hold> {
        self.addresses.values()
    }

    /// Nothing is held for `client` any more.
    pub fn release(&mut self, client: &ClientId) {
        if let Some(address) = self.clients.remove(client)
            && self.addresses.get(&address).is_some_and(|hold| hold.client.as_ref() == Some(client))
        {
            self.addresses.remove(&address);
        }
    }

    /// Whether `client` may have `address`.
    #[must_use]
    pub fn is_free_for(&self, address: Ipv6Addr, client: &ClientId, now: Instant) -> bool {
        self.addresses.get(&address).is_none_or(|hold| hold.until <= now || hold.client.as_ref() == Some(client))
    }

    /// The address that is held for `client`, and who asked for it.
    #[must_use]
    pub fn of(&self, client: &ClientId, now: Instant) -> Option<(Ipv6Addr, Option<Origin>)> {
        let address = *self.clients.get(client)?;
        let hold = self.addresses.get(&address)?;
        (hold.until > now && hold.client.as_ref() == Some(client)).then_some((address, hold.from))
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
