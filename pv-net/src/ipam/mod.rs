//! Addresses: which container's interface has which, and which is next.
//!
//! Pure but for [`store`]: `(state, request) → lease or the reason why not`. The cursor of a pool goes once round its
//! subnet; after that the address that was released first is handed out first, so churn never exhausts a pool that
//! has a free address, and a peer's stale cache has the longest time to expire.

mod cursor;
mod error;
mod lease;
mod space;
pub mod store;

pub use error::IpamError;
pub use lease::{Lease, LeaseKey, Request};

use crate::model::{Mac, Pool, PoolName};
use cursor::Cursor;
use serde::{Deserialize, Serialize};
use space::Space;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Every lease of the device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Saved", try_from = "Saved")]
pub struct Ipam {
    leases: BTreeMap<LeaseKey, Lease>,
    /// Who holds an address. Pools do not overlap, so an address is of one pool.
    holders: HashMap<IpAddr, LeaseKey>,
    macs: HashMap<(PoolName, Mac), LeaseKey>,
    cursors: BTreeMap<PoolName, Cursors>,
    /// Addresses that declared containers ask for, whether they run or not.
    reserved: HashMap<IpAddr, LeaseKey>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursors {
    v4: Cursor,
    v6: Cursor,
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    leases: Vec<Lease>,
    cursors: BTreeMap<PoolName, Cursors>,
}

impl From<Ipam> for Saved {
    fn from(ipam: Ipam) -> Self {
        Self { leases: ipam.leases.into_values().collect(), cursors: ipam.cursors }
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
        Ok(ipam)
    }
}

/// How many addresses for containers `pool` has, in its smaller family.
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
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The lease of `key`.
    #[must_use]
    pub fn get(&self, key: &LeaseKey) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// Keeps `addr` for `key`: no other lease gets it. The first to reserve an address has it.
    ///
    /// # Errors
    /// The holder, when another key has reserved or leased it.
    pub fn reserve(&mut self, addr: IpAddr, key: &LeaseKey) -> Result<(), LeaseKey> {
        if let Some(holder) = self.taken(addr, key) {
            return Err(holder.clone());
        }
        self.reserved.insert(addr, key.clone());
        Ok(())
    }

    /// Forgets all reservations, before they are made anew from changed files.
    pub fn clear_reservations(&mut self) {
        self.reserved.clear();
    }

    /// Takes over a lease that is in use, from the disk or from an interface that exists.
    ///
    /// # Errors
    /// The holder, when another lease has one of its addresses or its MAC.
    pub fn learn(&mut self, lease: Lease) -> Result<(), LeaseKey> {
        let clash = lease.addresses().find_map(|a| self.holders.get(&a)).or_else(|| self.mac_holder(&lease));
        if let Some(holder) = clash.filter(|h| **h != lease.key) {
            return Err(holder.clone());
        }
        self.remove(&lease.key.clone());
        self.insert(lease);
        Ok(())
    }

    fn mac_holder(&self, lease: &Lease) -> Option<&LeaseKey> {
        self.macs.get(&(lease.key.pool.clone(), lease.mac))
    }

    /// The lease for `request`: the one that its key has, or a new one. A request for other addresses than the lease
    /// has replaces it.
    ///
    /// # Errors
    /// Why there is none; nothing is changed then.
    pub fn assign(&mut self, pool: &Pool, request: &Request<'_>) -> Result<Lease, IpamError> {
        self.check(pool, request)?;
        if let Some(old) = self.leases.get(request.key)
            && old.serves(pool, request)
        {
            return Ok(old.clone());
        }
        let old = self.remove(request.key);
        let saved = self.cursors.get(&pool.name).cloned();
        match self.make(pool, request, old.as_ref()) {
            Ok(lease) => {
                if let Some(old) = old {
                    self.note_released(&old, &lease);
                }
                self.insert(lease.clone());
                Ok(lease)
            }
            Err(e) => {
                if let Some(old) = old {
                    self.insert(old);
                }
                self.cursors.insert(pool.name.clone(), saved.unwrap_or_default());
                Err(e)
            }
        }
    }

    /// Ends the lease of `key`; its addresses are handed out last.
    pub fn release(&mut self, key: &LeaseKey) -> Option<Lease> {
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

    fn insert(&mut self, lease: Lease) {
        for addr in lease.addresses() {
            self.holders.insert(addr, lease.key.clone());
        }
        self.macs.insert((lease.key.pool.clone(), lease.mac), lease.key.clone());
        self.leases.insert(lease.key.clone(), lease);
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        for addr in lease.addresses() {
            self.holders.remove(&addr);
        }
        self.macs.remove(&(key.pool.clone(), lease.mac));
        Some(lease)
    }

    /// Who but `key` has or will have `addr`.
    fn taken(&self, addr: IpAddr, key: &LeaseKey) -> Option<&LeaseKey> {
        [self.holders.get(&addr), self.reserved.get(&addr)].into_iter().flatten().find(|holder| *holder != key)
    }

    /// What a request asks for is right and free.
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
        }
        if let Some(mac) = request.mac
            && let Some(holder) = self.macs.get(&(pool.name.clone(), mac))
            && holder != request.key
        {
            return Err(IpamError::MacTaken { mac, holder: holder.clone() });
        }
        Ok(())
    }

    /// A lease from what the request asks for, what the key had, and the cursors.
    fn make(&mut self, pool: &Pool, request: &Request<'_>, old: Option<&Lease>) -> Result<Lease, IpamError> {
        // What was dynamic and still fits is kept when only the other part of the request changed.
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
        Ok(Lease { key: request.key.clone(), ipv4, ipv6, mac, fixed })
    }

    /// `wanted`, else the address at offset `twin` when it is free, else the next.
    fn pick(
        &mut self,
        pool: &Pool,
        space: Space,
        wanted: Option<IpAddr>,
        twin: Option<u128>,
        key: &LeaseKey,
    ) -> Result<IpAddr, IpamError> {
        if let Some(addr) = wanted
            && self.taken(addr, key).is_none()
        {
            return Ok(addr);
        }
        if let Some(addr) = twin.and_then(|o| space.at(o))
            && space.check(&pool.name, addr).is_ok()
            && self.taken(addr, key).is_none()
        {
            return Ok(addr);
        }
        let cursors = self.cursors.entry(pool.name.clone()).or_default();
        let cursor = if space.is_v6() { &mut cursors.v6 } else { &mut cursors.v4 };
        let (holders, reserved) = (&self.holders, &self.reserved);
        let free =
            |addr: IpAddr| !holders.contains_key(&addr) && reserved.get(&addr).is_none_or(|holder| holder == key);
        cursor.next(&space, free).ok_or_else(|| IpamError::PoolFull { pool: pool.name.clone(), size: space.size() })
    }

    /// A MAC that follows from the address; its second octet tells apart what a requested MAC has taken.
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
