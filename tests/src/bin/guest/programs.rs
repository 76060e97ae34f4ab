//! What the verifier made of the programs.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// Bytes of one instruction.
const INSTRUCTION: u32 = 8;

/// Instructions by program, all that are loaded and pv-net's.
///
/// The kernel keeps fifteen characters of a name; programs that share these are one here, the largest.
pub fn instructions() -> Result<BTreeMap<String, u32>> {
    let mut all = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        let program = program.context("list the loaded programs")?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if !name.starts_with("pv_") {
            continue;
        }
        // bpf_prog_info.verified_insns came with kernel 5.16; before, the size of what was verified has to do.
        let translated = program.size_translated().map(|bytes| bytes / INSTRUCTION);
        let count = program.verified_instruction_count().or(translated).with_context(|| format!("{name}: no size"))?;
        let entry = all.entry(name).or_insert(0);
        *entry = count.max(*entry);
    }
    ensure!(!all.is_empty(), "no program is loaded");
    Ok(all)
}
