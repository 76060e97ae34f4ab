//! What container engines start to give a container its network, one process each time: netavark as podman calls it, the
//! plugin `bridge` as CNI's runtimes call it, and pv-net's hook as OCI runtimes call it.

use super::{Hand, PvNet};
use crate::witness::Link;
use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, configs};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::Write;
use std::process::{Command, Stdio};

/// Where Debian has it.
pub const NETAVARK: &str = "/usr/lib/podman/netavark";
/// Debian's directory of CNI plugins, and the plugin for bridges.
const PLUGINS: &str = "/usr/lib/cni";
pub const BRIDGE: &str = "/usr/lib/cni/bridge";

/// Runs a program that reads `input`, to its end.
fn feed(command: &mut Command, input: &Value) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let written = child.stdin.take().context("its input")?.write_all(input.to_string().as_bytes());
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}: {said}", done.status);
    written?;
    Ok(said)
}

/// netavark with a bridge of its own in both families, and its rules for masquerade.
pub struct Netavark {
    device: Namespace,
    dir: tempfile::TempDir,
}

impl Netavark {
    pub fn new() -> Result<Self> {
        Ok(Self { device: Namespace::new("dev")?, dir: tempfile::tempdir()? })
    }

    fn call(&self, verb: &str, ns: &Namespace) -> Result<()> {
        let id = "5f".repeat(32);
        let network = json!({
            "name": "pool", "id": id, "driver": "bridge", "network_interface": "docker0",
            "subnets": [{"subnet": "10.0.3.0/24", "gateway": "10.0.3.1"},
                        {"subnet": "fd00:5056:0:3::/64", "gateway": "fd00:5056:0:3::1"}],
            "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
        });
        let options = json!({
            "container_id": "c0".repeat(32), "container_name": "new",
            "networks": {"pool": {"interface_name": "eth0", "static_ips": ["10.0.3.2", "fd00:5056:0:3::2"]}},
            "network_info": {"pool": network},
        });
        let mut command = self.device.command(NETAVARK);
        feed(command.arg("--config").arg(self.dir.path()).arg(verb).arg(ns.path()), &options).map(drop)
    }
}

impl Hand for Netavark {
    fn attach(&self, ns: &Namespace) -> Result<()> {
        self.call("setup", ns)
    }

    fn detach(&self, ns: &Namespace) -> Result<()> {
        self.call("teardown", ns)
    }

    fn knows_it(&self) -> Result<()> {
        self.device.ip("link show docker0").map(drop)
    }

    fn seen(&self) -> Result<u64> {
        Link::new(&self.device, "docker0").received()
    }
}

/// The plugin `bridge` with `host-local` addresses in both families, and its rules for masquerade.
pub struct Cni {
    device: Namespace,
    dir: tempfile::TempDir,
}

impl Cni {
    pub fn new() -> Result<Self> {
        Ok(Self { device: Namespace::new("dev")?, dir: tempfile::tempdir()? })
    }

    fn call(&self, verb: &str, ns: &Namespace) -> Result<()> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "pool", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "dataDir": self.dir.path(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                     "ranges": [[{"subnet": "10.0.3.0/24"}], [{"subnet": "fd00:5056:0:3::/64"}]]},
        });
        let mut command = self.device.command(BRIDGE);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "new").env("CNI_NETNS", ns.path());
        feed(command.env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS), &config).map(drop)
    }
}

impl Hand for Cni {
    fn attach(&self, ns: &Namespace) -> Result<()> {
        self.call("ADD", ns)
    }

    fn detach(&self, ns: &Namespace) -> Result<()> {
        self.call("DEL", ns)
    }

    fn knows_it(&self) -> Result<()> {
        // The plugin knows nothing of a container but its leases: a file for each, named after the address.
        let leases = std::fs::read_dir(self.dir.path().join("pool"))?;
        let mut names = leases.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        ensure!(names.any(|name| name.starts_with("10.0.3.")), "there is no lease");
        Ok(())
    }

    fn seen(&self) -> Result<u64> {
        Link::new(&self.device, "cni0").received()
    }
}

/// `pv-net hook oci`, with the container's state as its input.
pub struct Hook {
    of: PvNet,
    /// The first process of the container.
    first: RefCell<Option<Process>>,
}

impl Hook {
    pub fn new() -> Result<Self> {
        let mut config = configs::two_pools();
        config["network"]["pools"]["internal"]["nat"] = json!(true);
        let mut device = Device::new(&config)?;
        let dir = device.file("containers/new");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(
            dir.join("run.json"),
            json!({"name": "new", "type": "oci", "network": {"pool": "internal"}}).to_string(),
        )?;
        device.start()?;
        Ok(Self { of: PvNet { device }, first: RefCell::default() })
    }
}

impl Hand for Hook {
    fn prepare(&self, ns: &Namespace) -> Result<()> {
        *self.first.borrow_mut() = Some(Process::start(ns.command("sleep").arg("1000"))?);
        Ok(())
    }

    fn attach(&self, _: &Namespace) -> Result<()> {
        let pid = self.first.borrow().as_ref().context("no process")?.pid();
        let state = json!({"ociVersion": "1.0.2", "id": "new", "status": "created", "pid": pid, "bundle": "/nowhere"});
        feed(self.of.device.command().args(["hook", "oci", "new"]), &state).map(drop)
    }

    fn detach(&self, ns: &Namespace) -> Result<()> {
        self.of.detach(ns)
    }

    fn knows_it(&self) -> Result<()> {
        self.of.knows_it()
    }

    fn seen(&self) -> Result<u64> {
        self.of.seen()
    }
}
