//! The budget: how many instructions the verifier may process for each program, by architecture and kernel. A program
//! that grows past its budget takes longer to load, and some kernel may soon refuse it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::arch::Arch;
use crate::run;

/// Instructions by program.
pub type Counts = BTreeMap<String, u64>;

/// `tests/budget.json`: processor, kernel, program.
#[derive(Default)]
pub struct Budget(BTreeMap<String, BTreeMap<String, Counts>>);

/// How far a program may be above its budget, in percent; a kernel's point releases differ a little.
const LEEWAY_PERCENT: u64 = 5;

fn file() -> PathBuf {
    run::root().join("tests/budget.json")
}

impl Budget {
    /// Reads the file; an empty budget when there is none.
    pub fn read() -> Result<Self> {
        let file = file();
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&file)?;
        serde_json::from_str(&text).map(Self).with_context(|| file.display().to_string())
    }

    /// What is wrong with these counts; empty when they are within the budget.
    pub fn judge(&self, arch: Arch, series: &str, counts: &Counts) -> Vec<String> {
        let Some(budget) = self.0.get(arch.name()).and_then(|kernels| kernels.get(series)) else {
            return vec!["tests/budget.json has nothing for this kernel".to_owned()];
        };
        let mut wrong = Vec::new();
        for (program, count) in counts {
            match budget.get(program) {
                None => wrong.push(format!("{program}: not in tests/budget.json")),
                Some(most) if count * 100 > most * (100 + LEEWAY_PERCENT) => {
                    wrong.push(format!("{program}: {count} instructions verified, its budget is {most}"));
                }
                Some(_) => {}
            }
        }
        let gone = budget.keys().filter(|program| !counts.contains_key(*program));
        wrong.extend(gone.map(|program| format!("{program}: in tests/budget.json, and not loaded")));
        wrong
    }

    /// Replaces the budget by these counts.
    pub fn set(&mut self, arch: Arch, series: &str, counts: &Counts) {
        self.0.entry(arch.name().to_owned()).or_default().insert(series.to_owned(), counts.clone());
    }

    /// Writes the file.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.0)?;
        std::fs::write(file(), text + "\n").with_context(|| file().display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{Arch, Budget, Counts};

    fn counts(all: &[(&str, u64)]) -> Counts {
        all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn a_program_may_be_five_percent_above_its_budget_and_no_more() {
        let mut budget = Budget::default();
        budget.set(Arch::X86, "6.1", &counts(&[("pv_a", 1000), ("pv_b", 10)]));
        let judge = |all: &[(&str, u64)]| budget.judge(Arch::X86, "6.1", &counts(all));
        assert!(judge(&[("pv_a", 1050), ("pv_b", 10)]).is_empty());
        assert_eq!(judge(&[("pv_a", 1051), ("pv_b", 10)]).len(), 1);
        assert_eq!(judge(&[("pv_a", 1)]).len(), 1);
        assert_eq!(judge(&[("pv_a", 1), ("pv_b", 1), ("pv_c", 1)]).len(), 1);
        assert_eq!(budget.judge(Arch::X86, "5.10", &counts(&[("pv_a", 1)])).len(), 1);
        assert_eq!(budget.judge(Arch::Arm, "6.1", &counts(&[("pv_a", 1)])).len(), 1);
    }
}
