//! The loaded programs, and what the verifier has processed.

use crate::console;
use anyhow::{Context, Result, anyhow, ensure};
use pv_net_common::names;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Bytes of one instruction.
const INSTRUCTION: u32 = 8;

/// How many bytes of a program's name the kernel keeps.
const NAME: usize = 15;

/// Programs whose instructions were reported.
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Reports the instructions of the programs that are loaded now and were not reported before: some are loaded only
/// while they are needed.
///
/// Programs with the same beginning of their names, as the kernel keeps it, count as one: the largest.
pub fn tell() -> Result<()> {
    let mut told = TOLD.lock().map_err(|_| anyhow!("a check panicked here"))?;
    for (name, counts) in instructions()? {
        if told.insert(name.clone()) {
            console::instructions(&name, counts.into_iter().max().unwrap_or_default());
        }
    }
    Ok(())
}

/// Fails unless each of these programs is loaded, as many times as it is listed.
pub fn are_loaded<'a>(wanted: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    wanted.into_iter().for_each(|name| *all.entry(&name[..name.len().min(NAME)]).or_default() += 1);
    let loaded = instructions()?;
    for (name, count) in all {
        let found = loaded.get(name).map_or(0, Vec::len);
        ensure!(found == count, "{found} programs {name} are loaded, not {count}");
    }
    Ok(())
}

/// The programs that every device has. Others depend on the configuration and the kernel.
pub fn always() -> impl Iterator<Item = &'static str> {
    let hooks =
        [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK, names::PROG_FROM_BRIDGE];
    hooks.into_iter().chain([names::PROG_CLOCK]).chain(names::PROG_STAGES)
}

/// Instructions of pv-net's programs that are loaded, by name.
pub fn instructions() -> Result<BTreeMap<String, Vec<u32>>> {
    let mut all: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        let program = program.context("list the loaded programs")?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if !name.starts_with("pv_") {
            continue;
        }
        // bpf_prog_info.verified_insns came with kernel 5.16; on older kernels the size of the translated program is
        // used.
        let translated = program.size_translated().map(|bytes| bytes / INSTRUCTION);
        let count = program.verified_instruction_count().or(translated).with_context(|| format!("{name}: no size"))?;
        all.entry(name).or_default().push(count);
    }
    ensure!(!all.is_empty(), "no program is loaded");
    Ok(all)
}
