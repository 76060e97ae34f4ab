//! Everything that pv-net could change in a namespace, as text, to compare before and after.

use crate::{Device, Namespace};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// The state of a device's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// Links, addresses, routes, rules, qdiscs, nftables, attached programs, pins and sysctls.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(device: &Device) -> Result<Self> {
        let mut parts = Self::links(&device.ns)?;
        parts.insert("pins".to_owned(), device.pinned()?);
        Ok(Self(parts))
    }

    fn links(ns: &Namespace) -> Result<BTreeMap<String, String>> {
        let mut parts = BTreeMap::new();
        for line in ["-d link", "addr", "route show table all", "-6 route show table all", "rule", "-6 rule"] {
            parts.insert(format!("ip {line}"), without_volatile(&ns.ip(line)?));
        }
        parts.insert("tc qdisc".to_owned(), ns.sh("tc qdisc show")?);
        parts.insert("nft".to_owned(), ns.sh("nft list ruleset")?);
        parts.insert("bpf".to_owned(), ns.sh("bpftool net show")?);
        let sysctls = ns.run(|| {
            let mut all = Vec::new();
            read_tree(Path::new("/proc/sys/net"), &mut all);
            Ok(all.join("\n"))
        })?;
        parts.insert("sysctl".to_owned(), sysctls);
        Ok(parts)
    }

    /// The differing lines; empty when there are none.
    #[must_use]
    pub fn diff(&self, other: &Self) -> String {
        let mut said = String::new();
        for (part, before) in &self.0 {
            let after = other.0.get(part).map_or("", String::as_str);
            let gone = before.lines().filter(|l| !after.lines().any(|a| a == *l)).map(|l| format!("{part}: - {l}\n"));
            let new = after.lines().filter(|l| !before.lines().any(|b| b == *l)).map(|l| format!("{part}: + {l}\n"));
            said.extend(gone.chain(new));
        }
        said
    }
}

/// Words that are followed by a value that changes with time.
const TIMERS: [&str; 6] =
    ["expires", "gc_timer", "hello_timer", "forward_delay_timer", "hold_timer", "message_age_timer"];

/// The text without values that change by themselves. Link-local addresses are left out too: the kernel adds them, and
/// their routes, some time after the link.
fn without_volatile(text: &str) -> String {
    let kept = text.lines().filter(|l| !l.contains("valid_lft") && !l.contains("fe80::"));
    let line = |l: &str| {
        let words: Vec<&str> = l.split(' ').filter(|w| !w.is_empty()).collect();
        let timer = |i: usize| TIMERS.contains(&words[i]) || i > 0 && TIMERS.contains(&words[i - 1]);
        (0..words.len()).filter(|i| !timer(*i)).map(|i| words[i]).collect::<Vec<_>>().join(" ")
    };
    kept.map(line).collect::<Vec<_>>().join("\n")
}

fn read_tree(dir: &Path, all: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_tree(&path, all);
        } else if !path.ends_with("stable_secret")
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            all.push(format!("{} = {}", path.display(), text.trim()));
        }
    }
}
