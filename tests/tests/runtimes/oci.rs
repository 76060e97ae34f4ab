//! runc and crun by a patched bundle, and podman by its directory of hooks.

use crate::lab::{Lab, Runtime, said};
use crate::story;
use anyhow::{Context, Result, ensure};
use harness::{Namespace, SOON, eventually, output};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A runtime with the command line of runc.
pub struct Bundles(pub &'static str);

pub fn config(dir: &str) -> Result<Value> {
    let text = fs::read_to_string(PathBuf::from(dir).join("config.json"))?;
    Ok(serde_json::from_str(&text)?)
}

impl Bundles {
    /// A bundle of the runtime's own making, that sleeps.
    pub fn bundle(&self, lab: &Lab, name: &str) -> Result<PathBuf> {
        let dir = lab.dir(&format!("bundles/{name}"))?;
        if dir.join("config.json").exists() {
            return Ok(dir);
        }
        lab.rootfs(&dir)?;
        output(lab.runtime(self.0).arg("spec").current_dir(&dir))?;
        let mut spec = config(&dir.display().to_string())?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/sleep", "100000"]);
        spec["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            let set = spec["process"]["capabilities"][set].as_array_mut().context("capabilities")?;
            set.push(json!("CAP_NET_RAW"));
        }
        // This needs a capability that the machine's root may not have.
        spec["process"]["rlimits"] = json!([]);
        fs::write(dir.join("config.json"), spec.to_string())?;
        Ok(dir)
    }

    pub fn command(&self, lab: &Lab) -> Result<Command> {
        let mut command = lab.runtime(self.0);
        command.arg("--root").arg(lab.dir("oci")?);
        Ok(command)
    }

    /// The name in the runtime, which is not the container's.
    pub fn id(lab: &Lab, name: &str) -> String {
        let own = lab.device.file("").display().to_string();
        format!("{name}-{}", own.trim_matches('/').replace(['/', '.'], "-"))
    }
}

impl Runtime for Bundles {
    const TYPE: &'static str = "oci";

    fn row(&self) -> &'static str {
        self.0
    }

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        let dir = self.bundle(lab, name)?;
        let path = dir.display().to_string();
        eventually(SOON, || {
            let file = lab.device.file("run").join(format!("resolv/{name}.conf"));
            ensure!(file.exists(), "{} is not there", file.display());
            Ok(())
        })?;
        lab.device.cli(&["oci", "patch", &path, name]).ok()?;
        let once = config(&path)?;
        lab.device.cli(&["oci", "patch", &path, name]).ok()?;
        ensure!(config(&path)? == once, "twice is not as once");
        let mut run = self.command(lab)?;
        run.args(["run", "--detach", "--bundle", &path]).arg(Self::id(lab, name));
        // The container has these for its output as long as it runs.
        run.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(dir.join("log"))?;
        let status = run.stderr(log).status()?;
        ensure!(status.success(), "{status}: {}", fs::read_to_string(dir.join("log"))?);
        Ok(())
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        let mut command = self.command(lab).unwrap_or_else(|_| Command::new("false"));
        command.arg("exec").arg(Self::id(lab, name)).args(words);
        command
    }

    fn stop(&self, lab: &Lab, name: &str) -> Result<()> {
        output(self.command(lab)?.args(["delete", "--force"]).arg(Self::id(lab, name)))?;
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_runc() -> Result<()> {
    story::holds(&Bundles("runc"))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_crun() -> Result<()> {
    story::holds(&Bundles("crun"))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_gets_no_network_does_not_start() -> Result<()> {
    let lab = Lab::new("oci")?;
    let runtime = Bundles("runc");
    let dir = runtime.bundle(&lab, "web")?.display().to_string();
    let missing = lab.device.cli(&["oci", "patch", "/nowhere", "web"]);
    ensure!(missing.code == Some(2) && missing.stderr.contains("/nowhere/config.json"), "{missing:?}");
    runtime.start(&lab, "web")?;
    // One that is running already is not started again, and stays attached.
    let again = runtime.start(&lab, "web");
    let attached = lab.attached("web");
    runtime.stop(&lab, "web")?;
    ensure!(again.is_err(), "two of one name");
    attached?;
    lab.no_links()?;
    // Of a pool that is gone it gets no interface.
    let run = json!({"name": "web", "type": "oci", "network": {"pool": "gone"}});
    fs::write(lab.device.file("containers").join("web/run.json"), run.to_string())?;
    lab.device.cli(&["reload"]).ok()?;
    let mut refused = runtime.command(&lab)?;
    refused.args(["run", "--detach", "--bundle", &dir]).arg(Bundles::id(&lab, "web"));
    let refused = refused.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if refused.success() {
        runtime.stop(&lab, "web")?;
    }
    ensure!(!refused.success(), "it has started without a network");
    lab.no_links()
}

/// A namespace that is there before, for runtimes or containers that want no hooks.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_bundle_is_started_in_a_namespace_that_is_attached_already() -> Result<()> {
    let lab = Lab::new("netns")?;
    let runtime = Bundles("crun");
    let ns = Namespace::new("web")?;
    let path = ns.path().display().to_string();
    lab.device.json(&["attach", "web", "--netns", &path])?;
    let dir = runtime.bundle(&lab, "web")?.display().to_string();
    lab.device.cli(&["oci", "patch", &dir, "web", "--netns", &path]).ok()?;
    let mut run = runtime.command(&lab)?;
    run.args(["run", "--detach", "--bundle", &dir]).arg(Bundles::id(&lab, "web"));
    ensure!(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(), "not started");
    let pinged = said(&lab, &runtime, "web", &["ping", "-c", "1", "-W", "5", "10.0.3.1"]);
    runtime.stop(&lab, "web")?;
    pinged?;
    // The namespace is not the runtime's: the container's interface outlives it.
    lab.attached("web").context("it is not attached any more")?;
    Ok(())
}
