//! Checks `network.policies`, and reports every error of every rule.

use super::checker::{Checker, join};
use super::field::Field;
use super::{net, raw};
use crate::model::{Action, Pool, PoolName, PortMatch, Rule, RuleName, Selector};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::Value;
use std::collections::BTreeMap;

/// The valid rules, in the order of the file. `declared` are all pools of the file, `pools` the valid ones.
pub(super) fn rules(
    c: &mut Checker,
    list: &[Field<raw::Policy>],
    declared: &BTreeMap<String, Field<raw::Pool>>,
    pools: &BTreeMap<PoolName, Pool>,
) -> Vec<Rule> {
    let mut names: BTreeMap<RuleName, usize> = BTreeMap::new();
    let known: Vec<&str> = declared.keys().map(String::as_str).collect();
    let mut rules = Vec::new();
    for (i, field) in list.iter().enumerate() {
        let path = format!("network.policies[{i}]");
        let field = Some(field.clone());
        let Some(raw) = c.section(&path, &field) else { continue };
        let name = name(c, &join(&path, "name"), raw, i, &mut names);
        let find = |name: &str| pool(name, &known, pools);
        let from = selector_of(c, &path, "from", &raw.from, find);
        let to = selector_of(c, &path, "to", &raw.to, find);
        let ports = ports(c, &join(&path, "ports"), raw);
        let action = action(c, &path, raw);
        if let (Some(from), Some(to), Some(action)) = (from, to, action) {
            families(c, &path, &from, &to);
            rules.push(Rule { name, from, to, ports, action });
        }
    }
    rules
}

fn name(
    c: &mut Checker,
    path: &str,
    raw: &raw::Policy,
    number: usize,
    names: &mut BTreeMap<RuleName, usize>,
) -> Option<RuleName> {
    let name = c.text::<RuleName>(path, &raw.name)?;
    if let Some(other) = names.get(&name) {
        let why = format!("is the name of network.policies[{other}]");
        let help = "give each rule a name of its own, or none".to_owned();
        c.wrong(path, Some(&Value::from(name.as_str())), why, Some(help));
    } else {
        names.insert(name.clone(), number);
    }
    Some(name)
}

fn action(c: &mut Checker, path: &str, raw: &raw::Policy) -> Option<Action> {
    if raw.action.is_none() {
        let help = "give it \"action\": \"allow\" or \"deny\"".to_owned();
        c.wrong(path, None, "has no \"action\"", Some(help));
    }
    Some(match c.plain(&join(path, "action"), &raw.action)? {
        raw::Action::Allow => Action::Allow,
        raw::Action::Deny => Action::Deny,
    })
}

const SELECTORS: &str =
    "a selector is {\"container\": NAME}, {\"pool\": NAME}, {\"cidr\": NETWORK}, \"host\" or \"world\"";

/// A selector at `path.key`. `pool` finds the pool with a name, as [`pool`] does.
pub(super) fn selector_of(
    c: &mut Checker,
    path: &str,
    key: &str,
    field: &Option<Field<raw::Selector>>,
    pool: impl Fn(&str) -> FoundPool,
) -> Option<Selector> {
    let Some(field) = field else {
        c.wrong(path, None, format!("has no {key:?}"), Some(SELECTORS.to_owned()));
        return None;
    };
    let path = join(path, key);
    // serde also takes `{"host": null}` for a word, which is refused here.
    let of_its_form = |raw: &&raw::Selector| !matches!(raw, raw::Selector::Word(_)) || field.value.is_string();
    let Some(raw) = field.parsed.as_ref().ok().filter(of_its_form) else {
        c.wrong(&path, Some(&field.value), "is no selector", Some(SELECTORS.to_owned()));
        return None;
    };
    let (key, value, help, parsed) = match raw {
        raw::Selector::Word(raw::SelectorWord::Host) => return Some(Selector::Host),
        raw::Selector::Word(raw::SelectorWord::World) => return Some(Selector::World),
        raw::Selector::Container(name) => {
            ("container", name, None, name.parse().map(Selector::Container).map_err(|e| e.to_string()))
        }
        raw::Selector::Pool(name) => {
            let (help, parsed) = pool(name);
            ("pool", name, help, parsed?.map(Selector::Pool))
        }
        raw::Selector::Cidr(text) => ("cidr", text, None, cidr(text).map(Selector::Cidr)),
    };
    parsed.map_err(|why| c.wrong(&join(&path, key), Some(&Value::from(value.as_str())), why, help)).ok()
}

/// What to do about a pool that is not there, and the pool; `None` without an error when it has errors of its own.
pub(super) type FoundPool = (Option<String>, Option<Result<PoolName, String>>);

/// The pool with this name.
fn pool(name: &str, known: &[&str], pools: &BTreeMap<PoolName, Pool>) -> FoundPool {
    match name.parse::<PoolName>() {
        Ok(name) if pools.contains_key(&name) => (None, Some(Ok(name))),
        _ if known.contains(&name) => (None, None),
        Ok(_) if known.is_empty() => {
            (Some("declare it under network.pools".to_owned()), Some(Err("no such pool".to_owned())))
        }
        Ok(_) => (Some(format!("the pools are {}", known.join(", "))), Some(Err("no such pool".to_owned()))),
        Err(e) => (None, Some(Err(e.to_string()))),
    }
}

/// Parses a network or a single address of either family, without host bits.
pub(super) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (text, None),
    };
    let v6 = addr.contains(':');
    let max: u8 = if v6 { 128 } else { 32 };
    let prefix = match prefix {
        None => max,
        Some(prefix) => prefix
            .parse()
            .ok()
            .filter(|p| *p <= max && prefix.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| format!("{prefix:?} is not a prefix length from 0 to {max}"))?,
    };
    let net: IpNetwork = if v6 {
        let addr = net::ipv6(addr)?;
        if let Some(v4) = addr.to_ipv4_mapped() {
            return Err(format!("is an IPv4-mapped address: write it as IPv4, as in {v4}/32"));
        }
        Ipv6Network::new(addr, prefix).map_err(|e| e.to_string())?.into()
    } else {
        Ipv4Network::new(net::ipv4(addr)?, prefix).map_err(|e| e.to_string())?.into()
    };
    if net.network() != net.ip() {
        return Err(format!("has host bits set: the network is {}/{prefix}", net.network()));
    }
    Ok(net)
}

/// Sender and receiver of a rule must be of the same family.
fn families(c: &mut Checker, path: &str, from: &Selector, to: &Selector) {
    if let (Selector::Cidr(from), Selector::Cidr(to)) = (from, to)
        && from.is_ipv4() != to.is_ipv4()
    {
        let help = "name networks of one family, or write a rule for each".to_owned();
        c.wrong(path, None, format!("can never apply: {from} and {to} are of different families"), Some(help));
    }
}

fn ports(c: &mut Checker, path: &str, raw: &raw::Policy) -> Vec<PortMatch> {
    let Some(list) = c.plain(path, &raw.ports) else { return Vec::new() };
    if list.is_empty() {
        let help = "leave \"ports\" out for all traffic".to_owned();
        c.wrong(path, Some(&Value::Array(Vec::new())), "is empty", Some(help));
    }
    let port = |(i, field): (usize, &Field<String>)| c.text(&format!("{path}[{i}]"), &Some(field.clone()));
    list.iter().enumerate().filter_map(port).collect()
}

#[cfg(test)]
mod tests;
