//! Address management: which interface of a container has which address, and which address is next.
//!
//! Pure except for [`store`]: `(state, request) → lease or error`. The cursor of a pool goes once round its subnet.
//! After that, the address that was released first is handed out first. So a pool with a free address always finds it,
//! and stale caches of peers have the longest time to expire.

mod change;
mod client;
mod cursor;
mod error;
mod lease;
mod run_text;
mod space;
pub mod store;

pub use change::{Assigned, Before, Change};
pub use client::{ClientId, ClientKey, ClientLease, LendError, is_one_machine};
pub use error::IpamError;
pub use lease::{Lease, LeaseKey, Request};

use crate::model::{Mac, Pool, PoolName};
use cursor::Cursor;
use serde::{Deserialize, Serialize};
use space::Space;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Every lease of the device.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Saved")]
pub struct Ipam {
    leases: BTreeMap<LeaseKey, Arc<Lease>>,
    /// Which lease has an address. Pools do not overlap, so each address belongs to one pool.
    holders: HashMap<IpAddr, LeaseKey>,
    macs: HashMap<(PoolName, Mac), LeaseKey>,
    cursors: BTreeMap<PoolName, Cursors>,
    /// Addresses that declared containers ask for, whether they are attached or not.
    reserved: HashMap<IpAddr, LeaseKey>,
    /// Addresses that the device itself has.
    of_device: BTreeSet<IpAddr>,
    /// Leases of clients of DHCP, also those that are over.
    clients: BTreeMap<ClientKey, Arc<ClientLease>>,
    /// Which client's lease has an address.
    lent: HashMap<IpAddr, ClientKey>,
    /// Which clients' leases have a name, also those that are over.
    named: HashMap<String, BTreeSet<(u64, ClientKey)>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursors {
    v4: Cursor,
    v6: Cursor,
}

/// The form on disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    leases: Vec<Arc<Lease>>,
    cursors: BTreeMap<PoolName, Cursors>,
    #[serde(default)]
    clients: Vec<Arc<ClientLease>>,
}

/// The form on disk, for writing.
#[derive(Serialize)]
struct Saving<'a> {
    leases: Vec<&'a Lease>,
    cursors: &'a BTreeMap<PoolName, Cursors>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clients: Vec<&'a ClientLease>,
}

impl Serialize for Ipam {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let leases = self.leases.values().map(Arc::as_ref).collect();
        let clients = self.clients.values().map(Arc::as_ref).collect();
        Saving { leases, cursors: &self.cursors, clients }.serialize(serializer)
    }
}

impl TryFrom<Saved> for Ipam {
    type Error = String;

    fn try_from(saved: Saved) -> Result<Self, String> {
        let mut ipam = Self { cursors: saved.cursors, ..Self::default() };
        for lease in saved.leases {
            let key = lease.key.clone();
            ipam.learn(lease).map_err(|holder| format!("{key} and {holder} have one address or MAC"))?;
        }
        for lease in saved.clients {
            let key = lease.key();
            if let Some(holder) = ipam.lent.get(&lease.address).filter(|holder| **holder != key) {
                return Err(format!("{key} and {holder} have one address"));
            }
            ipam.insert_client(key, lease);
        }
        Ok(ipam)
    }
}

/// How many addresses `pool` has for containers, in its smaller family.
#[must_use]
pub fn size(pool: &Pool) -> u128 {
    Space::families(pool).map(|s| s.size()).min().unwrap_or(0)
}

impl Ipam {
    /// No leases.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All leases, in the order of their keys.
    pub fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    /// The lease of `key`.
    #[must_use]
    pub fn get(&self, key: &LeaseKey) -> Option<&Arc<Lease>> {
        self.leases.get(key)
    }

    /// Reserves each address for its key, and ends all earlier reservations. No other key gets a reserved address. The
    /// first key to reserve an address has it.
    ///
    /// Returns, for each of them, which other key has reserved or leased it.
    pub fn reserve(&mut self, wanted: Vec<(IpAddr, LeaseKey)>) -> Vec<Option<LeaseKey>> {
        self.reserved.clear();
        let mut holders = Vec::with_capacity(wanted.len());
        for (addr, key) in wanted {
            let holder = self.taken(addr, &key).cloned();
            if holder.is_none() {
                self.reserved.insert(addr, key);
            }
            holders.push(holder);
        }
        holders
    }

    /// From now on the device has these addresses, which nobody is given. A lease that has one stays.
    pub fn set_device(&mut self, addresses: BTreeSet<IpAddr>) {
        self.of_device = addresses;
    }

