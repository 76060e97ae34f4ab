//! `cargo xtask build`.

use anyhow::Result;

use crate::{run, setup};

/// What `cargo xtask build` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised, as it is shipped
    #[arg(long)]
    release: bool,
}

/// Builds the eBPF object and the daemon; installs the toolchain first when it is missing.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(true)?;
    let mut command = run::cargo();
    command.args(["build", "--package", "pv-net"]);
    if args.release {
        command.arg("--release");
    }
    run::run(&mut command)?;
    let profile = if args.release { "release" } else { "debug" };
    println!("built: {}", run::target_dir()?.join(profile).join("pv-net").display());
    Ok(())
}
