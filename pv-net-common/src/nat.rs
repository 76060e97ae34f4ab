//! Ports of masquerade: who has which of them, and which a container's port tries in what order.
//!
//! A container's port has one port outside for all peers (RFC 4787, REQ-1), for as long as there are enough.

use crate::FlowKey;
use crate::ip_proto::{IPPROTO_TCP, IPPROTO_UDP};

/// First port of the range, unless the device takes ports of its own from there: behind Linux's default
/// `ip_local_port_range`.
pub const FIRST_PORT: u16 = 61_000;
/// Ports of the range, wherever it begins.
pub const PORTS: u16 = 4_536;
/// Entries of the `nat_owners` map: the range, for each family and each protocol with ports.
pub const OWNER_SLOTS: u32 = PORTS as u32 * 6;
/// Ports that a container's port tries for all peers.
pub const TRIES: u32 = 8;
/// How far these are from each other in the range.
const STRIDE: u32 = 577;

const _: () = assert!(STRIDE < PORTS as u32);

const TCP: u32 = IPPROTO_TCP as u32;
const UDP: u32 = IPPROTO_UDP as u32;

/// Index in the `nat_owners` map of the port that is `offset` into the range; `key` is of any packet of the flow.
#[inline(always)]
#[must_use]
pub const fn slot(key: &FlowKey, offset: u32) -> u32 {
    slot_of(key.dst.is_v4(), key.proto, offset)
}

/// The same by family and protocol; what is neither TCP nor UDP is an echo.
#[inline(always)]
#[must_use]
pub const fn slot_of(v4: bool, proto: u32, offset: u32) -> u32 {
    let proto = match proto {
        TCP => 0,
        UDP => 1,
        _ => 2,
    };
    let family = if v4 { 0 } else { 3 };
    (family + proto) * PORTS as u32 + offset
}

/// Where the tries of a container's port begin. The kernel hands out ports in steps of two (`__inet_hash_connect`), so
/// that ports of one parity follow each other: the port that is used again is the one that has been silent for longest.
#[inline(always)]
#[must_use]
pub const fn start(link: u32, port: u16) -> u32 {
    (port.rotate_right(1) as u32 + (link.wrapping_mul(0x9e37_79b9) >> 16)) % PORTS as u32
}

/// The next try.
#[inline(always)]
#[must_use]
pub const fn next(offset: u32) -> u32 {
    let next = offset + STRIDE;
    if next >= PORTS as u32 { next - PORTS as u32 } else { next }
}

/// A port's own place in the range that begins with `first`, if it is of it.
#[inline(always)]
#[must_use]
pub const fn offset_of(first: u16, port: u16) -> Option<u32> {
    let offset = port.wrapping_sub(first);
    if offset < PORTS { Some(offset as u32) } else { None }
}

/// Value of the `nat_owners` map, one word, so that it is never seen half written:
///
/// ```text
/// 63           32 31            16   15    14       0
/// link            container's port   idle  last claim
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatOwner(pub u64);

const IDLE: u64 = 1 << 15;
const STAMP: u64 = IDLE - 1;

impl NatOwner {
    /// Nobody's.
    pub const FREE: Self = Self(0);
    /// The device's own: a socket has it, or it is published.
    pub const DEVICE: Self = Self(u64::MAX << 32);

    /// Of the container behind `link`, for its port; `ticks` is now.
    #[inline(always)]
    #[must_use]
    pub const fn new(link: u32, port: u16, ticks: u64) -> Self {
        Self((link as u64) << 32 | (port as u64) << 16 | ticks >> 8 & STAMP)
    }

    /// The same, when a connection over it has ended: another one may have the port before those in use are taken.
    #[inline(always)]
    #[must_use]
    pub const fn idle(self) -> Self {
        Self(self.0 | IDLE)
    }

    /// The host-side link of the container that has it; 0 for nobody.
    #[inline(always)]
    #[must_use]
    pub const fn link(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether it is that container's, for that port.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, link: u32, port: u16) -> bool {
        self.0 >> 16 == (link as u64) << 16 | port as u64
    }

    /// How unwillingly it is given to a port of the container behind `link`, the least first; none: never. A port that
    /// is free, then what is idle, then what this container has had for longest, and then others: who takes many loses
    /// his own.
    #[inline(always)]
    #[must_use]
    pub const fn cost(self, link: u32, port: u16, ticks: u64) -> Option<u32> {
        if self.0 >= Self::DEVICE.0 {
            return None;
        }
        if self.is(link, port) {
            return Some(0);
        }
        if self.0 == 0 {
            return Some(1 << 16);
        }
        let age = (ticks >> 8).wrapping_sub(self.0) & STAMP;
        let others = (self.link() != link) as u32;
        let in_use = (self.0 & IDLE == 0) as u32;
        Some((2 + 2 * in_use + others) << 16 | (STAMP - age) as u32)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn what_is_least_missed_is_given_first() {
        let now = 0x1_0000;
        let cost = |owner: NatOwner| owner.cost(7, 40_000, now).unwrap_or(u32::MAX);
        let order = [
            NatOwner::new(7, 40_000, 0),
            NatOwner::FREE,
            NatOwner::new(7, 1, now).idle(),
            NatOwner::new(8, 40_000, now).idle(),
            NatOwner::new(7, 1, now - 0x1000),
            NatOwner::new(7, 1, now),
            NatOwner::new(8, 1, now - 0x1000),
            NatOwner::new(8, 1, now),
            NatOwner::DEVICE,
        ];
        for pair in order.windows(2) {
            assert!(cost(pair[0]) < cost(pair[1]), "{pair:?}");
        }
        assert_eq!(NatOwner::DEVICE.cost(7, 40_000, now), None);
        assert!(NatOwner::new(7, 1, now).idle().is(7, 1));
        assert!(!NatOwner::FREE.is(7, 1));
    }

    #[test]
    fn an_age_outlives_the_stamps_end() {
        let older = NatOwner::new(8, 1, STAMP << 8).cost(7, 1, (STAMP + 9) << 8);
        let younger = NatOwner::new(8, 1, (STAMP + 5) << 8).cost(7, 1, (STAMP + 9) << 8);
        assert!(older < younger, "{older:?} {younger:?}");
    }

    #[test]
    fn ports_in_turn_have_ports_of_their_own() {
        let starts: std::collections::BTreeSet<u32> =
            (0..u32::from(PORTS)).map(|n| start(9, 32_768 + 2 * n as u16)).collect();
        assert_eq!(starts.len(), usize::from(PORTS));
    }

    #[test]
    fn every_try_is_another_port_of_the_range() {
        for port in [0, 1, 40_000, u16::MAX] {
            let mut offset = start(u32::MAX, port);
            let mut all = std::collections::BTreeSet::new();
            for _ in 0..TRIES {
                assert!(offset < u32::from(PORTS) && all.insert(offset));
                offset = next(offset);
            }
        }
        assert_eq!(offset_of(FIRST_PORT, u16::MAX), Some(u32::from(PORTS) - 1));
        assert_eq!(offset_of(50_000, 49_999), None);
        assert_eq!(offset_of(50_000, 54_536), None);
    }

    #[test]
    fn families_and_protocols_have_slots_of_their_own() {
        let mut all = std::collections::BTreeSet::new();
        for (v4, protos) in [(true, [TCP, UDP, 1]), (false, [TCP, UDP, 58])] {
            for proto in protos {
                for offset in [0, u32::from(PORTS) - 1] {
                    let slot = slot_of(v4, proto, offset);
                    assert!(slot < OWNER_SLOTS && all.insert(slot));
                }
            }
        }
    }
}
