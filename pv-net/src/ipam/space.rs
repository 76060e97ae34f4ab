//! The addresses of a pool in one family, by their offset from the network address.

use super::IpamError;
use crate::model::{Pool, PoolName};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// One family of a pool.
#[derive(Clone, Debug)]
pub(super) struct Space {
    net: IpNetwork,
    base: u128,
    /// Offset of the last address.
    last: u128,
    gateway: u128,
    /// Offsets that are reserved for DHCP clients.
    dhcp: Option<RangeInclusive<u128>>,
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

impl Space {
    /// The pool's IPv6 (`v6`) or IPv4 addresses.
    pub(super) fn of(pool: &Pool, v6: bool) -> Option<Self> {
        if v6 {
            let subnet = pool.v6.as_ref()?;
            let dhcp = pool.dhcp6.as_ref().and_then(|d| d.range).map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b)));
            Some(Self::new(subnet.net.into(), subnet.gateway.into(), dhcp))
        } else {
            let subnet = pool.v4.as_ref()?;
            let dhcp = subnet.dhcp_range.map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b)));
            Some(Self::new(subnet.net.into(), subnet.gateway.into(), dhcp))
        }
    }

    /// The families that the pool has.
    pub(super) fn families(pool: &Pool) -> impl Iterator<Item = Self> {
        [Self::of(pool, false), Self::of(pool, true)].into_iter().flatten()
    }

    fn new(net: IpNetwork, gateway: IpAddr, dhcp: Option<(IpAddr, IpAddr)>) -> Self {
        let base = number(net.network());
        let bits = if net.is_ipv6() { 128 } else { 32 } - u32::from(net.prefix());
        let last = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
        let dhcp = dhcp.map(|(a, b)| number(a) - base..=number(b) - base);
        Self { net, base, last, gateway: number(gateway) - base, dhcp }
    }

    pub(super) fn is_v6(&self) -> bool {
        self.net.is_ipv6()
    }

    /// The address at `offset`; `None` past the end.
    pub(super) fn at(&self, offset: u128) -> Option<IpAddr> {
        let n = self.base.checked_add(offset).filter(|_| offset <= self.last)?;
        Some(if self.is_v6() { Ipv6Addr::from(n).into() } else { Ipv4Addr::from(u32::try_from(n).ok()?).into() })
    }

    /// The offset of an address of the network.
    pub(super) fn offset(&self, addr: IpAddr) -> u128 {
        number(addr).wrapping_sub(self.base)
    }

    /// Why the address at `offset` is not available for a managed container.
    fn special(&self, offset: u128) -> Option<&'static str> {
        if offset == self.gateway {
            Some("the gateway")
        } else if offset == 0 && self.is_v6() {
            Some("the subnet-router anycast address")
        } else if offset == 0 {
            Some("the network address")
        } else if offset == self.last && !self.is_v6() {
            Some("the broadcast address")
        } else if self.dhcp.as_ref().is_some_and(|r| r.contains(&offset)) {
            Some("in the DHCP range")
        } else {
            None
        }
    }

    /// Checks that a container may have `addr`.
    pub(super) fn check(&self, pool: &PoolName, addr: IpAddr) -> Result<(), IpamError> {
        if !self.net.contains(addr) {
            return Err(IpamError::Outside { addr, subnet: self.net.to_string(), pool: pool.clone() });
        }
        match self.special(self.offset(addr)) {
            Some(what) => Err(IpamError::Special { addr, what, pool: pool.clone() }),
            None => Ok(()),
        }
    }

    /// How many addresses are available for containers.
    pub(super) fn size(&self) -> u128 {
        let ends = if self.is_v6() { 1 } else { 2 };
        let dhcp = self.dhcp.as_ref().map_or(0, |r| r.end() - r.start() + 1);
        (self.last - ends - dhcp).saturating_add(1).saturating_sub(u128::from(self.gateway != 0))
    }

    /// Whether a container may have `addr`.
    pub(super) fn usable(&self, addr: IpAddr) -> bool {
        self.net.contains(addr) && self.special(self.offset(addr)).is_none()
    }

    /// The first offset for a container at or after position `turn` of the circle, which begins behind the gateway;
    /// with its own position.
    pub(super) fn usable_from(&self, mut turn: u128) -> Option<(u128, u128)> {
        // Position 0 is the gateway itself, and so is the one past the end.
        turn = turn.max(1);
        loop {
            if turn > self.last {
                return None;
            }
            let to_end = self.last - self.gateway;
            let offset = if turn <= to_end { self.gateway + turn } else { turn - to_end - 1 };
            match &self.dhcp {
                // The DHCP range may be millions of addresses wide, so it is skipped in one step.
                Some(r) if r.contains(&offset) => turn += r.end() - offset + 1,
                _ if self.special(offset).is_some() => turn += 1,
                _ => return Some((turn, offset)),
            }
        }
    }
}
