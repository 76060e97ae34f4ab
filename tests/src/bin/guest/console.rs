//! The lines that the machine prints on its serial console for `cargo xtask vm`: one for each check, facts, and the
//! verdict.

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

/// A check whose subject this kernel lacks.
pub fn absent(check: &str) {
    say(&format!("none {check}: not in this kernel"));
}

/// A fact about the machine or the kernel.
pub fn fact(text: &str) {
    say(&format!("fact {text}"));
}

/// How many instructions of `program` the verifier has processed, or how many it has where the kernel does not tell.
pub fn instructions(program: &str, count: u32) {
    say(&format!("insns {program} {count}"));
}

/// The verdict, which is the last line: 0 when no check failed.
pub fn verdict(failed: usize) {
    say(&format!("VMRC={failed}"));
}

/// Prints a line at once.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Without a console there is no verdict either, and that counts as a failure.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
