//! Containers that pv-net itself starts: their declarations, what their runtimes need, and the runner.

use crate::lab::{Lab, Runtime};
use crate::lxc::{self, Lxc};
use crate::oci::{self, Bundles};
use anyhow::{Context, Result, ensure};
use harness::{Process, SOON, binary, eventually, output};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A program that serves a page and ends when it is asked to.
pub const SERVES: &str = "httpd -p [::]:80 -h /\ntrap 'exit 0' TERM PWR\nwhile :; do sleep 1000 & wait $!; done\n";
/// A program that does not end when it is asked to.
pub const STUBBORN: &str = "trap '' TERM PWR\nwhile :; do sleep 1000; done\n";

/// What a runner may have that no module gets: another group, files that all may write, and mounts that are seen elsewhere.
const GIVEN: &str = "umask 0; mount --make-rshared /; exec setpriv --groups 12345 \"$@\"";

/// A device whose containers are started by a runner.
pub struct Starter {
    pub lab: Lab,
    /// `lxc`, `runc`, `crun`, `wasmtime` or `wasmedge`.
    pub kind: &'static str,
    pub runner: Option<Process>,
    names: BTreeSet<String>,
}

impl Starter {
    /// A device with a daemon and without containers.
    pub fn new(kind: &'static str) -> Result<Self> {
        let lab = Lab::new("netns")?;
        for name in ["web", "db", "other"] {
            fs::remove_dir_all(lab.device.file("containers").join(name))?;
        }
        lab.device.cli(&["reload"]).ok()?;
        let mut starter = Self { lab, kind, runner: None, names: BTreeSet::new() };
        starter.start_runner()?;
        // Whatever is declared later is for the next daemon.
        eventually(SOON, || {
            ensure!(starter.log().contains("automatic starts"), "the daemon has not asked for the automatic starts");
            Ok(())
        })?;
        Ok(starter)
    }

    /// Starts a runner, and waits until the daemon has its states.
    pub fn start_runner(&mut self) -> Result<()> {
        let device = &self.lab.device;
        let log = fs::File::options().create(true).append(true).open(device.file("runner.log"))?;
        let program = binary()?.display().to_string();
        let mut command = match self.kind {
            "wasmtime" | "wasmedge" => {
                let mut command = self.lab.runtime("sh");
                command.args(["-ec", GIVEN, "sh", &program]);
                command
            }
            _ => self.lab.runtime(&program),
        };
        command.arg("runner").arg("--config").arg(device.config());
        for (flag, dir) in [("--containers", "containers"), ("--state-dir", "state"), ("--run-dir", "run")] {
            command.arg(flag).arg(device.file(dir));
        }
        let socket = device.file("run/runner.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        self.runner = Some(Process::start(command.stderr(log.try_clone()?).stdout(log))?);
        eventually(SOON, || {
            ensure!(socket.exists(), "no runner: {}", self.log());
            Ok(())
        })
    }

    /// A `pv-net` command that calls the container's runtime itself.
    pub fn direct(&self, words: &[&str]) -> Result<Command> {
        let device = &self.lab.device;
        let mut command = self.lab.runtime(&binary()?.display().to_string());
        command.arg("--config").arg(device.config());
        for (flag, dir) in [("--containers", "containers"), ("--state-dir", "state"), ("--run-dir", "run")] {
            command.arg(flag).arg(device.file(dir));
        }
        command.args(words);
        Ok(command)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.lab.device.file("runner.log")).unwrap_or_default()
    }

    /// What its runtime knows a container by.
    pub fn runtime(&self, name: &str) -> Result<Value> {
        let dir = |dir: &str| self.lab.dir(dir).map(|dir| dir.display().to_string());
        Ok(match self.kind {
            "lxc" => json!({"lxcpath": dir("lxc")?}),
            program => json!({
                "program": program, "bundle": dir(&format!("bundles/{name}"))?, "root": dir("oci")?,
                "id": Bundles::id(&self.lab, name),
            }),
        })
    }

