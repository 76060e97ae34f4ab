//! The verdicts between two classes, by protocol and port.

use super::compile::PairKey;
use crate::model::{Action, PortMatch, Rule};
use pv_net_common::PolicyVerdict;
use pv_net_common::policy::{
    POLICY_ALLOW, POLICY_DENY, POLICY_ICMP, POLICY_PAIR_BITS, POLICY_PORT_BITS, POLICY_PROTO_BITS, POLICY_TCP,
    POLICY_UDP,
};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How many ports there are.
const PORTS: usize = 1 << 16;

/// Decides which of several rules wins: the least. Denies come before allows, then rules before the limits of containers, and
/// earlier rules before later ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    allows: bool,
    /// It is a receiver's limits. Those of the sender come before: mostly they grant nothing to that receiver, and one entry
    /// says so.
    receives: bool,
    rule: u32,
}

impl Rank {
    fn verdict(self) -> PolicyVerdict {
        PolicyVerdict { rule: self.rule, action: if self.allows { POLICY_ALLOW } else { POLICY_DENY } }
    }
}

/// The limits of a container that is one of the two: it refuses everything that is not granted.
pub(super) struct Limit<'a> {
    /// Its number among the rules.
    pub rule: u32,
    /// Whether it is about what the container gets.
    pub receives: bool,
    /// What passes as far as it is concerned.
    pub granted: Vec<&'a PortMatch>,
}

impl Limit<'_> {
    const fn rank(&self) -> Rank {
        Rank { allows: false, rule: self.rule, receives: self.receives }
    }

    /// The granted ports of a protocol: ranges that neither overlap nor touch.
    fn granted(&self, proto: u16) -> Vec<RangeInclusive<u16>> {
        let ports = |ports: &&PortMatch| match ports {
            PortMatch::Tcp(range) if proto == POLICY_TCP => Some(range.clone().unwrap_or(0..=u16::MAX)),
            PortMatch::Udp(range) if proto == POLICY_UDP => Some(range.clone().unwrap_or(0..=u16::MAX)),
            PortMatch::Tcp(_) | PortMatch::Udp(_) | PortMatch::Icmp => None,
        };
        let mut all: Vec<_> = self.granted.iter().filter_map(ports).collect();
        all.sort_unstable_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in all {
            match merged.last_mut().filter(|last| *range.start() <= last.end().saturating_add(1)) {
                Some(last) => *last = *last.start()..=*last.end().max(range.end()),
                None => merged.push(range),
            }
        }
        merged
    }
}

/// What applies between two classes for one protocol.
#[derive(Default)]
struct Proto {
    /// The best rule about the whole protocol.
    whole: Option<Rank>,
    /// The ranges of ports in which a rule applies.
    spans: Vec<(RangeInclusive<u16>, Rank)>,
    /// The ranges in which a limit does not.
    gaps: Vec<(RangeInclusive<u16>, Rank)>,
}

/// The better one. `None` means no rule, and loses.
fn better(a: Option<Rank>, b: Option<Rank>) -> Option<Rank> {
    [a, b].into_iter().flatten().min()
}