    /// Adds a lease that is in use, from the disk or from an existing interface.
    ///
    /// # Errors
    /// The holder, when another lease has one of its addresses or its MAC.
    pub fn learn(&mut self, lease: Arc<Lease>) -> Result<(), LeaseKey> {
        if let Some(holder) = self.clash(&lease) {
            return Err(holder.clone());
        }
        self.remove(&lease.key);
        self.insert(lease);
        Ok(())
    }

    /// The other lease that has one of the addresses or the MAC of `lease`.
    fn clash(&self, lease: &Lease) -> Option<&LeaseKey> {
        let addresses = lease.addresses().filter_map(|a| self.holders.get(&a));
        let mac = self.macs.get(&(lease.key.pool.clone(), lease.mac));
        addresses.chain(mac).find(|holder| **holder != lease.key)
    }

    /// The lease for `request`: the one that its key has, or a new one, together with the change. If the lease has
    /// other addresses than requested, it is replaced.
    ///
    /// # Errors
    /// Why no lease can be given; nothing is changed then.
    pub fn assign(&mut self, pool: &Pool, request: &Request<'_>) -> Result<(Arc<Lease>, Option<Change>), IpamError> {
        self.check(pool, request)?;
        if let Some(old) = self.leases.get(request.key)
            && old.serves(pool, request)
        {
            return Ok((old.clone(), None));
        }
        let before = self.before(request.key);
        let old = self.remove(request.key);
        match self.make(pool, request, old.as_deref()) {
            Ok(lease) => {
                let (v4, v6) = self.moved(&pool.name, before.cursors());
                let lease = Arc::new(lease);
                if let Some(old) = old {
                    self.note_released(&old, &lease);
                }
                self.insert(lease.clone());
                let change = Change::Assigned(Assigned { lease: lease.clone(), v4, v6 });
                Ok((lease, Some(change)))
            }
            Err(e) => {
                self.take_back(before);
                Err(e)
            }
        }
    }

    /// Ends the lease of `key`; its addresses are the last to be handed out again.
    pub fn release(&mut self, key: &LeaseKey) -> Option<Arc<Lease>> {
        let lease = self.remove(key)?;
        self.cursors.entry(key.pool.clone()).or_default().release(&lease);
        Some(lease)
    }

    fn note_released(&mut self, old: &Lease, new: &Lease) {
        let gone = Lease {
            ipv4: old.ipv4.filter(|a| new.ipv4 != Some(*a)),
            ipv6: old.ipv6.filter(|a| new.ipv6 != Some(*a)),
            ..old.clone()
        };
        self.cursors.entry(old.key.pool.clone()).or_default().release(&gone);
    }

