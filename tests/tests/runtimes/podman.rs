//! podman, by the file of its directory of hooks that is in `packaging/`.

use crate::lab::{Lab, Runtime, said};
use crate::story;
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually, output};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Podman;

impl Podman {
    /// podman with files of its own, and the packaged hook with this device's daemon.
    fn command(lab: &Lab) -> Result<Command> {
        let dir = lab.dir("podman")?;
        let hooks = lab.dir("podman/hooks")?;
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/oci/pv-net.json");
        let mut hook: Value = serde_json::from_str(&fs::read_to_string(packaged)?)?;
        let run_dir = format!("--run-dir={}", lab.device.file("run").display());
        hook["hook"]["path"] = json!(harness::binary()?);
        hook["hook"]["args"].as_array_mut().context("args")?.insert(1, json!(run_dir));
        fs::write(hooks.join("pv-net.json"), hook.to_string())?;
        let config = dir.join("containers.conf");
        // These limits need no capability that the machine's root may not have.
        let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]";
        let engine = "cgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"";
        fs::write(&config, format!("[containers]\n{limits}\n[engine]\n{engine}\n"))?;
        let mut command = lab.runtime("podman");
        command.env("CONTAINERS_CONF", config);
        command.arg("--root").arg(dir.join("store")).arg("--runroot").arg(dir.join("run"));
        command.args(["--storage-driver", "vfs", "--hooks-dir"]).arg(hooks);
        Ok(command)
    }

    fn rootfs(lab: &Lab, name: &str) -> Result<PathBuf> {
        let dir = lab.dir(&format!("images/{name}"))?;
        let root = dir.join("rootfs");
        if root.exists() { Ok(root) } else { lab.rootfs(&dir) }
    }

    fn run(lab: &Lab, name: &str, more: &[&str]) -> Result<String> {
        let file = lab.device.file("run").join(format!("resolv/{name}.conf"));
        let mut run = Self::command(lab)?;
        run.args(["run", "--detach", "--name", name, "--network", "none", "--cap-add", "NET_RAW"]).args(more);
        if file.exists() {
            run.arg("--volume").arg(format!("{}:/etc/resolv.conf:ro", file.display()));
        }
        output(run.arg("--rootfs").arg(Self::rootfs(lab, name)?).args(["/bin/sleep", "100000"]))
    }
}

impl Runtime for Podman {
    const TYPE: &'static str = "oci";

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        eventually(SOON, || {
            let file = lab.device.file("run").join(format!("resolv/{name}.conf"));
            ensure!(file.exists(), "{} is not there", file.display());
            Ok(())
        })?;
        let named = format!("pv-net.name={name}");
        let host = format!("{name}-host");
        Self::run(lab, name, &["--annotation", &named, "--hostname", &host])?;
        Ok(())
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        let mut command = Self::command(lab).unwrap_or_else(|_| Command::new("false"));
        command.args(["exec", name]).args(words);
        command
    }

    fn stop(&self, lab: &Lab, name: &str) -> Result<()> {
        output(Self::command(lab)?.args(["rm", "--force", "--time", "0", name]))?;
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_podman() -> Result<()> {
    story::holds(&Podman)
}

/// A container that nobody has declared gets a pool by an annotation, and its lease ends with it.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_annotation_names_a_pool() -> Result<()> {
    let lab = Lab::new("oci")?;
    let refused = Podman::run(&lab, "box", &["--annotation", "pv-net.pool=nowhere"]);
    let _ = Podman.stop(&lab, "box");
    ensure!(refused.is_err(), "in a pool that does not exist: {refused:?}");
    Podman::run(&lab, "box", &["--annotation", "pv-net.pool=internal", "--annotation", "pv-net.name=box"])?;
    let attached = lab.attached("box");
    let pinged = said(&lab, &Podman, "box", &["ping", "-c", "1", "-W", "5", "10.0.3.1"]);
    Podman.stop(&lab, "box")?;
    attached?;
    pinged?;
    lab.no_links()?;
    let leases = lab.device.json(&["leases"])?;
    ensure!(!leases.to_string().contains("box"), "{leases}");
    Ok(())
}
