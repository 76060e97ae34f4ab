//! podman, by the file of its directory of hooks that is in `packaging/`.

use crate::lab::{Lab, Runtime, said};
use crate::story;
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually, output};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Podman;

/// Writes a file that is not there yet: another podman may be reading it.
fn write_once(file: &Path, text: &str) -> Result<()> {
    if file.exists() { Ok(()) } else { fs::write(file, text).with_context(|| file.display().to_string()) }
}

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
        write_once(&hooks.join("pv-net.json"), &hook.to_string())?;
        let config = dir.join("containers.conf");
        // These limits need no capability that the machine's root may not have.
        let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]";
        let engine = "cgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"";
        let own = format!("tmp_dir = {:?}", dir.join("tmp").display().to_string());
        write_once(&config, &format!("[containers]\n{limits}\n[engine]\n{engine}\n{own}\n"))?;
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

    /// Makes what its calls would make at the same time: its store, and the root file systems of these containers.
    pub fn prepare(&self, lab: &Lab, names: &[String]) -> Result<()> {
        output(Self::command(lab)?.arg("ps"))?;
        names.iter().try_for_each(|name| Self::rootfs(lab, name).map(drop))
    }

    pub fn run(lab: &Lab, name: &str, more: &[&str]) -> Result<String> {
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

    fn row(&self) -> &'static str {
        "podman"
    }

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

/// What a container has that is in a pool by its annotations.
pub const IN_POOL: [&str; 2] = ["--annotation", "pv-net.pool=internal"];

fn has_lease(lab: &Lab, name: &str) -> Result<bool> {
    Ok(lab.device.json(&["leases"])?.to_string().contains(name))
}

/// Waits until nothing of a container is left that nobody has declared.
fn is_gone(lab: &Lab, name: &str) -> Result<()> {
    eventually(SOON, || {
        let links = lab.device.ns.ip("-o link show type veth")?;
        ensure!(!has_lease(lab, name)?, "{name} has a lease: {links}{}", lab.device.log());
        ensure!(lab.view(name).is_err(), "{name} is still there: {links}");
        Ok(())
    })
}

/// Does something, and removes these containers afterwards, whatever became of it.
fn and_remove(lab: &Lab, names: &[&str], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = work();
    let removed: Vec<_> = names.iter().map(|name| Podman.stop(lab, name)).collect();
    done?;
    removed.into_iter().collect()
}

/// A container that nobody has declared gets a pool by an annotation, and its lease ends with it.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_annotation_names_a_pool() -> Result<()> {
    let mut lab = Lab::new("oci")?;
    and_remove(&lab, &["anonymous"], || {
        let id = Podman::run(&lab, "anonymous", &IN_POOL)?;
        let name = id.trim().get(..12).context("an id")?.to_owned();
        lab.attached(&name)?;
        said(&lab, &Podman, "anonymous", &["ping", "-c", "1", "-W", "5", "10.0.3.1"])?;
        Podman.stop(&lab, "anonymous")?;
        is_gone(&lab, &name)
    })?;
    // One with the name of another that runs is refused, and the other one stays.
    let named = [IN_POOL[0], IN_POOL[1], "--annotation", "pv-net.name=box"];
    and_remove(&lab, &["first", "second"], || {
        Podman::run(&lab, "first", &named)?;
        let before = lab.attached("box")?;
        let second = Podman::run(&lab, "second", &named);
        ensure!(second.is_err(), "two of one name: {second:?}");
        Podman.stop(&lab, "second")?;
        ensure!(lab.attached("box")? == before, "another address");
        said(&lab, &Podman, "first", &["ping", "-c", "1", "-W", "5", "10.0.3.1"])?;
        Ok(())
    })?;
    is_gone(&lab, "box")?;
    // One that ends while no daemon runs, too.
    Podman::run(&lab, "box", &named)?;
    let attached = lab.attached("box");
    lab.device.stop(Signal::SIGKILL)?;
    Podman.stop(&lab, "box")?;
    attached?;
    lab.device.start()?;
    is_gone(&lab, "box")?;
    lab.no_links()
}

/// A container that shares the namespace of another is that one to pv-net.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_shares_a_namespace_is_the_other_one() -> Result<()> {
    let lab = Lab::new("oci")?;
    and_remove(&lab, &["sidecar", "box"], || {
        Podman::run(&lab, "box", &[IN_POOL[0], IN_POOL[1], "--annotation", "pv-net.name=box"])?;
        let addresses = lab.attached("box")?;
        let mut run = Podman::command(&lab)?;
        run.args(["run", "--detach", "--name", "sidecar", "--network", "container:box", "--cap-add", "NET_RAW"]);
        output(run.arg("--rootfs").arg(Podman::rootfs(&lab, "sidecar")?).args(["/bin/sleep", "100000"]))?;
        for gateway in ["10.0.3.1", "fd00:5056:0:3::1"] {
            said(&lab, &Podman, "sidecar", &["ping", "-c", "1", "-W", "5", gateway])?;
        }
        let routes = said(&lab, &Podman, "sidecar", &["cat", "/proc/net/if_inet6", "/proc/net/fib_trie"])?;
        ensure!(routes.contains(&addresses[0]), "{addresses:?}: {routes}");
        let all = lab.device.json(&["containers"])?;
        let attached = all.as_array().into_iter().flatten().filter(|c| c["state"] == "attached").count();
        ensure!(attached == 1, "{all}");
        Ok(())
    })?;
    is_gone(&lab, "box")?;
    lab.no_links()
}

/// An image may bring annotations along, so they lead only where the device's configuration says so.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn annotations_open_no_pool_that_does_not_allow_it() -> Result<()> {
    let lab = Lab::new("oci")?;
    let mut config: Value = serde_json::from_str(&fs::read_to_string(lab.device.config())?)?;
    config["network"]["pools"]["management"]["annotations"] = json!(false);
    lab.device.configure(&config)?;
    lab.device.cli(&["reload"]).ok()?;
    for (annotations, why) in [
        (&["pv-net.pool=nowhere"][..], "\"nowhere\": no such pool"),
        (&["pv-net.pool=management", "pv-net.name=box"], "container box: an annotation leads to pool management"),
        // A declared container, whose pool is this one; and one that is to leave its pool.
        (&["pv-net.name=other"], "container other: an annotation leads to pool management"),
        (&["pv-net.name=web", "pv-net.pool=internal"], "is declared"),
    ] {
        let more: Vec<&str> = annotations.iter().flat_map(|annotation| ["--annotation", annotation]).collect();
        and_remove(&lab, &["box"], || {
            let refused = Podman::run(&lab, "box", &more);
            ensure!(refused.is_err(), "{annotations:?}: {refused:?}");
            // podman tells only that the hook has failed.
            ensure!(lab.device.log().contains(why), "{annotations:?}: {}", lab.device.log());
            Ok(())
        })?;
    }
    lab.no_links()
}