/// The entries for one pair of classes, to which the rules with these numbers apply, and these limits.
pub(super) fn entries(
    classes: (u32, u32),
    numbers: impl Iterator<Item = u32>,
    rules: &[Rule],
    limits: &[Limit<'_>],
    out: &mut Vec<(PairKey, PolicyVerdict)>,
) {
    let mut of_rules = None;
    let mut protos: BTreeMap<u16, Proto> = BTreeMap::new();
    for number in numbers {
        let rule = &rules[number as usize];
        let rank = Some(Rank { allows: rule.action == Action::Allow, rule: number, receives: false });
        if rule.ports.is_empty() {
            of_rules = better(of_rules, rank);
        }
        for ports in &rule.ports {
            let (proto, range) = match ports {
                PortMatch::Tcp(range) => (POLICY_TCP, range),
                PortMatch::Udp(range) => (POLICY_UDP, range),
                PortMatch::Icmp => (POLICY_ICMP, &None),
            };
            let proto = protos.entry(proto).or_default();
            match range {
                None => proto.whole = better(proto.whole, rank),
                Some(range) => proto.spans.extend(rank.map(|rank| (range.clone(), rank))),
            }
        }
    }
    for limit in limits {
        for proto in [POLICY_TCP, POLICY_UDP] {
            let gaps = limit.granted(proto);
            if !gaps.is_empty() {
                protos.entry(proto).or_default().gaps.extend(gaps.into_iter().map(|range| (range, limit.rank())));
            }
        }
    }
    let (src_class, dst_class) = classes;
    let mut put = |proto, port, bits, rank: Option<Rank>| {
        // Where a limit does not apply, an entry without a verdict is before that of the limit.
        let verdict = rank.map_or(PolicyVerdict::NOTHING, Rank::verdict);
        out.push((PairKey { src_class, dst_class, proto, port, bits }, verdict));
    };
    let strictest = limits.iter().map(Limit::rank).min();
    let all = better(of_rules, strictest);
    if all.is_some() {
        put(0, 0, POLICY_PAIR_BITS, all);
    }
    for (number, proto) in protos {
        let whole = better(of_rules, proto.whole);
        // A limit that grants all ports of the protocol says nothing about it.
        let is_said =
            |limit: &&Limit<'_>| !proto.gaps.iter().any(|(gap, rank)| *rank == limit.rank() && gap.len() == PORTS);
        let applying: Vec<Rank> = limits.iter().filter(is_said).map(Limit::rank).collect();
        let usual = better(whole, applying.iter().min().copied());
        if usual != all {
            put(number, 0, POLICY_PROTO_BITS, usual);
        }
        for (range, rank) in stretches(&proto, whole, &applying) {
            for (port, bits) in prefixes(range) {
                put(number, port, POLICY_PROTO_BITS + u32::from(bits), rank);
            }
        }
    }
}

/// Ranges of ports whose verdict differs from the usual one of the protocol: the better one of `whole` and all of `limits`.
fn stretches(proto: &Proto, whole: Option<Rank>, limits: &[Rank]) -> Vec<(RangeInclusive<u16>, Option<Rank>)> {
    /// Where ranges begin and end; an end is one past the last port.
    type Edges = BTreeMap<u32, Vec<(bool, Rank)>>;
    let mut edges = Edges::new();
    let gaps = proto.gaps.iter().filter(|(_, rank)| limits.contains(rank)).map(|gap| (false, gap));
    for (opens, (range, rank)) in proto.spans.iter().map(|span| (true, span)).chain(gaps) {
        edges.entry(u32::from(*range.start())).or_default().push((opens, *rank));
        edges.entry(u32::from(*range.end()) + 1).or_default().push((!opens, *rank));
    }
    // The ranges of one rule may overlap, so it is open until the last of them ends. A limit is open outside of its gaps.
    let mut open: BTreeMap<Rank, i64> = BTreeMap::new();
    for limit in limits {
        *open.entry(*limit).or_default() += 1;
    }
    let usual = better(whole, open.keys().next().copied());
    let mut found: Vec<(RangeInclusive<u16>, Option<Rank>)> = Vec::new();
    let mut current: Option<(u32, Option<Rank>)> = None;
    for (at, changes) in edges {
        for (opens, rank) in changes {
            let count = open.entry(rank).or_default();
            *count += if opens { 1 } else { -1 };
            if *count == 0 {
                open.remove(&rank);
            }
        }
        let now = better(whole, open.keys().next().copied());
        let now = (now != usual).then_some(now);
        if current.map(|(_, rank)| rank) != now {
            if let Some((start, rank)) = current
                && let (Ok(first), Ok(last)) = (u16::try_from(start), u16::try_from(at - 1))
            {
                found.push((first..=last, rank));
            }
            current = now.map(|rank| (at, rank));
        }
    }
    found
}

/// The fewest blocks that make up `range`, each of 2^n ports and aligned to its size: first port and prefix bits.
fn prefixes(range: RangeInclusive<u16>) -> impl Iterator<Item = (u16, u8)> {
    let (mut at, end) = (u32::from(*range.start()), u32::from(*range.end()) + 1);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
        let fits = (end - at).ilog2();
        let size = aligned.min(fits);
        let block = (u16::try_from(at).ok()?, 16 - u8::try_from(size).ok()?);
        at += 1 << size;
        Some(block)
    })
}

const _: () = assert!(POLICY_PROTO_BITS + 16 == POLICY_PORT_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_blocks() {
        for (range, want) in [
            (80..=80, vec![(80, 16)]),
            (0..=65535, vec![(0, 0)]),
            (1..=3, vec![(1, 16), (2, 15)]),
            (1000..=1007, vec![(1000, 13)]),
            (65534..=65535, vec![(65534, 15)]),
        ] {
            assert_eq!(prefixes(range.clone()).collect::<Vec<_>>(), want, "{range:?}");
        }
        assert_eq!(prefixes(1..=65534).count(), 30, "the worst that there is");
    }
}
