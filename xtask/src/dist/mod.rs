//! `cargo xtask dist`: what is installed on devices.

mod package;
#[cfg(test)]
mod tests;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::vm::{Arch, said};
use crate::{cross, run, setup};

/// What `cargo xtask dist` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only for this processor; for both unless set
    #[arg(long, value_enum)]
    arch: Option<Arch>,
}

/// Builds the static programs and packs them, into `target/dist`.
pub fn run(args: &Args) -> Result<()> {
    let archs = args.arch.map_or_else(|| vec![Arch::X86, Arch::Arm], |arch| vec![arch]);
    setup::ensure(true)?;
    if archs.contains(&Arch::Arm) {
        setup::ensure_vm(true)?;
    }
    let dist = run::target_dir()?.join("dist");
    if dist.exists() {
        std::fs::remove_dir_all(&dist).with_context(|| dist.display().to_string())?;
    }
    std::fs::create_dir_all(&dist)?;
    let texts = texts(&dist)?;
    let mut made = Vec::new();
    for arch in archs {
        let root = dist.join("root").join(arch.name());
        tree::lay(&root, &program(arch)?, &texts)?;
        made.push(package::debian(&dist, &root, arch.debian())?);
        made.push(package::archive(&dist, &root, arch.name())?);
    }
    made.push(package::checksums(&dist, &made)?);
    std::fs::remove_dir_all(dist.join("root"))?;
    std::fs::remove_dir_all(dist.join("texts"))?;
    for file in made {
        println!("made: {}", file.display());
    }
    Ok(())
}

/// The static program for a processor.
fn program(arch: Arch) -> Result<PathBuf> {
    let cache = run::target_dir()?.join("vm");
    let mut command = run::cargo();
    command.args(["build", "--release", "--package", "pv-net"]);
    cross::link_statically(&mut command, &cache, arch)?;
    run::run(&mut command).with_context(|| format!("the program for {}", arch.name()))?;
    Ok(run::target_dir()?.join(arch.target()).join("release/pv-net"))
}

/// Manual pages and completions, which the program itself knows best: they are the same for all processors.
fn texts(dist: &Path) -> Result<PathBuf> {
    let dir = dist.join("texts");
    let man = dir.join("man");
    run::run(run::cargo().args(["run", "--quiet", "--package", "pv-net", "--example", "man"]).arg(&man))
        .context("manual pages")?;
    for (shell, file) in [("bash", "pv-net"), ("zsh", "_pv-net"), ("fish", "pv-net.fish")] {
        let mut command = run::cargo();
        command.args(["run", "--quiet", "--package", "pv-net", "--", "completions", shell]);
        let text = said(&mut command).with_context(|| format!("completions for {shell}"))?;
        let dir = dir.join(shell);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(file), text)?;
    }
    Ok(dir)
}

/// The version of all packages of the workspace.
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// A program that must succeed.
fn done(command: &mut Command) -> Result<()> {
    said(command).map(drop)
}
