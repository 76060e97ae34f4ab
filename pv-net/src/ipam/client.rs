//! Leases of clients of DHCP or DHCPv6, which are not containers of pv-net. Such a lease ends at a certain time.

use super::Ipam;
use crate::model::{Mac, PoolName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// The longest client identifier, in octets: the most that a DHCPv4 option holds. An identifier from DHCPv6 is shorter:
/// a type, an IAID, and a DUID of at most 130 octets (RFC 8415 section 11.1).
const LONGEST: usize = 255;

/// No lease is longer, in seconds: the most that the configuration takes is a year.
const LONGEST_LEASE: u64 = 366 * 86_400;
/// The start of 2025. A device whose clock is before that does not know the time yet.
const KNOWN_TIME: u64 = 1_735_689_600;

/// A client's identifier, in the form of DHCPv4's option 61 (RFC 2132 section 9.14): a type octet and data.
///
/// A client that sends none has its hardware type and MAC as its identifier. A client of DHCPv6 has the form of RFC
/// 4361, type 255 with IAID and DUID, so that the same client has the same identifier in both families.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(Box<[u8]>);

impl ClientId {
    /// The type of RFC 4361 section 6.1: an IAID of 4 octets and a DUID follow.
    const NODE: u8 = 255;
    /// The hardware type of Ethernet (RFC 1700).
    const ETHERNET: u8 = 1;

    /// An identifier from the octets of option 61; `None` when they are fewer than the 2 that RFC 2132 asks for, or too
    /// many.
    #[must_use]
    pub fn new(octets: &[u8]) -> Option<Self> {
        (2..=LONGEST).contains(&octets.len()).then(|| Self(octets.into()))
    }

    /// The identifier of a client that sends none: its hardware type and MAC.
    #[must_use]
    pub fn of_mac(mac: Mac) -> Self {
        Self([&[Self::ETHERNET], mac.0.as_slice()].concat().into())
    }

    /// The identifier of an identity association of DHCPv6 (RFC 4361 section 6.1); `None` when the DUID is too long.
    #[must_use]
    pub fn of_association(iaid: u32, duid: &[u8]) -> Option<Self> {
        Self::new(&[&[Self::NODE], iaid.to_be_bytes().as_slice(), duid].concat())
    }

    /// Whether this is the identifier of a client that sends none.
    #[must_use]
    pub fn is_mac(&self) -> bool {
        self.0.len() == 7 && self.0[0] == Self::ETHERNET
    }

    /// Its octets.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({self})")
    }
}

impl FromStr for ClientId {
    type Err = String;

    /// Parses hexadecimal digits, two for each octet.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => {
                let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
                Some(digit(*high)? << 4 | digit(*low)?)
            }
            _ => None,
        });
        let octets: Option<Vec<u8>> = digits.take(LONGEST + 1).collect();
        octets.and_then(|octets| Self::new(&octets)).ok_or_else(|| format!("{text:?} is no client identifier"))
    }
}

impl Serialize for ClientId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClientId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of a client's lease: a client has at most one address of each family in a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientKey {
    /// The pool.
    pub pool: PoolName,
    /// The client.
    pub client: ClientId,
    /// Whether the address is an IPv6 address.
    pub v6: bool,
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} (pool {})", self.client, self.pool)
    }
}

/// An address that a client may use until a certain time. What a later version adds is ignored, so that one can go back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLease {
    /// The pool.
    pub pool: PoolName,
    /// The client.
    pub client: ClientId,
    /// The address.
    pub address: IpAddr,
    /// The client's MAC, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The name that the client gave, as a label of a domain name in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Index of the port of the bridge that the client was behind when this was written, so that those behind one port
    /// have no more than their share after a restart either. After a reboot a port may have another index; then it counts
    /// for that port until the client renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// When it ends, in seconds since 1970 (UTC).
    pub expires: u64,
}

impl ClientLease {
    /// The lease's key.
    #[must_use]
    pub fn key(&self) -> ClientKey {
        ClientKey { pool: self.pool.clone(), client: self.client.clone(), v6: self.address.is_ipv6() }
    }

