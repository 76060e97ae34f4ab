//! Files of a revision of Pantavisor. pv-net reads from them what it has a field for; all the rest is Pantavisor's, and
//! left alone. What it reads is checked as strictly as in files of its own. Pure.
//!
//! The form of the files is that of `docs/reference/pantavisor-state-format-v2.md` and
//! `docs/reference/pantavisor-ipam.md` in the repository `pantavisor/pantavisor` on GitHub.

use super::checker::{Checker, nearest};
use super::field::Section;
use super::{ConfigError, parse_device, parse_run, parse_run_named, parse_services, raw};
use crate::model::{Container, ContainerName, Device, Offer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The field without which a container has no interfaces in pools, and a device no pools.
const NETWORK: &str = "network";
/// Fields of `run.json` by which Pantavisor itself restarts containers and connects services; their form there is another
/// one than in files of pv-net.
const OF_PANTAVISOR: [&str; 2] = ["auto_recovery", "services"];

/// The `device.json` of a revision.
///
/// # Errors
/// Every error in what pv-net reads.
pub fn device(file: &str, text: &str) -> Result<Device, Vec<ConfigError>> {
    let kept = known(file, text, &raw::Device::names())?;
    parse_device(file, &Value::Object(kept).to_string())
}

/// What a `run.json` of a revision says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The text of what pv-net reads of it, a `run.json` of its own form.
    pub text: String,
    /// The container.
    pub container: Container,
    /// The prefix lengths that stand behind the IPv4 addresses of its interfaces, by the interfaces' places. They must be
    /// those of the pools ([`check_prefix_lengths`](super::check_prefix_lengths)).
    pub prefix_lengths: BTreeMap<usize, u8>,
}

/// The container of a `run.json` in the directory `dir` of a revision. `None` for one without interfaces in pools, which is
/// none of pv-net's business.
///
/// # Errors
/// Every error in what pv-net reads.
pub fn run(file: &str, text: &str, dir: &str) -> Result<Option<Run>, Vec<ConfigError>> {
    let names: Vec<String> = raw::Run::names().into_iter().filter(|n| !OF_PANTAVISOR.contains(&n.as_str())).collect();
    let mut kept = known(file, text, &names)?;
    let Some(network) = kept.get_mut(NETWORK) else { return Ok(None) };
    if matches!(network["mode"].as_str(), Some("host" | "none")) {
        // All but its network is Pantavisor's. Who asks for a pool beside such a mode may not mean the mode.
        let only = serde_json::json!({"name": "any", NETWORK: network});
        return parse_run(file, &only.to_string()).map(|_| None);
    }
    let interfaces = network.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten();
    let prefix_lengths = interfaces.enumerate().filter_map(|(i, it)| Some((i, take_prefix_length(it)?))).collect();
    let mut c = Checker::new(file);
    let Ok(name) = dir.parse::<ContainerName>().map_err(|e| c.wrong("", None, format!("directory {dir:?}: {e}"), None))
    else {
        return Err(c.errors);
    };
    let text = Value::Object(kept).to_string();
    let container = parse_run_named(file, &text, Some(&name))?;
    Ok(Some(Run { text, container, prefix_lengths }))
}

/// The file beside a `run.json` that is the container's LXC configuration. `None` where it names none, also since it is
/// wrong.
#[must_use]
pub fn lxc_config(text: &str) -> Option<String> {
    let run: Value = serde_json::from_str(text).ok()?;
    // Pantavisor puts the directory in front of it, whatever it begins with.
    run["config"].as_str().map(|config| config.trim_start_matches('/').to_owned())
}

/// What the `services.json` of a revision offers in the network: services with a `port`. Those on sockets and buses are
/// Pantavisor's to connect.
///
/// # Errors
/// Every error in these services.
pub fn services(file: &str, text: &str) -> Result<Vec<Offer>, Vec<ConfigError>> {
    let mut c = Checker::new(file);
    let Some(document) = c.document(text) else { return Err(c.errors) };
    let list = document.as_array().or_else(|| document["services"].as_array()).cloned().unwrap_or_default();
    let names = raw::Service::names();
    let offered = |mut service: Value| {
        let fields = service.as_object_mut().filter(|fields| fields.contains_key("port"))?;
        fields.retain(|key, _| names.contains(key));
        Some(service)
    };
    let offered: Vec<Value> = list.into_iter().filter_map(offered).collect();
    parse_services(file, &Value::Array(offered).to_string())
}

/// The fields of the file that are in `names`.
///
/// # Errors
/// When it is no JSON object. And for a field that is probably a `network` with another name, or what belongs into one: a
/// container without its network would be started in that of the device.
fn known(file: &str, text: &str, names: &[String]) -> Result<Map<String, Value>, Vec<ConfigError>> {
    let mut c = Checker::new(file);
    let mut fields = match c.document(text) {
        Some(Value::Object(fields)) => fields,
        Some(other) => {
            c.wrong("", Some(&other), "is no object", Some("the file is a JSON object".to_owned()));
            return Err(c.errors);
        }
        None => return Err(c.errors),
    };
    let only = [NETWORK.to_owned()];
    for (key, value) in fields.iter().filter(|(key, _)| !names.contains(key)) {
        let is_one =
            value.as_object().is_some_and(|fields| fields.iter().any(|(key, value)| is_of_network(key, value)));
        if is_one || nearest(&key.to_lowercase(), &only).is_some() {
            c.wrong(key, Some(value), "unknown field", Some(format!("did you mean {NETWORK:?}?")));
        } else if is_of_network(key, value) {
            c.wrong(key, Some(value), "unknown field", Some(format!("put it into {NETWORK:?}")));
        }
    }
    if !c.errors.is_empty() {
        return Err(c.errors);
    }
    fields.retain(|key, _| names.contains(key));
    Ok(fields)
}

/// Whether a field looks like one of a `network`. Objects of Pantavisor may have keys that are names of the user's own,
/// such as those of volumes, so the value has to have the form too.
fn is_of_network(key: &str, value: &Value) -> bool {
    match key.to_lowercase().as_str() {
        "pool" => value.is_string(),
        "pools" => value.as_object().is_some_and(|pools| !pools.is_empty() && pools.values().all(Value::is_object)),
        "interfaces" => value.is_array(),
        _ => false,
    }
}

/// In Pantavisor an interface's address may have the prefix length of its pool, which is taken away from it. What is no
/// prefix length stays, and makes the address a wrong one.
fn take_prefix_length(interface: &mut Value) -> Option<u8> {
    let Value::String(text) = interface.get_mut("ipv4_address")? else { return None };
    let (address, length) = text.split_once('/')?;
    let bits = length.parse().ok().filter(|bits| *bits <= 32)?;
    *text = address.to_owned();
    Some(bits)
}
