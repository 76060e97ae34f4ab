//! Evaluates a compiled policy without a kernel, by the same look-ups in the same order as the programs.

use super::{Compiled, PairKey};
use pv_net_common::policy::{
    POLICY_ALLOW, POLICY_DENY, POLICY_NOTHING, POLICY_PAIR_BITS, POLICY_PORT_BITS, POLICY_PROTO_BITS, POLICY_TCP,
    POLICY_UDP, policy_proto,
};
use pv_net_common::{Ip, PolicyClass, PolicySide, PolicyVerdict};
use std::collections::{HashMap, HashSet};

/// A compiled policy, indexed for look-ups.
#[derive(Debug)]
pub struct Evaluator {
    ids: HashMap<(u32, Ip), PolicyClass>,
    cidrs: HashMap<(u128, u32), PolicyClass>,
    pairs: HashMap<PairKey, PolicyVerdict>,
    /// Pairs of sender's and receiver's class for which some rule allows something.
    allowed: HashSet<(u32, u32)>,
    /// Pairs for which some entry leaves the verdict to the pools' settings.
    left: HashSet<(u32, u32)>,
}

impl Compiled {
    /// Indexes the policy for look-ups.
    #[must_use]
    pub fn evaluator(&self) -> Evaluator {
        let with = |action| {
            let of = self.pairs.iter().filter(move |(_, verdict)| verdict.action == action);
            of.map(|(key, _)| (key.src_class, key.dst_class)).collect()
        };
        Evaluator {
            ids: self.ids.iter().map(|(id, ip, class)| ((*id, *ip), *class)).collect(),
            cidrs: self.cidrs.iter().map(|(ip, bits, class)| ((number(*ip), *bits), *class)).collect(),
            pairs: self.pairs.iter().copied().collect(),
            allowed: with(POLICY_ALLOW),
            left: with(POLICY_NOTHING),
        }
    }
}

fn number(ip: Ip) -> u128 {
    u128::from_be_bytes(ip.octets())
}

impl Evaluator {
    /// What the rules say about a packet. `port` counts for TCP and UDP only.
    #[must_use]
    pub fn verdict(&self, src: &PolicySide, dst: &PolicySide, proto: u8, port: u16) -> PolicyVerdict {
        let (Some(from), Some(to)) = (self.class(src), self.class(dst)) else { return PolicyVerdict::UNKNOWN };
        let proto = policy_proto(proto);
        let port = if matches!(proto, POLICY_TCP | POLICY_UDP) { port } else { 0 };
        let key = |proto, port, bits| PairKey { src_class: from.src, dst_class: to.dst, proto, port, bits };
        let ports = (0..=16u32).rev().map(|n| {
            let mask = u16::MAX.checked_shl(16 - n).unwrap_or(0);
            key(proto, port & mask, POLICY_PROTO_BITS + n)
        });
        debug_assert_eq!(POLICY_PORT_BITS, POLICY_PROTO_BITS + 16);
        let found = ports.chain([key(0, 0, POLICY_PAIR_BITS)]).find_map(|key| self.pairs.get(&key));
        found.copied().unwrap_or(PolicyVerdict::NOTHING)
    }

    /// Whether any packet from `src` reaches `dst`: because a rule allows it, or because no rule refuses all of them
    /// and the pools' settings let them pass (`by_default`).
    #[must_use]
    pub fn reaches(&self, src: &PolicySide, dst: &PolicySide, by_default: bool) -> bool {
        let (Some(from), Some(to)) = (self.class(src), self.class(dst)) else { return false };
        let all = PairKey { src_class: from.src, dst_class: to.dst, proto: 0, port: 0, bits: POLICY_PAIR_BITS };
        let is_refused = self.pairs.get(&all).is_some_and(|verdict| verdict.action == POLICY_DENY);
        let pair = (from.src, to.dst);
        self.allowed.contains(&pair) || (by_default && (!is_refused || self.left.contains(&pair)))
    }

    /// The class of a sender or receiver; `None` for a container that the policy should know but does not.
    fn class(&self, side: &PolicySide) -> Option<PolicyClass> {
        let by_addr = || {
            let addr = number(side.addr);
            (0..=128u32).rev().find_map(|bits| {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                self.cidrs.get(&(addr & mask, bits)).copied()
            })
        };
        if side.identity == 0 {
            return Some(by_addr().unwrap_or_default());
        }
        let found = [side.addr, Ip::UNSPECIFIED].iter().find_map(|a| self.ids.get(&(side.identity, *a)));
        match found {
            Some(class) => Some(*class),
            None if by_addr().is_some() => None,
            None => Some(PolicyClass::default()),
        }
    }
}
