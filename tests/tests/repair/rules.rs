//! The maps of the rules: what somebody removes or changes there comes back, and flows that passed meanwhile end.

use super::changes::Monitor;
use anyhow::{Context, Result, ensure};
use harness::{Device, SOON, configs, eventually};
use pv_net_common::names;
use serde_json::{Value, json};
use std::path::Path;

/// The key of the first entry, as words of a command line.
fn first_key(device: &Device, map: &Path) -> Result<String> {
    let next = device.ns.sh(&format!("bpftool -j map getnext pinned {}", map.display()))?;
    let next: Value = serde_json::from_str(&next)?;
    let bytes = next["next_key"].as_array().with_context(|| format!("{}: no entry in {next}", map.display()))?;
    Ok(bytes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
}

/// Removes every entry.
fn clear(device: &Device, map: &Path) -> Result<()> {
    let mut removed = 0;
    while let Ok(key) = first_key(device, map) {
        device.ns.sh(&format!("bpftool map delete pinned {} key {key}", map.display()))?;
        removed += 1;
    }
    ensure!(removed > 0, "{}: it was empty", map.display());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_a_rule_denies_stays_denied() -> Result<()> {
    let mut config = configs::masqueraded();
    config["network"]["policies"] = json!([
        {"from": {"container": "a"}, "to": {"container": "b"}, "action": "deny"},
        {"from": {"container": "a"}, "to": {"cidr": "203.0.113.0/24"}, "action": "deny"},
    ]);
    let device = Device::started(&config)?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let monitor = Monitor::of(&device)?;
    let denied = || {
        for to in b.addresses() {
            ensure!(a.ns.ping(to, 1).is_err(), "{to} answers");
        }
        Ok(())
    };
    denied()?;
    let maps = device.pins().join("maps");
    for (times, name) in [names::MAP_POLICY_PAIRS, names::MAP_POLICY_IDS, names::MAP_POLICY_CIDRS].iter().enumerate() {
        clear(&device, &maps.join(name))?;
        if *name == names::MAP_POLICY_PAIRS {
            a.ns.ping(b.v4, 1).context("the rule held without its entries, so this tests nothing")?;
        }
        eventually(SOON, || {
            let all = monitor.repaired();
            let named = all.iter().filter(|text| text.starts_with("maps of the rules: ")).count();
            ensure!(named == times + 1, "{name}: {all:#?}");
            Ok(())
        })?;
        denied().with_context(|| format!("after the repair of {name}"))?;
    }
    let said = device.json(&["policy", "list"])?.to_string();
    ensure!(!said.contains("false"), "{said}");
    Ok(())
}
