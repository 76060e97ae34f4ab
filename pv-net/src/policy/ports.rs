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

/// Decides which of several rules wins: the least. Denies come before allows, and then earlier rules before later ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    allows: bool,
    rule: u32,
}

impl Rank {
    fn verdict(self) -> PolicyVerdict {
        PolicyVerdict { rule: self.rule, action: if self.allows { POLICY_ALLOW } else { POLICY_DENY } }
    }
}

/// The rules between two classes for one protocol.
#[derive(Default)]
struct Proto {
    /// The best rule about the whole protocol.
    whole: Option<Rank>,
    spans: Vec<(RangeInclusive<u16>, Rank)>,
}

/// The better one. `None` means no rule, and loses.
fn better(a: Option<Rank>, b: Option<Rank>) -> Option<Rank> {
    [a, b].into_iter().flatten().min()
}

/// The entries for one pair of classes, to which the rules with these numbers apply.
pub(super) fn entries(
    classes: (u32, u32),
    numbers: impl Iterator<Item = u32>,
    rules: &[Rule],
    out: &mut Vec<(PairKey, PolicyVerdict)>,
) {
    let mut all = None;
    let mut protos: BTreeMap<u16, Proto> = BTreeMap::new();
    for number in numbers {
        let rule = &rules[number as usize];
        let rank = Some(Rank { allows: rule.action == Action::Allow, rule: number });
        if rule.ports.is_empty() {
            all = better(all, rank);
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
    let (src_class, dst_class) = classes;
    let mut put = |proto, port, bits, rank: Rank| {
        out.push((PairKey { src_class, dst_class, proto, port, bits }, rank.verdict()));
    };
    if let Some(rank) = all {
        put(0, 0, POLICY_PAIR_BITS, rank);
    }
    for (number, proto) in protos {
        let whole = better(all, proto.whole);
        if let Some(rank) = whole
            && whole != all
        {
            put(number, 0, POLICY_PROTO_BITS, rank);
        }
        for (range, rank) in stretches(&proto.spans, whole) {
            for (port, bits) in prefixes(range) {
                put(number, port, POLICY_PROTO_BITS + u32::from(bits), rank);
            }
        }
    }
}

/// Ranges of ports whose verdict differs from `whole`.
fn stretches(spans: &[(RangeInclusive<u16>, Rank)], whole: Option<Rank>) -> Vec<(RangeInclusive<u16>, Rank)> {
    /// Where ranges begin and end; an end is one past the last port.
    type Edges = BTreeMap<u32, Vec<(bool, Rank)>>;
    let mut edges = Edges::new();
    for (range, rank) in spans {
        edges.entry(u32::from(*range.start())).or_default().push((true, *rank));
        edges.entry(u32::from(*range.end()) + 1).or_default().push((false, *rank));
    }
    // The ranges of one rule may overlap, so it is open until the last of them ends.
    let mut open: BTreeMap<Rank, u32> = BTreeMap::new();
    let mut found: Vec<(RangeInclusive<u16>, Rank)> = Vec::new();
    let mut current: Option<(u32, Rank)> = None;
    for (at, changes) in edges {
        for (opens, rank) in changes {
            let count = open.entry(rank).or_default();
            *count = if opens { *count + 1 } else { *count - 1 };
            if *count == 0 {
                open.remove(&rank);
            }
        }
        let now = open.keys().next().copied();
        let now = better(whole, now).filter(|rank| Some(*rank) != whole);
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