    /// Declares a container in the pool `internal` that runs this script; `more` goes into its `run.json`.
    pub fn declare(&mut self, name: &str, script: &str, more: Value) -> Result<()> {
        let root = match self.kind {
            "lxc" => {
                let config = lxc::configured(&self.lab, name)?;
                let text = fs::read_to_string(&config)? + "lxc.init.cmd = /bin/sh /init.sh\n";
                fs::write(&config, text)?;
                config.with_file_name("rootfs")
            }
            program => {
                let dir = Bundles(program).bundle(&self.lab, name)?;
                let mut spec = oci::config(&dir.display().to_string())?;
                spec["process"]["args"] = json!(["/bin/sh", "/init.sh"]);
                fs::write(dir.join("config.json"), spec.to_string())?;
                dir.join("rootfs")
            }
        };
        fs::write(root.join("init.sh"), script)?;
        self.names.insert(name.to_owned());
        let kind = if self.kind == "lxc" { "lxc" } else { "oci" };
        let mut run = json!({
            "name": name, "type": kind, "runtime": self.runtime(name)?, "stop_timeout": 5,
            "network": {"pool": "internal", "ports": if name == "web" { json!(["8080:80"]) } else { json!([]) }},
        });
        let all = run.as_object_mut().context("an object")?;
        all.extend(more.as_object().cloned().unwrap_or_default());
        self.write(name, &run)?;
        self.lab.device.cli(&["reload"]).ok()?;
        // A bundle has the file mounted if it is there.
        eventually(SOON, || {
            let file = self.lab.device.file("run").join(format!("resolv/{name}.conf"));
            ensure!(file.exists(), "{} is not there", file.display());
            Ok(())
        })
    }

    /// Writes a container's `run.json`.
    pub fn write(&self, name: &str, run: &Value) -> Result<PathBuf> {
        let dir = self.lab.device.file("containers").join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("run.json"), run.to_string())?;
        Ok(dir)
    }

    /// `pv-net containers start`, `stop` or `restart`.
    pub fn act(&self, action: &str, name: &str) -> Result<Value> {
        self.lab.device.json(&["containers", action, name]).with_context(|| self.log())
    }

    /// The container's state and process.
    pub fn runs(&self, name: &str) -> Result<(String, Option<u64>)> {
        let view = self.lab.view(name)?;
        let state = view["runtime"]["state"].as_str().with_context(|| format!("{view}"))?;
        Ok((state.to_owned(), view["runtime"]["pid"].as_u64()))
    }

    /// Waits until the container is in this state, and gives its process.
    pub fn becomes(&self, name: &str, state: &str) -> Result<Option<u64>> {
        eventually(SOON, || {
            let (is, pid) = self.runs(name)?;
            ensure!(is == state, "{name} is {is} and not {state}: {}\n{}", self.lab.view(name)?, self.log());
            Ok(pid)
        })
    }

    /// A container's addresses of both families, and its MAC.
    pub fn identity(&self, name: &str) -> Result<[String; 3]> {
        let view = self.lab.view(name)?;
        ensure!(view["state"] == "attached" && view["conditions"] == json!([]), "{view}\n{}", self.log());
        let eth0 = &view["interfaces"][0];
        let field = |key: &str| eth0[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {view}"));
        Ok([field("ipv4_address")?, field("ipv6_address")?, field("mac_address")?])
    }

    /// Whether a runtime has a container that runs.
    pub fn is_running(&self, name: &str) -> Result<bool> {
        let mut command = match self.kind {
            "lxc" => Lxc::command(&self.lab, "lxc-info", name)?,
            program => Bundles(program).command(&self.lab)?,
        };
        match self.kind {
            "lxc" => command.arg("-s"),
            _ => command.args(["state", &Bundles::id(&self.lab, name)]),
        };
        match output(&mut command) {
            Ok(said) => Ok(said.contains("RUNNING") || said.contains("running")),
            Err(e) if ["does not exist", "No such file"].iter().any(|part| format!("{e:#}").contains(part)) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// What a runtime keeps of containers that do not run, beside LXC's configurations.
    pub fn kept(&self) -> Result<String> {
        match self.kind {
            "lxc" => output(self.lab.runtime("lxc-ls").arg("-P").arg(self.lab.dir("lxc")?).arg("--active")),
            "wasmtime" | "wasmedge" => {
                let files = fs::read_dir(self.lab.device.file("run-runner"))?.flatten();
                let names = files.map(|file| file.file_name().display().to_string());
                Ok(names.filter(|name| name.ends_with(".process")).collect())
            }
            program => output(Bundles(program).command(&self.lab)?.args(["list", "-q"])),
        }
    }
}

impl Drop for Starter {
    /// Runtimes keep containers, whatever became of the test.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.runner = None;
        for name in &self.names {
            let _ = match self.kind {
                "lxc" => Lxc.stop(&self.lab, name),
                program => Bundles(program).stop(&self.lab, name),
            };
        }
    }
}
