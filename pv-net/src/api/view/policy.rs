//! The rules, and the types of questions and answers about verdicts.

use crate::config::raw;
use crate::model::{Action, Rule, Selector};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A rule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Its JSON path in the device's configuration.
    pub path: String,
    /// Who sends.
    pub from: raw::Selector,
    /// Who receives.
    pub to: raw::Selector,
    /// What it is about; all traffic when empty.
    pub ports: Vec<String>,
    /// What is done.
    pub action: Action,
    /// Policy generation in the kernel.
    pub generation: u32,
    /// Whether this rule is part of it.
    pub in_force: bool,
}

/// A flow that is asked about.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerdictQuery {
    /// Who sends: a container, an address, `host` or `world`.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// Destination port, for TCP and UDP.
    pub port: Option<u16>,
}

/// One end of the flow.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PartyView {
    /// Its address.
    pub address: IpAddr,
    /// The container that has it.
    pub container: Option<String>,
    /// The pool that it is in.
    pub pool: Option<String>,
}

/// What happens to a flow, and why.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VerdictView {
    /// What is done.
    pub verdict: Action,
    /// A rule, or what is so without one.
    pub decided_by: DecidedBy,
    /// The rule's name, where it has one.
    pub rule: Option<String>,
    /// The file of the rule or setting that decided.
    pub file: Option<String>,
    /// Its JSON path.
    pub path: Option<String>,
    /// The reason in words.
    pub reason: String,
    /// Policy generation that was asked.
    pub generation: u32,
    /// Who sends.
    pub from: PartyView,
    /// Who receives.
    pub to: PartyView,
    /// `tcp`, `udp`, `icmp` or `icmpv6`.
    pub proto: String,
    /// Destination port; zero for what has none.
    pub port: u16,
    /// The device's address and port that lead there, when the flow goes by a published port.
    pub via: Option<String>,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    /// A rule.
    Rule,
    /// The pools' settings.
    Default,
}

impl From<&Selector> for raw::Selector {
    fn from(selector: &Selector) -> Self {
        match selector {
            Selector::Container(name) => Self::Container(name.to_string()),
            Selector::Pool(name) => Self::Pool(name.to_string()),
            Selector::Cidr(net) => Self::Cidr(net.to_string()),
            Selector::Host => Self::Word(raw::SelectorWord::Host),
            Selector::World => Self::Word(raw::SelectorWord::World),
        }
    }
}

/// All rules of the configuration.
#[must_use]
pub fn rules(snapshot: &Snapshot) -> Vec<RuleView> {
    let view = |(i, rule): (usize, &Rule)| RuleView {
        name: rule.name.as_ref().map(ToString::to_string),
        path: format!("network.policies[{i}]"),
        from: (&rule.from).into(),
        to: (&rule.to).into(),
        ports: rule.ports.iter().map(ToString::to_string).collect(),
        action: rule.action,
        generation: snapshot.policy.generation,
        in_force: snapshot.policy.in_force,
    };
    snapshot.device.policies.iter().enumerate().map(view).collect()
}
