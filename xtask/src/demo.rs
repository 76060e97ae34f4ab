//! `cargo xtask demo`.

use std::process::Command;

use anyhow::Result;

use crate::{run, setup, signals};

/// Builds the daemon and the demo as they are shipped, and runs the demo.
pub fn run() -> Result<()> {
    run::need_root("the demo makes network namespaces and loads eBPF programs")?;
    signals::catch()?;
    setup::ensure(false)?;
    run::run(run::cargo().args([
        "build",
        "--release",
        "--package",
        "pv-net",
        "--package",
        "pv-net-tests",
        "--bin",
        "pv-net",
        "--bin",
        "demo",
    ]))?;
    let bin = run::target_dir()?.join("release");
    let mut demo = Command::new(bin.join("demo"));
    demo.env("PV_NET_BIN", bin.join("pv-net")).current_dir(run::root());
    run::run(&mut demo)
}
