//! A device with declared containers, a root file system for them, and the mounts that runtimes want.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::{Device, Namespace, SOON, eventually, output};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of busybox that the containers use.
const APPLETS: [&str; 10] = ["sh", "sleep", "ping", "nslookup", "httpd", "nc", "cat", "hostname", "printf", "ip"];
/// Without the unified hierarchy in its view, which crun refuses beside the others.
const MOUNTS: &str = "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

/// How one runtime starts containers.
pub trait Runtime {
    /// The type in `run.json`.
    const TYPE: &'static str;
    /// Whether its containers have the host name of their `run.json`.
    const HAS_HOST_NAME: bool = true;

    /// Its row in the README's table.
    fn row(&self) -> &'static str;

    /// Starts a declared container that sleeps.
    fn start(&self, lab: &Lab, name: &str) -> Result<()>;

    /// A program inside of a running container.
    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command;

    /// Kills it, and removes what the runtime has of it.
    fn stop(&self, lab: &Lab, name: &str) -> Result<()>;
}

/// The device, with a host behind its uplink.
pub struct Lab {
    pub device: Device,
    pub outside: Namespace,
}

impl Lab {
    pub fn new(kind: &str) -> Result<Self> {
        let mut config = configs::masqueraded();
        for pool in ["internal", "management"] {
            config["network"]["pools"][pool]["annotations"] = json!(true);
        }
        let mut device = Device::new(&config)?;
        let outside = device.outside(UPLINK, &DEVICE, &HOST)?;
        let containers = [
            ("web", "internal", json!(["8080:80"])),
            ("db", "internal", json!([])),
            ("other", "management", json!([])),
        ];
        for (name, pool, ports) in containers {
            let dir = device.file("containers").join(name);
            fs::create_dir_all(&dir)?;
            let network = json!({"pool": pool, "hostname": format!("{name}-host"), "ports": ports});
            fs::write(dir.join("run.json"), json!({"name": name, "type": kind, "network": network}).to_string())?;
        }
        device.start()?;
        Ok(Self { device, outside })
    }

    /// A directory for a runtime's own files.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.device.file(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A root file system with busybox in it.
    pub fn rootfs(&self, dir: &Path) -> Result<PathBuf> {
        let root = dir.join("rootfs");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("etc/resolv.conf"), "# of the image\n")?;
        fs::write(root.join("index.html"), "the page")?;
        Ok(root)
    }

    /// A runtime's program, on the device.
    pub fn runtime(&self, program: &str) -> Command {
        let mut command = self.device.ns.command("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-ec", MOUNTS, "sh", program]);
        command
    }

    pub fn view(&self, name: &str) -> Result<Value> {
        let all = self.device.json(&["containers"])?;
        let found = all.as_array().into_iter().flatten().find(|c| c["name"] == name);
        found.cloned().with_context(|| format!("{name} is not in {all}"))
    }

    /// The container's addresses, as soon as it is attached.
    pub fn attached(&self, name: &str) -> Result<[String; 2]> {
        let view = self.view(name)?;
        ensure!(view["state"] == "attached" && view["conditions"] == json!([]), "{view}: {}", self.device.log());
        let address = |key: &str| view[key].as_str().or(view["interfaces"][0][key].as_str()).map(str::to_owned);
        Ok([address("ipv4_address").context("no IPv4")?, address("ipv6_address").context("no IPv6")?])
    }

    /// Waits until no link of containers is left on the device.
    pub fn no_links(&self) -> Result<()> {
        eventually(SOON, || {
            let links = self.device.ns.ip("-o link show type veth")?;
            let left: Vec<&str> = links.lines().filter(|line| line.contains("master pvbr")).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    }
}

/// Runs a program inside of a container and gives what it printed.
pub fn said<R: Runtime>(lab: &Lab, runtime: &R, name: &str, words: &[&str]) -> Result<String> {
    output(&mut runtime.exec(lab, name, words)).with_context(|| format!("{words:?} in {name}"))
}
