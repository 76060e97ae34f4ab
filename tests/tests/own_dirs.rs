//! Directories of state, lock and pins, and the lock file, are not used when another user has made them or may change
//! them.

use anyhow::{Context, Result, ensure};
use harness::{Device, configs};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

const NOBODY: u32 = 65_534;

fn device() -> Result<Device> {
    Device::new(&configs::two_pools())
}

/// The directories of a device that no other user may be able to change.
fn dirs(device: &Device) -> [PathBuf; 4] {
    [device.file("state"), device.file("run"), device.pins(), device.pins().join("maps")]
}

fn make(dir: &Path) -> Result<()> {
    Ok(fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?)
}

fn give_away(path: &Path) -> Result<()> {
    Ok(chown(path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?)
}

/// Fails unless the daemon ends at once, with an error that contains `what`, and with a help text.
fn refused(device: &Device, what: &str) -> Result<()> {
    let done = device.command().arg("run").stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(!done.status.success(), "it started: {what}");
    ensure!(said.contains(&format!("error: {what}")) && said.contains("help: "), "{said} instead of {what}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_directory_of_another_user_is_refused() -> Result<()> {
    let device = device()?;
    for dir in dirs(&device) {
        make(&dir)?;
        give_away(&dir)?;
        refused(&device, &format!("{}: it belongs to user {NOBODY}, not to user 0", dir.display()))?;
        fs::remove_dir(&dir)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_directory_that_others_may_write_to_is_refused() -> Result<()> {
    let device = device()?;
    for dir in dirs(&device) {
        for mode in [0o1777, 0o777, 0o770, 0o702] {
            make(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(mode))?;
            refused(&device, &format!("{}: other users may write to it (mode {mode:04o})", dir.display()))?;
            fs::remove_dir(&dir)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_symbolic_link_is_no_directory() -> Result<()> {
    let device = device()?;
    let elsewhere = tempfile::tempdir()?;
    for dir in dirs(&device) {
        if let Some(above) = dir.parent() {
            make(above)?;
        }
        symlink(elsewhere.path(), &dir)?;
        refused(&device, &format!("{}: it is a symbolic link, not a directory", dir.display()))?;
        fs::remove_file(&dir)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_directory_below_one_of_another_user_is_refused() -> Result<()> {
    let device = device()?;
    for dir in [device.file("state"), device.file("run"), device.pins()] {
        let above = dir.with_file_name("theirs");
        make(&above)?;
        give_away(&above)?;
        let below = above.join("pv-net");
        let usual = device.command();
        let mut command = device.ns.command(&usual.get_program().to_string_lossy());
        command.args(usual.get_args().map(|arg| if arg == dir { below.as_os_str() } else { arg }));
        let done = command.arg("run").stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(!done.status.success(), "it started with {}", below.display());
        ensure!(said.contains(&format!("{}: it belongs to user {NOBODY}", above.display())), "{said}");
        fs::remove_dir(&above).context("something was made in it")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn only_root_opens_the_lock() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let lock = device.file("run").join("lock");
    let mode = |path: &Path| -> Result<u32> {
        Ok(fs::metadata(path).with_context(|| path.display().to_string())?.mode() & 0o777)
    };
    ensure!(mode(&lock)? == 0o600, "{:o}", mode(&lock)?);
    for (dir, wanted) in [("state", 0o700), ("run", 0o755)] {
        ensure!(mode(&device.file(dir))? == wanted, "{dir}: {:o}", mode(&device.file(dir))?);
    }
    ensure!(mode(&device.pins())? == 0o700, "{:o}", mode(&device.pins())?);
    device.stop(Signal::SIGTERM)?;
    // With the permissions that earlier versions gave it.
    fs::set_permissions(&lock, Permissions::from_mode(0o644))?;
    device.start()?;
    ensure!(mode(&lock)? == 0o600, "{:o}", mode(&lock)?);
    device.stop(Signal::SIGTERM)?;
    give_away(&lock)?;
    refused(&device, &format!("{}: it belongs to user {NOBODY}, not to user 0", lock.display()))?;
    fs::remove_file(&lock)?;
    symlink(device.config(), &lock)?;
    let done = device.command().arg("run").stdin(Stdio::null()).output()?;
    ensure!(!done.status.success(), "it took a symbolic link for its lock");
    Ok(())
}
