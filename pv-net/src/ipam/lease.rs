//! Leases, their keys, and requests for them.

use super::Space;
use crate::model::{Attachment, ContainerName, IfName, Mac, Pool, PoolName, Terms};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// What a lease belongs to: an interface of a container in a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseKey {
    /// The pool.
    pub pool: PoolName,
    /// The container.
    pub container: ContainerName,
    /// The interface, as the container names it.
    pub interface: IfName,
}

impl LeaseKey {
    /// The key of an attached interface.
    #[must_use]
    pub fn of(attachment: &Attachment) -> Self {
        let Attachment { pool, container, interface, .. } = attachment.clone();
        Self { pool, container, interface }
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} (pool {})", self.container, self.interface, self.pool)
    }
}

/// The addresses of one interface: one of each family that the pool has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The interface that it belongs to.
    pub key: LeaseKey,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC.
    pub mac: Mac,
    /// An address was requested explicitly.
    pub fixed: bool,
    /// On what terms the network of the pool's parent has given the addresses, where it chooses them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Arc<Terms>>,
}

/// A request of an interface; `None` leaves the choice to pv-net.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The interface.
    pub key: &'a LeaseKey,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC.
    pub mac: Option<Mac>,
}

impl Request<'_> {
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

impl Lease {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Whether this lease is what `request` would get: it has the requested addresses, and fits the pool's present
    /// families and networks.
    pub(super) fn serves(&self, pool: &Pool, request: &Request<'_>) -> bool {
        let asked = |want: bool, same: bool| !want || same;
        let fits = |addr: Option<IpAddr>, v6: bool| match (Space::of(pool, v6), addr) {
            (Some(space), Some(addr)) => space.check(&pool.name, addr).is_ok(),
            (None, None) => true,
            _ => false,
        };
        let fixed = request.ipv4.is_some() || request.ipv6.is_some();
        asked(request.ipv4.is_some(), self.ipv4 == request.ipv4)
            && asked(request.ipv6.is_some(), self.ipv6 == request.ipv6)
            && request.mac.is_none_or(|mac| self.mac == mac)
            && self.fixed == fixed
            && fits(self.ipv4.map(IpAddr::V4), false)
            && fits(self.ipv6.map(IpAddr::V6), true)
    }
}
