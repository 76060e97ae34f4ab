//! What the machine outside reads on the serial console: one line for each check, facts, and the verdict.

use std::io::Write;
use std::time::Duration;

/// A check that passed.
pub fn passed(check: &str, took: Duration) {
    say(&format!("ok   {check} ({:.1} s)", took.as_secs_f64()));
}

/// A check that failed. The causes are on the same line: the console has other writers.
pub fn failed(check: &str, why: &anyhow::Error) {
    say(&format!("FAIL {check}: {}", format!("{why:#}").replace('\n', " | ")));
}

/// A check of what this kernel does not have.
pub fn absent(check: &str) {
    say(&format!("none {check}: not in this kernel"));
}

/// Something worth knowing.
pub fn fact(text: &str) {
    say(&format!("fact {text}"));
}

/// How many instructions of `program` the verifier looked at, or how many it has where the kernel does not say.
pub fn instructions(program: &str, count: u32) {
    say(&format!("insns {program} {count}"));
}

/// The last word: 0 when no check failed.
pub fn verdict(failed: usize) {
    say(&format!("VMRC={failed}"));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // With no console there is no verdict either, and that is a failure.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
