//! Compiles rules into the contents of the policy maps.

use super::classes::Classes;
use super::{Topology, ports};
use crate::model::Rule;
use pv_net_common::policy::{MAX_POLICY_CIDRS, MAX_POLICY_IDS, MAX_POLICY_PAIRS};
use pv_net_common::{Ip, PolicyClass, PolicyVerdict};

/// Most combinations of a rule and a pair of classes, over all pairs. This limits the cost of a compilation.
const MAX_MEETINGS: usize = 1 << 20;

/// A rule's place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Its JSON path.
    pub path: String,
}

/// Key of a verdict, without its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairKey {
    /// Class of the sender.
    pub src_class: u32,
    /// Class of the receiver.
    pub dst_class: u32,
    /// Protocol, as the maps number them.
    pub proto: u16,
    /// First port of the block.
    pub port: u16,
    /// Prefix length: from all traffic to a single port.
    pub bits: u32,
}

/// The contents of the policy maps, without the generation. Empty when there are no rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Containers: identity, address or `::`, class.
    pub ids: Vec<(u32, Ip, PolicyClass)>,
    /// Everybody else: network, its prefix length in the IPv4-mapped form, class.
    pub cidrs: Vec<(Ip, u32, PolicyClass)>,
    /// The verdicts.
    pub pairs: Vec<(PairKey, PolicyVerdict)>,
    /// The rules, by number.
    pub rules: Vec<RuleRef>,
}

/// Why rules cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A map would need more entries than it has room for.
    #[error("the policy needs {need} {what}, and {limit} is the most")]
    TooLarge {
        /// The kind of entries.
        what: &'static str,
        /// How many there would be.
        need: usize,
        /// The limit.
        limit: usize,
    },
    /// The rules apply to too many pairs of classes.
    #[error("the policy is too large: its rules apply to more than {limit} pairs of senders and receivers")]
    TooManyPairs {
        /// The limit.
        limit: usize,
    },
}

impl PolicyError {
    /// What the user can do about it.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        "write fewer rules, with wider selectors: a pool for its containers, a network for its parts"
    }
}

/// Compiles `rules` for the device's present state.
///
/// # Errors
/// When the result is larger than the maps.
pub fn compile(rules: &[Rule], topology: &Topology) -> Result<Compiled, PolicyError> {
    if rules.is_empty() {
        return Ok(Compiled::default());
    }
    let classes = Classes::new(rules, topology);
    let pairs = pairs(rules, &classes)?;
    let compiled = Compiled {
        ids: classes.ids,
        cidrs: classes.addrs.into_iter().map(|(p, class)| (p.ip(), u32::from(p.bits), class)).collect(),
        pairs,
        rules: rules.iter().enumerate().map(|(i, rule)| rule_ref(i, rule)).collect(),
    };
    for (what, need, limit) in [
        ("addresses of containers", compiled.ids.len(), MAX_POLICY_IDS),
        ("networks and addresses", compiled.cidrs.len(), MAX_POLICY_CIDRS),
        ("verdicts", compiled.pairs.len(), MAX_POLICY_PAIRS),
    ] {
        if need > limit as usize {
            return Err(PolicyError::TooLarge { what, need, limit: limit as usize });
        }
    }
    Ok(compiled)
}

fn rule_ref(number: usize, rule: &Rule) -> RuleRef {
    RuleRef { name: rule.name.as_ref().map(ToString::to_string), path: format!("network.policies[{number}]") }
}

fn pairs(rules: &[Rule], classes: &Classes) -> Result<Vec<(PairKey, PolicyVerdict)>, PolicyError> {
    let mut meetings: Vec<(u32, u32, u32)> = Vec::new();
    for number in 0..rules.len() {
        let (from, to) = classes.of_rule(number);
        if meetings.len() + from.len() * to.len() > MAX_MEETINGS {
            return Err(PolicyError::TooManyPairs { limit: MAX_MEETINGS });
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        meetings.extend(from.iter().flat_map(|src| to.iter().map(move |dst| (*src, *dst, number))));
    }
    meetings.sort_unstable();
    let mut pairs = Vec::new();
    for group in meetings.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (src, dst, _) = group[0];
        ports::entries((src, dst), group.iter().map(|(_, _, rule)| *rule), rules, &mut pairs);
    }
    Ok(pairs)
}
