//! Who asks: a container, another host in a pool, or the device.

use super::Zone;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The number of its pool.
    pub pool: u16,
    /// The container; `None` for another host in the pool's network.
    pub(super) host: Option<u32>,
    /// The container's identity, which stays the same when names are made anew; 0 for others.
    identity: u32,
    /// Whether it is the device, which sees all names.
    pub(super) is_device: bool,
    /// Its part of the share that it has with others.
    lot: u8,
}

/// To whose share a question counts: a container's, whatever its address, or that of all other hosts in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A container, by its identity.
    Container(u32),
    /// All other hosts in the pool with this number.
    Others(u16),
    /// The device itself.
    Device,
}

/// A part of a share. All hosts of a pool that are no containers have one share, in which each host has one of 256 parts: so
/// one of them takes nothing from most others, and those that make up addresses take no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Whose share it is.
    pub whose: Whose,
    lot: u8,
}

impl Part {
    /// The whole share, of who has it alone.
    #[must_use]
    pub const fn all_of(whose: Whose) -> Self {
        Self { whose, lot: 0 }
    }
}

/// Nobody can choose an address that has the part of a given other one.
static LOTS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Client {
    /// The part of a share to which its questions count.
    #[must_use]
    pub const fn part(&self) -> Part {
        Part { whose: self.whose(), lot: self.lot }
    }

    /// The share to which its questions count.
    #[must_use]
    pub const fn whose(&self) -> Whose {
        match self.host {
            _ if self.is_device => Whose::Device,
            Some(_) => Whose::Container(self.identity),
            None => Whose::Others(self.pool),
        }
    }
}

impl Zone {
    fn identity(&self, host: u32) -> u32 {
        self.hosts.get(host as usize).map_or(0, |host| host.identity)
    }

    /// The client with `address` in pool number `pool`. `None` when the address belongs to nobody in the pool.
    #[must_use]
    pub fn client(&self, pool: u16, address: IpAddr) -> Option<Client> {
        let host = self.clients.get(&(pool, address)).copied();
        let inside =
            || self.pools.get(usize::from(pool)).is_some_and(|p| p.networks.iter().any(|n| n.contains(address)));
        let identity = host.map_or(0, |host| self.identity(host));
        let lot = if host.is_some() { 0 } else { LOTS.hash_one(address) as u8 };
        (host.is_some() || inside()).then_some(Client { pool, host, identity, is_device: false, lot })
    }

    /// The container as a client of its main pool's gateway; `None` when it has no pool whose gateway answers.
    #[must_use]
    pub fn client_of(&self, addresses: impl Iterator<Item = IpAddr>) -> Option<Client> {
        let own = addresses.filter_map(|ip| self.by_address.get(&ip)).filter_map(|at| self.addresses.get(*at as usize));
        let mut asks = own.filter(|a| self.pools.get(usize::from(a.pool)).is_some_and(|p| p.answers));
        asks.next().map(|a| Client {
            pool: a.pool,
            host: Some(a.host),
            identity: self.identity(a.host),
            is_device: false,
            lot: 0,
        })
    }

    /// The device itself as a client, in its first pool whose gateway answers.
    #[must_use]
    pub fn device(&self) -> Client {
        let pool = (0..).zip(&self.pools).find(|(_, pool)| pool.answers).map_or(0, |(number, _)| number);
        Client { pool, host: None, identity: 0, is_device: true, lot: 0 }
    }
}
