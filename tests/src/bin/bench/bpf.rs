//! The device's eBPF programs and maps, as `bpftool` sees them.

use anyhow::{Context, Result, ensure};
use harness::output;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs and maps of one device: the programs that use its pinned maps, and all maps that these use.
pub struct Loaded {
    maps: PathBuf,
}

impl Loaded {
    /// The programs and maps whose pins are in this folder.
    #[must_use]
    pub fn below(pins: &Path) -> Self {
        Self { maps: pins.join("maps") }
    }

    /// The programs.
    fn programs(&self) -> Result<Vec<Value>> {
        let mut pinned = BTreeSet::new();
        for name in pv_net_common::names::MAPS {
            let file = self.maps.join(name);
            let map = ask(&["map", "show", "pinned", &file.display().to_string()])?;
            pinned.insert(map["id"].as_u64().with_context(|| format!("map {name} has no number"))?);
        }
        let all = ask(&["prog", "show"])?;
        let using = |maps: &BTreeSet<u64>| {
            let ours = |p: &&Value| map_ids(p).any(|id| maps.contains(&id));
            all.as_array().into_iter().flatten().filter(ours).cloned().collect::<Vec<Value>>()
        };
        // A stage may use only the map of stages, whose pin lies elsewhere.
        let found = using(&using(&pinned).iter().flat_map(map_ids).collect());
        ensure!(!found.is_empty(), "none of the device's programs is loaded");
        Ok(found)
    }

    /// The number `field` of each program. The kernel truncates names, but `bpftool` gives whole ones, so no two
    /// programs share one.
    ///
    /// # Errors
    /// When `bpftool` fails, or no program is loaded.
    pub fn each(&self, field: &str) -> Result<BTreeMap<String, f64>> {
        let mut all = BTreeMap::new();
        for program in self.programs()? {
            let name = program["name"].as_str().context("a program without a name")?;
            // The field is missing as long as there are no run-time statistics.
            *all.entry(name.to_owned()).or_default() += program[field].as_f64().unwrap_or_default();
        }
        Ok(all)
    }

    /// How many instructions the verifier went through for each program.
    ///
    /// # Errors
    /// When the programs cannot be listed, and on a kernel that does not tell (before 5.16).
    pub fn verified(&self) -> Result<BTreeMap<String, f64>> {
        let ours = self.programs()?;
        let names: BTreeMap<u64, &str> =
            ours.iter().filter_map(|p| Some((p["id"].as_u64()?, p["name"].as_str()?))).collect();
        let mut all = BTreeMap::new();
        // bpftool does not print this number.
        for program in aya::programs::loaded_programs() {
            // A program of another user may be gone by now.
            let Ok(program) = program else { continue };
            let Some(name) = names.get(&u64::from(program.id())) else { continue };
            let count = program.verified_instruction_count().context("verified instructions: kernel 5.16 or later")?;
            *all.entry((*name).to_owned()).or_default() += f64::from(count);
        }
        Ok(all)
    }

    /// Memory of all maps in bytes, as the kernel accounts it.
    ///
    /// # Errors
    /// When `bpftool` fails, or no program is loaded.
    pub fn map_bytes(&self) -> Result<f64> {
        let ours: BTreeSet<u64> = self.programs()?.iter().flat_map(|p| map_ids(p).collect::<Vec<_>>()).collect();
        let all = ask(&["map", "show"])?;
        let used =
            all.as_array().into_iter().flatten().filter(|m| m["id"].as_u64().is_some_and(|id| ours.contains(&id)));
        Ok(used.filter_map(|m| m["bytes_memlock"].as_f64()).sum())
    }
}

fn map_ids(program: &Value) -> impl Iterator<Item = u64> {
    program["map_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64)
}

fn ask(words: &[&str]) -> Result<Value> {
    let said = output(Command::new("bpftool").arg("-j").args(words))?;
    serde_json::from_str(&said).with_context(|| said)
}
