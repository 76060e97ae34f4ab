//! Addresses that are held back for a time: offered ones for their client, declined ones for nobody.

use crate::ipam::ClientId;
use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Instant;

/// How many addresses are held. Beyond that, an offered address is not held, and the lease book decides.
const MOST: usize = 1024;

/// The addresses of a pool that are held back.
#[derive(Debug, Default)]
pub struct Held(HashMap<Ipv6Addr, (Option<ClientId>, Instant)>);

impl Held {
    /// Holds `address` for a client, or for nobody, until a time.
    pub fn hold(&mut self, address: Ipv6Addr, client: Option<ClientId>, until: Instant, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, until)| *until > now);
        }
        if self.0.len() < MOST || self.0.contains_key(&address) {
            self.0.insert(address, (client, until));
        }
    }

    /// Whether `client` may have `address`.
    #[must_use]
    pub fn is_free_for(&self, address: Ipv6Addr, client: &ClientId, now: Instant) -> bool {
        self.0.get(&address).is_none_or(|(holder, until)| *until <= now || holder.as_ref() == Some(client))
    }

    /// The address that is held for `client`.
    #[must_use]
    pub fn of(&self, client: &ClientId, now: Instant) -> Option<Ipv6Addr> {
        let mut all = self.0.iter();
        all.find(|(_, (holder, until))| *until > now && holder.as_ref() == Some(client)).map(|(address, _)| *address)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
