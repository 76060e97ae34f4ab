//! A device that Pantavisor runs on, and revisions with the example container.

use crate::double::{Pantavisor, Shared};
use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Reply, SOON, binary, eventually, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tempfile::TempDir;

/// Containers and their pools.
pub const ROOMS: [(&str, &str); 3] = [("web", "internal"), ("db", "internal"), ("other", "management")];

/// The `run.json` of the example container, whose form all have.
const EXAMPLE: &str = include_str!("../../../packaging/pantavisor/run.json");

/// What `pv-net`'s README puts into the `args.json` of a container in a pool.
const OF_A_POOL: &str = "lxc.init.cmd = /bin/sleep 100000
lxc.namespace.keep = user ipc
lxc.net.0.type = empty
lxc.hook.start-host = /volumes/pv-net/root.squashfs/usr/bin/pv-net --run-dir=/volumes/pv-net/docker--run-pv-net hook lxc NAME
";

/// The example container. Tests that run at the same time share one, which is removed with the last of them.
fn example() -> Result<Arc<TempDir>> {
    static BUILT: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = built.upgrade() {
        return Ok(dir);
    }
    let dir = tempfile::Builder::new().prefix("pv-net-test-").tempdir()?;
    // Without debug information, which takes minutes to compress.
    let program = dir.path().join("program");
    output(Command::new("strip").arg("-o").arg(&program).arg(binary()?))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/pantavisor/build.sh");
    output(Command::new(script).arg(&program).arg(dir.path()))?;
    let dir = Arc::new(dir);
    *built = Arc::downgrade(&dir);
    Ok(dir)
}

pub struct Lab {
    // Its containers end before the device does.
    pub pv: Pantavisor,
    pub device: Device,
    example: Arc<TempDir>,
}

impl Lab {
    /// A device without a revision. `goals` is how long containers have to reach their goals.
    pub fn new(goals: Duration) -> Result<Self> {
        let device = Device::new(&json!({}))?;
        let host = device.file("pv");
        let bpffs = device.pins().parent().context("a BPF file system")?.to_owned();
        // The volumes of the container are where the device's commands look for the daemon.
        let volumes = host.join("volumes/pv-net");
        fs::create_dir_all(&volumes)?;
        for (volume, dir) in [("docker--run-pv-net", "run"), ("docker--var-lib-pv-net", "state")] {
            fs::create_dir(device.file(dir))?;
            symlink(device.file(dir), volumes.join(volume))?;
        }
        let pv = Pantavisor::new(&host, &bpffs, &device.file("log"), &device.ns, goals)?;
        Ok(Self { pv, device, example: example()? })
    }

    /// Installs a revision with the example container and these, each in its pool.
    pub fn revision(&self, name: &str, device: &Value, containers: &[(&str, &str)]) -> Result<()> {
        let dir = self.pv.shared.trail(name);
        let write = |file: PathBuf, text: String| {
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(&file, text).with_context(|| file.display().to_string())
        };
        write(dir.join("device.json"), device.to_string())?;
        write(dir.join(".pvr/json"), json!({"#spec": "pantavisor-service-system@1"}).to_string())?;
        write(dir.join("bsp/run.json"), json!({"fit": "pantavisor.fit", "addons": []}).to_string())?;
        write(dir.join("_config/web/etc/app.json"), "[]".to_owned())?;
        output(Command::new("cp").arg("-r").arg(self.example.path().join("pv-net")).arg(&dir))?;
        for (name, pool) in containers {
            let mut run: Value = serde_json::from_str(EXAMPLE)?;
            let other = json!({
                "name": name,
                "group": "app",
                "restart_policy": "container",
                "status_goal": "STARTED",
                "auto_recovery": {"policy": "on-failure", "max_retries": 5},
                "storage": {"lxc-overlay": {"persistence": "boot"}},
                "roles": [],
                "network": {"mode": "pool", "pool": pool, "hostname": name},
                "services": {"required": [{"name": "system-bus", "type": "dbus", "target": "/run/bus"}]},
            });
            run.as_object_mut().context("an object")?.extend(other.as_object().context("an object")?.clone());
            write(dir.join(name).join("run.json"), run.to_string())?;
            write(dir.join(name).join("lxc.container.conf"), OF_A_POOL.replace("NAME", name))?;
            let services = json!([
                {"name": "bus", "type": "dbus", "socket": "/run/bus"},
                {"name": if *name == "web" { "page" } else { name }, "type": "http", "port": 80},
            ]);
            let services = json!({"#spec": "service-manifest-xconnect@1", "services": services});
            write(dir.join(name).join("services.json"), services.to_string())?;
        }
        Ok(())
    }

