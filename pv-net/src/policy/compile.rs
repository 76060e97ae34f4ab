//! Compiles rules into the contents of the policy maps.

use super::classes::Classes;
use super::confined::{Confined, confined};
use super::ports::Limit;
use super::{Topology, ports};
use crate::model::{ContainerName, PortMatch, Rule};
use pv_net_common::policy::{MAX_POLICY_CIDRS, MAX_POLICY_IDS, MAX_POLICY_PAIRS};
use pv_net_common::{Ip, PolicyClass, PolicyVerdict};

/// Most combinations of a rule and a pair of classes, over all pairs. This limits the cost of a compilation.
const MAX_MEETINGS: usize = 1 << 20;

/// A rule's place in the configuration, or the limits of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Its JSON path.
    pub path: String,
    /// The container in whose `run.json` that is; the device's configuration where this is none.
    pub of: Option<ContainerName>,
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

/// What a policy is compiled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Rules alone.
    Rules,
    /// The limits of containers alone.
    Limits,
    /// Both.
    Both,
}

impl Source {
    /// The place in the configuration.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Rules => "network.policies",
            Self::Limits => "network.sockets of the containers",
            Self::Both => "network.policies, and network.sockets of the containers",
        }
    }
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
        /// What they are for.
        of: Source,
    },
    /// The rules and limits apply to too many pairs of classes.
    #[error("the policy is too large: it is about more than {limit} pairs of senders and receivers")]
    TooManyPairs {
        /// The limit.
        limit: usize,
        /// What is about them.
        of: Source,
    },
}

impl PolicyError {
    /// What the user can do about it.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        match self.of() {
            Source::Rules => {
                "write fewer rules, with wider selectors: a pool for its containers, a network for its parts"
            }
            Source::Limits => "attach fewer containers of type wasm, or grant them fewer networks and ports",
            Source::Both => {
                "write fewer rules, with wider selectors, or attach fewer containers of type wasm, with fewer networks and ports"
            }
        }
    }

    /// What was compiled.
    #[must_use]
    pub const fn of(&self) -> Source {
        match self {
            Self::TooLarge { of, .. } | Self::TooManyPairs { of, .. } => *of,
        }
    }
}

/// Compiles `rules` for the device's present state.
///
/// # Errors
/// When the result is larger than the maps.
pub fn compile(rules: &[Rule], topology: &Topology) -> Result<Compiled, PolicyError> {
    let confined = confined(topology);
    if rules.is_empty() && confined.is_empty() {
        return Ok(Compiled::default());
    }
    let classes = Classes::new(rules, &confined, topology);
    let pairs = pairs(rules, &confined, &classes)?;
    let compiled = Compiled {
        ids: classes.ids,
        cidrs: classes.addrs.into_iter().map(|(p, class)| (p.ip(), u32::from(p.bits), class)).collect(),
        pairs,
        rules: rules
            .iter()
            .enumerate()
            .map(|(i, rule)| rule_ref(i, rule))
            .chain(confined.iter().map(limit_ref))
            .collect(),
    };
    for (what, need, limit) in [
        ("addresses of containers", compiled.ids.len(), MAX_POLICY_IDS),
        ("networks and addresses", compiled.cidrs.len(), MAX_POLICY_CIDRS),
        ("verdicts", compiled.pairs.len(), MAX_POLICY_PAIRS),
    ] {
        if need > limit as usize {
            return Err(PolicyError::TooLarge { what, need, limit: limit as usize, of: source(rules, &confined) });
        }
    }
    Ok(compiled)
}

fn source(rules: &[Rule], confined: &[Confined]) -> Source {
    match (rules, confined) {
        ([], _) => Source::Limits,
        (_, []) => Source::Rules,
        _ => Source::Both,
    }
}

fn rule_ref(number: usize, rule: &Rule) -> RuleRef {
    RuleRef { name: rule.name.as_ref().map(ToString::to_string), path: format!("network.policies[{number}]"), of: None }
}

/// The limits of a container, as a rule beside those of the configuration.
fn limit_ref(limits: &Confined) -> RuleRef {
    RuleRef {
        name: Some(format!("container {}: sockets", limits.name)),
        path: "network.sockets".to_owned(),
        of: Some(limits.name.clone()),
    }
}

/// What applies to a pair of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Applies {
    /// The rule with this number.
    Rule(u32),
    /// The limits of the container at this place, as the sender's.
    Sending(u32),
    /// The same, as the receiver's.
    Receiving(u32),
}

fn pairs(
    rules: &[Rule],
    confined: &[Confined],
    classes: &Classes,
) -> Result<Vec<(PairKey, PolicyVerdict)>, PolicyError> {
    let mut meetings: Vec<(u32, u32, Applies)> = Vec::new();
    let mut meet = |(from, to): (&[u32], &[u32]), applies: Applies| {
        if meetings.len() + from.len() * to.len() > MAX_MEETINGS {
            return Err(PolicyError::TooManyPairs { limit: MAX_MEETINGS, of: source(rules, confined) });
        }
        meetings.extend(from.iter().flat_map(|src| to.iter().map(move |dst| (*src, *dst, applies))));
        Ok(())
    };
    let number = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
    for place in 0..rules.len() {
        meet(classes.of_rule(place), Applies::Rule(number(place)))?;
    }
    for place in 0..confined.len() {
        let [sending, receiving] = classes.of_confined(place);
        meet(sending, Applies::Sending(number(place)))?;
        meet(receiving, Applies::Receiving(number(place)))?;
    }
    meetings.sort_unstable();
    let mut pairs = Vec::new();
    for group in meetings.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (src, dst, _) = group[0];
        let (mut numbers, mut limits) = (Vec::new(), Vec::new());
        for (_, _, applies) in group {
            let (place, granted): (u32, Vec<&PortMatch>) = match *applies {
                Applies::Rule(number) => {
                    numbers.push(number);
                    continue;
                }
                Applies::Sending(place) => {
                    let peers = classes.peers_in(place as usize, dst);
                    (place, peers.flat_map(|peer| &confined[place as usize].connect[peer].ports).collect())
                }
                Applies::Receiving(place) => (place, confined[place as usize].listen.iter().collect()),
            };
            let receives = matches!(applies, Applies::Receiving(_));
            limits.push(Limit { rule: number(rules.len()) + place, receives, granted });
        }
        ports::entries((src, dst), numbers.into_iter(), rules, &limits, &mut pairs);
    }
    Ok(pairs)
}