    /// For how many seconds this lease, which the disk has, still is what `new` would be; `None` if `new` must be
    /// written. A client that asks again and again must not cause as many writes, and is promised no more than the disk
    /// has.
    #[must_use]
    pub fn left_instead_of(&self, new: &Self, now: u64) -> Option<u32> {
        let is_same = (self.address, self.mac, &self.hostname) == (new.address, new.mac, &new.hostname);
        let most = new.expires.saturating_sub(now) / 8;
        let is_near = self.expires <= new.expires && self.expires + most >= new.expires;
        (!self.is_over(now) && is_same && is_near).then(|| u32::try_from(self.expires - now).ok())?
    }

    /// Whether the lease has ended by `now`, in seconds since 1970 (UTC). One that ends later than any lease can was
    /// given while the clock was wrong, and is over when the time is known. It stays in the book, so that its client gets
    /// the same address again, until somebody else needs the address.
    #[must_use]
    pub const fn is_over(&self, now: u64) -> bool {
        self.expires <= now || now >= KNOWN_TIME && self.expires > now + LONGEST_LEASE
    }
}

/// Whether two clients, each with its MAC where that is known, are one machine: it has the same MAC. Only where a MAC is
/// not known does the identifier tell, which a machine may have in both families (RFC 4361): anybody can send that of
/// another.
#[must_use]
pub fn is_one_machine(a: (&ClientId, Option<Mac>), b: (&ClientId, Option<Mac>)) -> bool {
    match (a.1, b.1) {
        (Some(a), Some(b)) => a == b,
        _ => a.0 == b.0,
    }
}

/// Why a client got no lease; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// A container has the address, or it is reserved for a declared one.
    #[error("{address}: taken by {holder}")]
    Container {
        /// The address.
        address: IpAddr,
        /// The container's key.
        holder: super::LeaseKey,
    },
    /// Another client has the address, or was the last to have it.
    #[error("{address}: taken by {holder}")]
    Client {
        /// The address.
        address: IpAddr,
        /// The other client's key.
        holder: ClientKey,
    },
}

impl Ipam {
    /// All leases of clients, in the order of their keys.
    pub fn clients(&self) -> impl Iterator<Item = &Arc<ClientLease>> {
        self.clients.values()
    }

    /// The lease of a client.
    #[must_use]
    pub fn client(&self, key: &ClientKey) -> Option<&Arc<ClientLease>> {
        self.clients.get(key)
    }

    /// Whether a name is another machine's, by a lease that is not over at `now` (seconds since 1970, UTC): in any
    /// pool, and in either family, for a name in the device's domain is not a pool's.
    #[must_use]
    pub fn is_name_of_another(&self, name: &str, me: &ClientLease, now: u64) -> bool {
        // The last to end first: those that are over are remembered, and may be very many.
        let all = self.named.get(name).into_iter().flatten().rev();
        let mut live = all.take_while(|(expires, _)| *expires > now).filter_map(|(_, key)| self.clients.get(key));
        live.any(|holder| !is_one_machine((&holder.client, holder.mac), (&me.client, me.mac)))
    }

    /// Gives a client a lease, in place of the one of that family that it has in the pool. The caller must have checked
    /// that the pool has the address for clients.
    ///
    /// # Errors
    /// The present holder of the address; nothing is changed then.
    pub fn lend(&mut self, lease: Arc<ClientLease>) -> Result<(), LendError> {
        let (key, address) = (lease.key(), lease.address);
        let held = self.holders.get(&address).or(self.reserved.get(&address));
        if let Some(holder) = held {
            return Err(LendError::Container { address, holder: holder.clone() });
        }
        if let Some(holder) = self.lent.get(&address).filter(|holder| **holder != key) {
            return Err(LendError::Client { address, holder: holder.clone() });
        }
        self.insert_client(key, lease);
        Ok(())
    }

    /// Adds a stored lease of a client, whatever declared containers have reserved since.
    pub(super) fn insert_client(&mut self, key: ClientKey, lease: Arc<ClientLease>) {
        self.end(&key);
        self.lent.insert(lease.address, key.clone());
        if let Some(name) = &lease.hostname {
            self.named.entry(name.clone()).or_default().insert((lease.expires, key.clone()));
        }
        self.clients.insert(key, lease);
    }

    /// Ends the lease of a client.
    pub fn end(&mut self, key: &ClientKey) -> Option<Arc<ClientLease>> {
        let lease = self.clients.remove(key)?;
        self.lent.remove(&lease.address);
        if let Some(name) = &lease.hostname
            && let Some(keys) = self.named.get_mut(name)
        {
            keys.remove(&(lease.expires, key.clone()));
            if keys.is_empty() {
                self.named.remove(name);
            }
        }
        Some(lease)
    }
}
