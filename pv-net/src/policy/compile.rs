//! Rules to map contents.

use super::classes::Classes;
use super::{Topology, ports};
use crate::model::Rule;
use pv_net_common::policy::{MAX_POLICY_CIDRS, MAX_POLICY_IDS, MAX_POLICY_PAIRS};
use pv_net_common::{Ip, PolicyClass, PolicyVerdict};

/// Rules that meet in a pair of classes, summed over all pairs: what a compilation may cost.
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
    /// Prefix length, from all traffic to one port.
    pub bits: u32,
}

/// A policy as the maps hold it, but for its generation. Without rules all of it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Containers: identity, address or `::`, class.
    pub ids: Vec<(u32, Ip, PolicyClass)>,
    /// Everybody else: network, its prefix length among IPv4-mapped addresses, class.
    pub cidrs: Vec<(Ip, u32, PolicyClass)>,
    /// What the rules say.
    pub pairs: Vec<(PairKey, PolicyVerdict)>,
    /// The rules by their numbers.
    pub rules: Vec<RuleRef>,
}

/// Why rules cannot become a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More entries than a map takes.
    #[error("the policy needs {need} {what}, and {limit} is the most")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        need: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many rules about too many.
    #[error("the policy is too large: its rules apply to more than {limit} pairs of senders and receivers")]
    TooManyPairs {
        /// The limit.
        limit: usize,
    },
}

impl PolicyError {
    /// What the user can do.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        "write fewer rules, with wider selectors: a pool for its containers, a network for its parts"
    }
}

/// Compiles `rules` for the device as it is.
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
