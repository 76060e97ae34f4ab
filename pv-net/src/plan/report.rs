//! What a reload would do: for `pv-net plan` and `POST /reload?dry_run`.

use super::{Entry, Op};
use crate::model::{Device, Pool, Rule};
use pv_net_common::flow::FLOW_REPLY;
use pv_net_common::{FlowEntry, FlowKey, PortMapTarget};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Names of what is added, removed, and kept but changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changes {
    /// Not there before.
    pub added: Vec<String>,
    /// Not there afterwards.
    pub removed: Vec<String>,
    /// There before and afterwards, but different.
    pub changed: Vec<String>,
}

/// What a reload of the configuration would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadPlan {
    /// The steps, in their order.
    pub steps: Vec<String>,
    /// Pools.
    pub pools: Changes,
    /// Published ports.
    pub ports: Changes,
    /// Rules. When they change, every flow is decided again by its next packet.
    pub rules: Changes,
    /// Addresses that are reserved for declared containers. Leases stay as they are.
    pub leases: Changes,
    /// Flows that end, each by the direction that opened it.
    pub flows: Vec<String>,
    /// Conditions that the reload would cause.
    pub conditions: Vec<String>,
}

impl Changes {
    /// Compares what is there, by name, with what will be.
    fn of<T: PartialEq>(now: &[(String, T)], then: &[(String, T)]) -> Self {
        let find = |all: &[(String, T)], name: &str| all.iter().position(|(n, _)| n == name);
        let names = |all: &[(String, T)], keep: &dyn Fn(&(String, T)) -> bool| {
            all.iter().filter(|one| keep(one)).map(|(name, _)| name.clone()).collect()
        };
        Self {
            added: names(then, &|(name, _)| find(now, name).is_none()),
            removed: names(now, &|(name, _)| find(then, name).is_none()),
            changed: names(then, &|(name, value)| find(now, name).is_some_and(|at| now[at].1 != *value)),
        }
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl ReloadPlan {
    /// Adds the differences between two configurations.
    pub fn compare(&mut self, now: &Device, then: &Device) {
        let pools = |device: &Device| -> Vec<(String, Pool)> {
            device.pools.values().map(|pool| (pool.name.to_string(), pool.clone())).collect()
        };
        self.pools = Changes::of(&pools(now), &pools(then));
        let rules = |device: &Device| -> Vec<(String, ())> {
            device.policies.iter().map(|rule| (rule_text(rule), ())).collect()
        };
        self.rules = Changes::of(&rules(now), &rules(then));
        let order = |device: &Device| device.policies.clone();
        if self.rules.is_empty() && order(now) != order(then) {
            self.rules.changed.push("their order".to_owned());
        }
    }

    /// Adds the steps, and the published ports that they change.
    pub fn note(&mut self, ops: &[Op]) {
        let at = |op: &Op, set: bool| match op {
            Op::Set(Entry::Port { prefix, target }) if set && *target != reserved(target) => {
                Some((*prefix, Entry::Port { prefix: *prefix, target: *target }.to_string()))
            }
            Op::Remove(Entry::Port { prefix, target }) if !set && *target != reserved(target) => {
                Some((*prefix, Entry::Port { prefix: *prefix, target: *target }.to_string()))
            }
            _ => None,
        };
        self.ports.added.extend(ops.iter().filter_map(|op| at(op, true)).map(|(_, text)| text));
        self.ports.removed.extend(ops.iter().filter_map(|op| at(op, false)).map(|(_, text)| text));
        self.steps.extend(ops.iter().map(ToString::to_string));
    }

    /// Adds those of `flows` that a step ends.
    pub fn note_flows<'a>(&mut self, ops: &[Op], flows: impl Iterator<Item = (&'a FlowKey, &'a FlowEntry)>) {
        let opened = flows.filter(|(_, entry)| entry.flags & FLOW_REPLY == 0);
        let ending = opened.filter(|(key, entry)| ops.iter().any(|op| op.ends(key, entry)));
        self.flows.extend(ending.map(|(key, _)| flow_text(key)));
        self.flows.sort();
    }
}

/// The value of an entry that only reserves a port for its container: it has no target address.
fn reserved(target: &PortMapTarget) -> PortMapTarget {
    PortMapTarget { identity: target.identity, ..PortMapTarget::default() }
}

fn rule_text(rule: &Rule) -> String {
    let ports = rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let name = rule.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
    let about = if ports.is_empty() { String::new() } else { format!(" {ports}") };
    format!("{name}{} {} to {}{about}", rule.action.label(), rule.from, rule.to)
}

fn flow_text(key: &FlowKey) -> String {
    let end = |addr, port_be: u16| SocketAddr::new(std::net::IpAddr::from(addr), u16::from_be(port_be));
    let proto = crate::model::proto_name(key.proto);
    format!("{proto} {} to {}", end(key.src, key.sport_be), end(key.dst, key.dport_be))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_device;

    #[test]
    fn what_changes_in_a_configuration_is_named() {
        let device = |text: &str| parse_device("device.json", text).expect("valid");
        let now = device(
            r#"{"network": {"pools": {"a": {"subnet": "10.0.3.0/24"}, "b": {"subnet": "10.0.4.0/24"}},
            "policies": [{"name": "one", "from": {"pool": "a"}, "to": "world", "ports": ["tcp/23"], "action": "deny"},
                {"from": {"pool": "b"}, "to": {"pool": "a"}, "action": "allow"}]}}"#,
        );
        let then = device(
            r#"{"network": {"pools": {"a": {"subnet": "10.0.3.0/24", "nat": true}, "c": {"subnet": "10.0.5.0/24"}},
            "policies": [{"from": {"pool": "c"}, "to": {"pool": "a"}, "action": "allow"},
                {"name": "one", "from": {"pool": "a"}, "to": "world", "ports": ["tcp/23"], "action": "deny"}]}}"#,
        );
        let mut plan = ReloadPlan::default();
        plan.compare(&now, &then);
        let changes = |added: &[&str], removed: &[&str], changed: &[&str]| {
            let all = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
            Changes { added: all(added), removed: all(removed), changed: all(changed) }
        };
        assert_eq!(plan.pools, changes(&["c"], &["b"], &["a"]));
        assert_eq!(plan.rules, changes(&["allow pool c to pool a"], &["allow pool b to pool a"], &[]));
        let mut turned = then.clone();
        turned.policies.reverse();
        let mut plan = ReloadPlan::default();
        plan.compare(&then, &turned);
        assert_eq!((plan.pools, plan.rules), (Changes::default(), changes(&[], &[], &["their order"])));
    }
}
