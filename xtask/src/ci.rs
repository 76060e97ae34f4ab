//! `cargo xtask ci`: what `.ci/run` runs.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::run::{self, cargo};
use crate::{fuzz, setup, test, vm};

/// Runs every check, the cheapest first, and stops at the first that fails.
pub fn run() -> Result<()> {
    let start = Instant::now();
    setup::ensure(false)?;
    let step = |name: &str, words: &[&str]| {
        println!("ci: {name} ({} s)", start.elapsed().as_secs());
        let mut command = cargo();
        command.args(words).env("RUSTDOCFLAGS", "-D warnings");
        run::run(&mut command).context(name.to_owned())
    };
    step("formatting", &["fmt", "--all", "--check"])?;
    step("formatting of the eBPF programs", &["fmt", "--manifest-path", "pv-net-ebpf/Cargo.toml", "--check"])?;
    step("licences, bans and sources", &["deny", "--all-features", "check", "bans", "licenses", "sources"])?;
    step("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("docs", &["doc", "--workspace", "--no-deps", "--quiet"])?;
    println!("ci: tests ({} s)", start.elapsed().as_secs());
    test::run(&test::Args::strict())?;
    println!("ci: fuzzing ({} s)", start.elapsed().as_secs());
    fuzz::run(&fuzz::Args::for_ci())?;
    println!("ci: kernels in emulated machines ({} s)", start.elapsed().as_secs());
    vm::run(&vm::Args::for_ci())?;
    println!("ci: green after {} s", start.elapsed().as_secs());
    Ok(())
}
