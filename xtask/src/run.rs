//! Running programs, and finding them and this workspace.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::fault::misuse;
use crate::signals;

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs this task.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Cargo's target directory, from `cargo metadata`, so that CARGO_TARGET_DIR and config files count.
pub fn target_dir() -> Result<PathBuf> {
    let told = cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output().context("cargo metadata")?;
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).context("cargo metadata")?;
    let dir = told["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(dir))
}

/// Runs a program to its end in this terminal. A failure is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = signals::run(command).with_context(|| format!("{} could not be started", show(command)))?;
    signals::check()?;
    if !status.success() {
        bail!("{}: {status}", show(command));
    }
    Ok(())
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    let quoted = words.map(|word| if word.contains(' ') { format!("'{word}'").into() } else { word });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The first `name` in PATH, in cargo's bin folder or where root's programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    let dirs = path().into_iter().chain(cargo_bin()).chain(SBIN.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Directories of root's programs, which are not in every root user's PATH.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

fn path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

/// PATH with root's programs, so that installed programs are found in the same way as setup finds them.
pub fn search_path() -> Result<OsString> {
    Ok(std::env::join_paths(path().into_iter().chain(SBIN.map(PathBuf::from)))?)
}

/// Where `cargo install` puts programs.
fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo"))).map(|h| h.join("bin"))
}

/// True for the root user.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Fails unless the user is root; `what` is the reason.
pub fn need_root(what: &str) -> Result<()> {
    if is_root() { Ok(()) } else { Err(misuse(format!("{what}: not root"), "run it as root")) }
}
