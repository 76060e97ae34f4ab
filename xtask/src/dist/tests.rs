use super::{package, tree};
use crate::run;
use crate::vm::said;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program below `root`, as a device has it.
fn dpkg(root: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut dpkg = Command::new("dpkg");
    // Scripts run with this machine's shell, since `root` has none. DPKG_ROOT tells them that this machine is not meant.
    dpkg.arg(format!("--root={}", root.display())).args(["--force-script-chrootless", "--force-not-root"]);
    said(dpkg.args(words).env("PATH", run::search_path()?))
}

fn files(root: &Path) -> anyhow::Result<Vec<String>> {
    let all = said(
        Command::new("find").args([".", "-not", "-type", "d", "-not", "-path", "./var/lib/dpkg/*"]).current_dir(root),
    )?;
    Ok(all.lines().map(str::to_owned).collect())
}

/// Installed, run, removed and purged: what it brought is gone, what somebody changed stays until the purge.
#[test]
#[ignore = "needs a built daemon: run by cargo xtask test"]
fn a_package_is_installed_run_and_removed() -> anyhow::Result<()> {
    let program = PathBuf::from(std::env::var("PV_NET_BIN")?);
    let dir = std::env::temp_dir().join(format!("pv-net-dist-{}", std::process::id()));
    let ended = installed(&dir, &program);
    std::fs::remove_dir_all(&dir)?;
    ended
}

fn installed(dir: &Path, program: &Path) -> anyhow::Result<()> {
    let (laid, texts, device) = (dir.join("laid"), dir.join("texts"), dir.join("device"));
    for name in ["man", "bash", "zsh", "fish"] {
        std::fs::create_dir_all(texts.join(name))?;
        std::fs::write(texts.join(name).join("pv-net"), name)?;
    }
    tree::lay(&laid, program, &texts)?;
    let arch = said(Command::new("dpkg").arg("--print-architecture"))?;
    let package = package::debian(dir, &laid, arch.trim())?;
    let archive = package::archive(dir, &laid, arch.trim())?;
    let sums = package::checksums(dir, &[package.clone(), archive.clone()])?;
    said(Command::new("sha256sum").arg("--check").arg(&sums).current_dir(dir))?;
    let listed = said(Command::new("tar").args(["--list", "--verbose", "--file"]).arg(&archive))?;
    let is_open = |line: &str| !line.starts_with('d') || line.starts_with("drwxr-xr-x 0/0");
    assert!(listed.contains(" usr/bin/pv-net") && listed.lines().all(is_open), "{listed}");
    assert!(!listed.contains(" etc") && !listed.contains(" ./"), "it would replace a configuration: {listed}");

    std::fs::create_dir_all(device.join("var/lib/dpkg/info"))?;
    std::fs::create_dir_all(device.join("var/lib/dpkg/updates"))?;
    std::fs::write(device.join("var/lib/dpkg/status"), "")?;
    let path = package.display().to_string();
    dpkg(&device, &["--install", &path])?;
    let there = files(&device)?;
    for file in [
        "usr/bin/pv-net",
        "usr/lib/systemd/system/pv-net.service",
        "usr/lib/systemd/system/pv-net-runner.service",
        "etc/pv-net/device.json",
    ] {
        assert!(there.contains(&format!("./{file}")), "{file}: {there:?}");
    }
    assert!(!there.iter().any(|file| file.contains("/systemd/system/multi-user")), "started unasked: {there:?}");
    let own = device.join("usr/bin/pv-net");
    let version = said(Command::new(&own).arg("--version"))?;
    assert_eq!(version.trim(), format!("pv-net {}", super::version()));
    let checked = said(Command::new(&own).arg("check").arg(device.join("etc/pv-net/device.json")))?;
    assert!(checked.contains("all right"), "{checked}");

    dpkg(&device, &["--remove", "pv-net"])?;
    assert_eq!(files(&device)?, ["./etc/pv-net/device.json"]);
    // As a daemon leaves it; the same directories of this machine are not the package's matter.
    let state = device.join("var/lib/pv-net");
    std::fs::create_dir_all(&state)?;
    std::fs::write(state.join("state.json"), "{}")?;
    dpkg(&device, &["--purge", "pv-net"])?;
    assert_eq!(files(&device)?, [""; 0]);
    Ok(())
}
