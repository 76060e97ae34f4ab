//! Ports that the kernel must not choose for the device's own connections: masquerade's, and published ones.

use pv_net_common::nat;
use std::fmt;
use std::ops::RangeInclusive;

/// The least number of ports that are left for the device's own connections, whatever is published.
const LEAST_OWN: usize = 4_096;
/// The least number of ports of `ip_local_port_range` that masquerade's range leaves; else the range is moved.
const LEAST_BESIDE_NAT: usize = 16_384;
/// Lower ports are for well-known services.
const FIRST_FREE: u16 = 1_024;

/// A set of ports, in the kernel's text form: `8080,9000-9010`.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Vec<u64>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![0; (u16::MAX as usize + 1) / 64])
    }
}

impl PortSet {
    /// The set in `text`; `None` when that is no list of ports.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            set.add(&(first.trim().parse().ok()?..=last.trim().parse().ok()?));
        }
        Some(set)
    }

    /// Adds a range.
    pub fn add(&mut self, ports: &RangeInclusive<u16>) {
        for port in ports.clone() {
            self.0[usize::from(port) / 64] |= 1 << (port % 64);
        }
    }

    /// Whether it has this port.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] >> (port % 64) & 1 == 1
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many of `ports` are not in the set.
    fn left_of(&self, ports: &RangeInclusive<u16>) -> usize {
        ports.clone().filter(|port| !self.has(*port)).count()
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| with(*a, *b)).collect())
    }

    /// The ports that are in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    /// The set without `ours`, which were added when it was `was`: ports that were in `was` or were added by others
    /// since then stay.
    #[must_use]
    pub fn without(&self, ours: &Self, was: &Self) -> Self {
        self.combined(ours, |a, b| a & !b).union(&was.combined(ours, |a, b| a & b).combined(self, |a, b| a & b))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = 0u32;
        let mut comma = "";
        while let Some(first) = (next..=u32::from(u16::MAX)).find(|port| self.has(*port as u16)) {
            let end = (first..=u32::from(u16::MAX)).find(|port| !self.has(*port as u16)).unwrap_or(0x1_0000);
            write!(f, "{comma}{first}")?;
            if end - 1 > first {
                write!(f, "-{}", end - 1)?;
            }
            (next, comma) = (end, ",");
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Masquerade's port range, given `local`, the value of `ip_local_port_range`. It lies below Linux's default for that,
/// unless too few of `local` would be left; then it is moved beside `local`, if there is room.
#[must_use]
pub fn nat_range(local: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let from = |first: u16| first..=first + (nat::PORTS - 1);
    let usual = from(nat::FIRST_PORT);
    let mut taken = PortSet::default();
    taken.add(&usual);
    let apart = local.end() < usual.start() || usual.end() < local.start();
    if apart || taken.left_of(local) >= LEAST_BESIDE_NAT {
        return usual;
    }
    let below = local.start().checked_sub(nat::PORTS).filter(|first| *first >= FIRST_FREE);
    let above = local.end().checked_add(1).filter(|first| first.checked_add(nat::PORTS - 1).is_some());
    below.or(above).map_or(usual, from)
}

/// The ports to put into `ip_local_reserved_ports`, and the ranges of `published` that cannot be reserved because the
/// device would have too few ports left. Smaller ranges are reserved first.
#[must_use]
pub fn reserved<'a>(
    local: &RangeInclusive<u16>,
    nat: Option<&RangeInclusive<u16>>,
    published: impl Iterator<Item = &'a RangeInclusive<u16>>,
) -> (PortSet, Vec<RangeInclusive<u16>>) {
    let mut set = PortSet::default();
    nat.into_iter().for_each(|ports| set.add(ports));
    let mut published: Vec<_> = published.cloned().collect();
    published.sort_by_key(|ports| (ports.len(), *ports.start()));
    published.dedup();
    let mut refused = Vec::new();
    for ports in published {
        let mut more = set.clone();
        more.add(&ports);
        let touches = more.left_of(local) < set.left_of(local);
        if touches && more.left_of(local) < LEAST_OWN {
            refused.push(ports);
        } else if touches {
            set = more;
        }
    }
    (set, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> PortSet {
        PortSet::parse(text).expect("ports")
    }

    #[test]
    fn masquerade_leaves_the_device_its_ports() {
        for (local, want) in [
            (32_768..=60_999, 16_384),
            (1_024..=65_535, 16_384),
            (61_000..=65_535, 16_384),
            (16_000..=40_000, 1_664),
            (10_000..=40_000, 40_001),
            (10_000..=60_000, 16_384),
            (1_024..=20_000, 20_001),
        ] {
            let found = nat_range(&local);
            assert_eq!((*found.start(), found.len()), (want, usize::from(nat::PORTS)), "{local:?}");
        }
    }

    #[test]
    fn published_ports_are_reserved_while_the_device_has_enough() {
        let local = 32_768..=60_999;
        let nat = 16_384..=30_719;
        let reserved = |published: &[RangeInclusive<u16>]| {
            let (set, refused) = reserved(&local, Some(&nat), published.iter());
            (set.to_string(), refused)
        };
        assert_eq!(reserved(&[]), ("16384-30719".to_owned(), vec![]));
        // Ports outside `ip_local_port_range` need not be reserved.
        assert_eq!(reserved(&[80..=80, 40_000..=40_000]), ("16384-30719,40000".to_owned(), vec![]));
        assert_eq!(
            reserved(&[32_768..=60_999, 40_000..=40_001]),
            ("16384-30719,40000-40001".to_owned(), vec![32_768..=60_999])
        );
    }

    #[test]
    fn what_somebody_else_reserved_is_left() {
        for (was, ours, now, want) in [
            ("", "61000-65535", "61000-65535", ""),
            ("8080,62000", "61000-65535", "8080,61000-65535", "8080,62000"),
            // Somebody added and removed ports by hand meanwhile.
            ("8080", "61000-65535", "9090,61000-65535", "9090"),
            ("62000", "61000-65535", "", ""),
        ] {
            assert_eq!(set(now).without(&set(ours), &set(was)), set(want), "{was} {ours} {now}");
        }
    }

    #[test]
    fn what_is_no_list_of_ports_is_none() {
        for text in ["x", "1-", "70000", "1,,x"] {
            assert!(PortSet::parse(text).is_none(), "{text}");
        }
        assert!(set("\n").is_empty() && set("0-65535").left_of(&(0..=u16::MAX)) == 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ranges in proptest::collection::vec(any::<(u16, u16)>(), 0..6)) {
            let mut all = PortSet::default();
            ranges.iter().for_each(|(a, b)| all.add(&(*a.min(b)..=*a.max(b))));
            prop_assert_eq!(set(&all.to_string()), all);
        }
    }
}
