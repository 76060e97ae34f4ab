//! LXC, by the lines of `pv-net lxc config`.

use crate::lab::{Lab, Runtime};
use crate::story;
use anyhow::{Context, Result, ensure};
use harness::output;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

pub struct Lxc;

fn dir(lab: &Lab, name: &str) -> Result<PathBuf> {
    lab.dir(&format!("lxc/{name}"))
}

/// A container's configuration without a network.
pub fn configured(lab: &Lab, name: &str) -> Result<PathBuf> {
    let dir = dir(lab, name)?;
    let root = lab.rootfs(&dir)?;
    let config = dir.join("config");
    let lines = [
        format!("lxc.rootfs.path = dir:{}", root.display()),
        "lxc.mount.auto = proc:rw sys:ro".to_owned(),
        "lxc.apparmor.profile = unconfined".to_owned(),
        "lxc.tty.max = 0".to_owned(),
        "lxc.pty.max = 16".to_owned(),
    ];
    fs::write(&config, lines.join("\n") + "\n")?;
    Ok(config)
}

impl Lxc {
    pub fn command(lab: &Lab, program: &str, name: &str) -> Result<Command> {
        let mut command = lab.runtime(program);
        command.arg("-P").arg(lab.dir("lxc")?).args(["-n", name]);
        Ok(command)
    }
}

impl Runtime for Lxc {
    const TYPE: &'static str = "lxc";

    fn row(&self) -> &'static str {
        "LXC"
    }

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        let log = dir(lab, name)?.join("log");
        if !dir(lab, name)?.join("config").exists() {
            let config = configured(lab, name)?.display().to_string();
            lab.device.cli(&["lxc", "config", name, "--write", &config]).ok()?;
        }
        let mut start = Self::command(lab, "lxc-start", name)?;
        start.args(["-d", "-l", "DEBUG", "-o"]).arg(&log).args(["--", "/bin/sleep", "100000"]);
        output(&mut start).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(())
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        let mut command = Self::command(lab, "lxc-attach", name).unwrap_or_else(|_| Command::new("false"));
        command.arg("--clear-env").arg("--").args(words);
        command
    }

    fn stop(&self, lab: &Lab, name: &str) -> Result<()> {
        output(Self::command(lab, "lxc-stop", name)?.arg("-k"))?;
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_lxc() -> Result<()> {
    story::holds(&Lxc)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_gets_no_network_does_not_start() -> Result<()> {
    let mut lab = Lab::new("lxc")?;
    let config = configured(&lab, "web")?;
    let path = config.display().to_string();
    // A network of its own beside the pool is refused, and the file stays as it is.
    let own = fs::read_to_string(&config)? + "lxc.net.0.type = veth\n";
    fs::write(&config, &own)?;
    let refused = lab.device.cli(&["lxc", "config", "web", "--write", &path]);
    ensure!(refused.code == Some(2) && refused.stderr.contains("lxc.net.0.type = veth"), "{refused:?}");
    ensure!(fs::read_to_string(&config)? == own, "the file was changed");
    fs::write(&config, own.replace("lxc.net.0.type = veth\n", ""))?;
    // Twice gives what once gives.
    lab.device.cli(&["lxc", "config", "web", "--write", &path]).ok()?;
    let once = fs::read_to_string(&config)?;
    lab.device.cli(&["lxc", "config", "web", "--write", &path]).ok()?;
    ensure!(fs::read_to_string(&config)? == once, "another text");
    ensure!(once.ends_with(&lab.device.cli(&["lxc", "config", "web"]).ok()?), "not what is printed");
    let unknown = lab.device.cli(&["lxc", "config", "nobody"]);
    ensure!(unknown.code == Some(2) && unknown.stderr.contains("not declared"), "{unknown:?}");
    // Without a daemon nothing would guard it.
    lab.device.stop(nix::sys::signal::Signal::SIGTERM)?;
    let started = Lxc.start(&lab, "web");
    if started.is_ok() {
        Lxc.stop(&lab, "web")?;
    }
    ensure!(started.is_err(), "it has started without a network");
    lab.device.start()?;
    Lxc.start(&lab, "web")?;
    let attached = lab.attached("web");
    Lxc.stop(&lab, "web")?;
    attached?;
    lab.no_links()
}