    fn insert(&mut self, lease: Arc<Lease>) {
        for addr in lease.addresses() {
            self.holders.insert(addr, lease.key.clone());
        }
        self.macs.insert((lease.key.pool.clone(), lease.mac), lease.key.clone());
        self.leases.insert(lease.key.clone(), lease);
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<Arc<Lease>> {
        let lease = self.leases.remove(key)?;
        for addr in lease.addresses() {
            self.holders.remove(&addr);
        }
        self.macs.remove(&(key.pool.clone(), lease.mac));
        Some(lease)
    }

    /// The key other than `key` that has leased or reserved `addr`.
    fn taken(&self, addr: IpAddr, key: &LeaseKey) -> Option<&LeaseKey> {
        [self.holders.get(&addr), self.reserved.get(&addr)].into_iter().flatten().find(|holder| *holder != key)
    }

    /// Whether `key` may have `addr`: it is not leased to another key or a client, not reserved for another key, and not the
    /// device's.
    fn is_free(&self, addr: IpAddr, key: &LeaseKey) -> bool {
        self.taken(addr, key).is_none() && !self.lent.contains_key(&addr) && !self.of_device.contains(&addr)
    }

    /// Checks that what a request asks for is valid and free.
    fn check(&self, pool: &Pool, request: &Request<'_>) -> Result<(), IpamError> {
        for addr in request.addresses() {
            let space = Space::of(pool, addr.is_ipv6()).ok_or_else(|| IpamError::NoFamily {
                pool: pool.name.clone(),
                addr,
                family: if addr.is_ipv6() { "IPv6" } else { "IPv4" },
            })?;
            space.check(&pool.name, addr)?;
            if let Some(holder) = self.taken(addr, request.key) {
                return Err(IpamError::Taken { addr, holder: holder.clone() });
            }
            if self.of_device.contains(&addr) {
                return Err(IpamError::OfDevice { addr });
            }
            if let Some(holder) = self.lent.get(&addr) {
                return Err(IpamError::Lent { addr, holder: holder.clone() });
            }
        }
        if let Some(mac) = request.mac
            && let Some(holder) = self.macs.get(&(pool.name.clone(), mac))
            && holder != request.key
        {
            return Err(IpamError::MacTaken { mac, holder: holder.clone() });
        }
        Ok(())
    }

    /// Makes a lease from the request, the key's old lease, and the cursors.
    fn make(&mut self, pool: &Pool, request: &Request<'_>, old: Option<&Lease>) -> Result<Lease, IpamError> {
        // Dynamic addresses that still fit are kept when only another part of the request has changed.
        let keep = |addr: Option<IpAddr>| {
            addr.filter(|a| Space::of(pool, a.is_ipv6()).is_some_and(|s| s.check(&pool.name, *a).is_ok()))
        };
        let old = old.filter(|o| !o.fixed);
        let wanted4 = request.ipv4.map(IpAddr::V4).or_else(|| keep(old.and_then(|o| o.ipv4).map(IpAddr::V4)));
        let wanted6 = request.ipv6.map(IpAddr::V6).or_else(|| keep(old.and_then(|o| o.ipv6).map(IpAddr::V6)));
        let v4 = match Space::of(pool, false) {
            Some(space) => Some(self.pick(pool, space, wanted4, None, request.key)?),
            None => None,
        };
        let twin = v4.and_then(|a| Some(Space::of(pool, false)?.offset(a)));
        let v6 = match Space::of(pool, true) {
            Some(space) => Some(self.pick(pool, space, wanted6, twin, request.key)?),
            None => None,
        };
        let ipv4 = v4.and_then(|a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        let ipv6 = v6.and_then(|a| if let IpAddr::V6(a) = a { Some(a) } else { None });
        let mac = request.mac.map_or_else(|| self.mac_for(&pool.name, ipv4, ipv6), Ok)?;
        let fixed = request.ipv4.is_some() || request.ipv6.is_some();
        Ok(Lease { key: request.key.clone(), ipv4, ipv6, mac, fixed, terms: None })
    }

    /// `wanted`, else the address at the offset `twin` if it is free, else the next free one.
    fn pick(
        &mut self,
        pool: &Pool,
        space: Space,
        wanted: Option<IpAddr>,
        twin: Option<u128>,
        key: &LeaseKey,
    ) -> Result<IpAddr, IpamError> {
        if let Some(addr) = wanted
            && self.is_free(addr, key)
        {
            return Ok(addr);
        }
        if let Some(addr) = twin.and_then(|o| space.at(o))
            && space.check(&pool.name, addr).is_ok()
            && self.is_free(addr, key)
        {
            return Ok(addr);
        }
        let cursors = self.cursors.entry(pool.name.clone()).or_default();
        let cursor = if space.is_v6() { &mut cursors.v6 } else { &mut cursors.v4 };
        let (holders, reserved, lent, of_device) = (&self.holders, &self.reserved, &self.lent, &self.of_device);
        let free = |addr: IpAddr| {
            let is_reserved = reserved.get(&addr).is_some_and(|holder| holder != key);
            !holders.contains_key(&addr) && !is_reserved && !lent.contains_key(&addr) && !of_device.contains(&addr)
        };
        cursor.next(&space, free).ok_or_else(|| IpamError::PoolFull { pool: pool.name.clone(), size: space.size() })
    }

    /// A MAC derived from the address. If a requested MAC is the same, the second octet is changed.
    fn mac_for(
        &self,
        pool: &PoolName,
        ipv4: Option<std::net::Ipv4Addr>,
        ipv6: Option<std::net::Ipv6Addr>,
    ) -> Result<Mac, IpamError> {
        let base = ipv4.map(Mac::from_ipv4).or_else(|| ipv6.map(Mac::from_ipv6));
        let base = base.ok_or_else(|| IpamError::NoSubnet { pool: pool.clone() })?;
        (0..=u8::MAX)
            .map(|step| {
                let mut mac = base.0;
                mac[1] = mac[1].wrapping_add(step);
                Mac(mac)
            })
            .find(|mac| !self.macs.contains_key(&(pool.clone(), *mac)))
            .ok_or_else(|| IpamError::NoMac { pool: pool.clone(), mac: base })
    }
}

#[cfg(test)]
mod tests;
