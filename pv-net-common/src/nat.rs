//! The ports of masquerade: who has which of them, and in which order they are tried for a container's port.
//!
//! A container's port keeps one outside port for all peers (RFC 4787, REQ-1), as long as there are enough ports.

use crate::FlowKey;
use crate::ip_proto::IPPROTO_TCP;

/// First port of masquerade's range, unless the device's own ports overlap with it. It is chosen below Linux's default
/// `ip_local_port_range`.
pub const FIRST_PORT: u16 = 16_384;
/// Number of ports in the range, wherever it begins. A kernel opens connections from the 14,116 even ports of its
/// default range in turn, and the range has a port of its own for each of them. So a peer sees the same outside port
/// again only for the same port of the container. A peer in `TIME_WAIT` accepts the new connection then, because its
/// sequence numbers and time stamps are later (RFC 6191); those of another container's port might seem older, and the
/// connection would wait for a second SYN.
pub const PORTS: u16 = 14_336;
/// Entries of the `nat_owners` map: the range for each family, once for TCP and once for other protocols.
pub const OWNER_SLOTS: u32 = PORTS as u32 * 4;
/// How many outside ports are tried for a container's port before it loses the promise of one port for all peers.
pub const TRIES: u32 = 8;
/// The distance in the range between one try and the next.
const STRIDE: u32 = 577;

const _: () = assert!(STRIDE < PORTS as u32);

const TCP: u32 = IPPROTO_TCP as u32;

/// Index in the `nat_owners` map of the port that is `offset` into the range; `key` is of any packet of the flow.
#[inline(always)]
#[must_use]
pub const fn slot(key: &FlowKey, offset: u32) -> u32 {
    slot_of(key.dst.is_v4(), key.proto, offset)
}

/// [`slot`] by family and protocol. ICMP echo shares a slot with UDP, and its identifier counts as the port.
#[inline(always)]
#[must_use]
pub const fn slot_of(v4: bool, proto: u32, offset: u32) -> u32 {
    let proto = if proto == TCP { 0 } else { 1 };
    let family = if v4 { 0 } else { 2 };
    (family + proto) * PORTS as u32 + offset
}

/// The offset of the first try for a container's port. The kernel hands out ports in steps of two
/// (`__inet_hash_connect`), so ports of one parity are placed side by side: a port that is reused is then the one that
/// has been silent for longest.
#[inline(always)]
#[must_use]
pub const fn start(link: u32, port: u16) -> u32 {
    (port.rotate_right(1) as u32 + (link.wrapping_mul(0x9e37_79b9) >> 16)) % PORTS as u32
}

/// The offset of the next try.
#[inline(always)]
#[must_use]
pub const fn next(offset: u32) -> u32 {
    let next = offset + STRIDE;
    if next >= PORTS as u32 { next - PORTS as u32 } else { next }
}

/// The offset of `port` in the range that begins with `first`; `None` when it is not in the range.
#[inline(always)]
#[must_use]
pub const fn offset_of(first: u16, port: u16) -> Option<u32> {
    let offset = port.wrapping_sub(first);
    if offset < PORTS { Some(offset as u32) } else { None }
}

/// Value of the `nat_owners` map: who has a port. One word, so that no reader sees it half written:
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
    /// Nobody has the port.
    pub const FREE: Self = Self(0);
    /// The device has the port: one of its sockets uses it, or it is published.
    pub const DEVICE: Self = Self(u64::MAX << 32);

    /// The container behind `link` has the port for its own port `port`; `ticks` is the present time (`bpf_jiffies64`).
    #[inline(always)]
    #[must_use]
    pub const fn new(link: u32, port: u16, ticks: u64) -> Self {
        Self((link as u64) << 32 | (port as u64) << 16 | ticks >> 8 & STAMP)
    }

    /// The same owner after a connection over the port has ended: others may get an idle port before one that is in
    /// use.
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

    /// Whether the owner is the container behind `link`, for its port `port`.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, link: u32, port: u16) -> bool {
        self.0 >> 16 == (link as u64) << 16 | port as u64
    }

    /// The cost of giving the port to port `port` of the container behind `link`; the least cost is chosen first, and
    /// `None` means never. The order is: free ports, idle ports, the ports that this container has had for longest, and
    /// last those of others. So a container that takes many ports loses its own first.
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
        let starts: std::collections::BTreeSet<u32> = (32_768..61_000).step_by(2).map(|port| start(9, port)).collect();
        assert_eq!(starts.len(), 14_116);
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
        assert_eq!(offset_of(FIRST_PORT, FIRST_PORT + PORTS - 1), Some(u32::from(PORTS) - 1));
        assert_eq!(offset_of(FIRST_PORT, FIRST_PORT + PORTS), None);
        assert_eq!(offset_of(50_000, 49_999), None);
        assert_eq!(offset_of(50_000, 64_336), None);
    }

    #[test]
    fn families_and_protocols_have_slots_of_their_own() {
        let mut all = std::collections::BTreeSet::new();
        for (v4, protos) in [(true, [TCP, 17]), (false, [TCP, 17])] {
            for proto in protos {
                for offset in [0, u32::from(PORTS) - 1] {
                    let slot = slot_of(v4, proto, offset);
                    assert!(slot < OWNER_SLOTS && all.insert(slot));
                }
            }
            assert_eq!(slot_of(v4, 1, 7), slot_of(v4, 17, 7));
        }
    }
}