    /// Goes to a revision, which must be kept.
    pub fn runs(&self, revision: &str) -> Result<()> {
        let (status, message) = self.pv.run(revision)?;
        ensure!(status == "DONE", "{revision}: {status}: {message}\n{}", self.log());
        Ok(())
    }

    /// `pv-net pantavisor`, by the double's socket.
    pub fn pantavisor(&self, words: &[&str]) -> Reply {
        let socket = self.pv.shared.host.join("pantavisor/pv-ctrl").display().to_string();
        let all: Vec<&str> = ["--pv-ctrl", &socket, "pantavisor"].iter().chain(words).copied().collect();
        self.device.cli(&all)
    }

    /// What Pantavisor lists.
    pub fn list(&self) -> Result<Value> {
        let said = self.pantavisor(&["list", "--json"]).ok()?;
        Ok(serde_json::from_str(&said)?)
    }

    pub fn device_meta(&self) -> BTreeMap<String, String> {
        self.pv.shared.state().device_meta.clone()
    }

    /// What the containers have printed.
    pub fn log(&self) -> String {
        self.device.log()
    }

    pub fn pid(&self, name: &str) -> Result<u32> {
        let state = self.pv.shared.state();
        let process = state.containers.get(name).and_then(|entry| entry.process.as_ref());
        Ok(process.with_context(|| format!("{name} does not run"))?.pid())
    }

    /// The addresses of an attached container.
    pub fn addresses(&self, name: &str) -> Result<[String; 2]> {
        let view = self.device.json(&["containers", name])?;
        ensure!(view["state"] == "attached", "{view}");
        let address = |key: &str| view[key].as_str().map(str::to_owned).with_context(|| format!("{key}: {view}"));
        Ok([address("ipv4_address")?, address("ipv6_address")?])
    }

    /// Does something in a container's namespace.
    pub fn in_container<T>(&self, name: &str, work: impl FnOnce(&Namespace) -> Result<T>) -> Result<T> {
        in_container(&self.pv.shared, name, work)
    }

    /// What is done once before a rollback, with the addresses that the containers have now.
    pub fn before_rollback(&self, work: impl FnOnce(&Guard<'_>) + Send + 'static) {
        let of = |name: &str| self.addresses(name).unwrap_or_default();
        let (db, other) = (of("db"), of("other"));
        self.pv.before_rollback(move |shared| work(&Guard { shared, db, other }));
    }

    /// `web` reaches `db` in its pool and not `other` in another one, in both families.
    pub fn pools_hold(&self) -> Result<()> {
        let (db, other) = (self.addresses("db")?, self.addresses("other")?);
        Guard { shared: &self.pv.shared, db, other }.guard_holds().with_context(|| self.log())
    }
}

/// The containers, and the addresses that they have.
pub struct Guard<'a> {
    shared: &'a Shared,
    db: [String; 2],
    other: [String; 2],
}

impl Guard<'_> {
    pub fn guard_holds(&self) -> Result<()> {
        in_container(self.shared, "web", |web| {
            // The first packets of a link may be lost.
            eventually(SOON, || self.db.iter().try_for_each(|address| web.ping(address, 2)))?;
            for address in &self.other {
                no_answer(web, &[address]).context("in another pool")?;
            }
            // Another one's address as source.
            web.ip("addr add 10.0.3.77/32 dev lo")?;
            let spoofed = no_answer(web, &["-I", "10.0.3.77", &self.db[0]]);
            web.ip("addr del 10.0.3.77/32 dev lo")?;
            spoofed.context("a foreign source")
        })
    }
}

/// Checks that a packet was sent and not answered. A `ping` that cannot send shows nothing.
fn no_answer(ns: &Namespace, to: &[&str]) -> Result<()> {
    let output = ns.command("ping").args(["-n", "-q", "-c", "1", "-W", "1"]).args(to).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("100% packet loss"), "{to:?}: {output:?}");
    Ok(())
}

fn in_container<T>(shared: &Shared, name: &str, work: impl FnOnce(&Namespace) -> Result<T>) -> Result<T> {
    let path = {
        let state = shared.state();
        let ns = state.containers.get(name).and_then(|entry| entry.ns.as_ref());
        ns.with_context(|| format!("{name} does not run"))?.path()
    };
    work(&*Namespace::borrowed(&path)?)
}
