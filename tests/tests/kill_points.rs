//! The daemon dies before each of its writes, in each of its operations, while containers forge. Nothing of that arrives,
//! and after the next start all is whole, or as it was before.
//!
//! `PV_NET_KILL_AT=attach:7` is before the seventh write of an attach. The list of writes is the code's own.

use anyhow::{Context, Result, ensure};
use harness::forger::{Forger, Victims};
use harness::{Container, Device, Namespace, SOON, Snapshot, configs, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;

/// More writes than any operation of these tests makes.
const MOST: u32 = 600;

struct Lab {
    device: Device,
    /// Forges, and is attached all the time.
    _evil: Container,
    /// Must not hear of it.
    victim: Container,
    /// Is attached and detached, and forges when it can.
    ns: Namespace,
    forger: Option<Forger>,
    victims: Victims,
}

fn lab(config: &Value) -> Result<Lab> {
    let device = Device::started(config)?;
    let (evil, victim) = (device.attach("evil", "internal")?, device.attach("victim", "internal")?);
    let ns = Namespace::new("web")?;
    fs::write(device.file("web.json"), run().to_string())?;
    let victims = Victims::listen(&device, &["pvbr3", "pvbr4"], &[&victim.ns])?;
    let forger = Some(Forger::start(vec![evil.ns.path(), ns.path()], victim.mac()?)?);
    Ok(Lab { device, _evil: evil, victim, ns, forger, victims })
}

/// Two interfaces and a published port.
fn run() -> Value {
    let interfaces = json!([{"name": "eth0", "pool": "internal"}, {"name": "eth1", "pool": "management"}]);
    json!({"name": "web", "network": {"interfaces": interfaces, "ports": ["8080:80/tcp"]}})
}

impl Lab {
    fn attach(&self) -> harness::Reply {
        let (ns, run) = (self.ns.path().display().to_string(), self.device.file("web.json").display().to_string());
        self.device.cli(&["attach", "web", "--netns", &ns, "--run", &run])
    }

    /// Whether `web` is attached, and then also whole.
    fn is_attached(&self) -> Result<bool> {
        let all = self.device.json(&["containers"])?;
        let found = all.as_array().context("a list")?.iter().find(|c| c["name"] == "web");
        let Some(view) = found.filter(|view| view["state"] == "attached") else { return Ok(false) };
        self.is_whole(view).with_context(|| format!("said to be attached: {view}"))?;
        Ok(true)
    }

    fn is_whole(&self, view: &Value) -> Result<()> {
        for interface in view["interfaces"].as_array().context("interfaces")? {
            let name = interface["name"].as_str().context("name")?;
            let shown = self.ns.ip(&format!("addr show {name}"))?;
            ensure!(shown.contains("state UP"), "{shown}");
            for key in ["ipv4_address", "ipv6_address"] {
                let address = interface[key].as_str().context("address")?;
                ensure!(shown.contains(&format!("{address}/")), "no {address} in {shown}");
            }
            ensure!(interface["flows"].is_u64(), "the programs do not know {interface}");
        }
        for (family, gateway) in [("-4", "10.0.3.1"), ("-6", "fd00:5056:0:3::1")] {
            let routes = self.ns.ip(&format!("{family} route show default"))?;
            ensure!(routes.contains(gateway), "routes of {family}: {routes}");
        }
        for to in self.victim.addresses() {
            eventually(SOON, || self.ns.ping(to, 1))?;
        }
        self.ns.ping("10.0.4.1", 1)?;
        let ports = self.device.json(&["ports"])?;
        ensure!(ports.as_array().is_some_and(|all| all.len() == 2), "{ports}");
        Ok(())
    }

    /// The daemon dies before the write `number` of `operation`, which `work` starts. False when it has fewer.
    fn dies(&mut self, operation: &str, number: u32, work: impl FnOnce(&Self)) -> Result<bool> {
        let running = self.device.start_to_die(&format!("{operation}:{number}"))?;
        if running {
            work(self);
        }
        let died = self.device.has_died()?;
        if !died {
            self.device.stop(Signal::SIGKILL)?;
        }
        self.device.start().with_context(|| format!("after it died before write {number} of {operation}"))?;
        self.victims.heard_nothing().with_context(|| format!("write {number} of {operation}"))?;
        Ok(died)
    }

    fn stop(&mut self) -> Result<()> {
        self.device.stop(Signal::SIGTERM)
    }

    /// Goes through all writes of `operation`; `check` is made after each.
    fn walk(&mut self, operation: &str, work: impl Fn(&Self), check: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        for number in 1..MOST {
            self.stop()?;
            let died = self.dies(operation, number, &work)?;
            check(self).with_context(|| format!("after it died before write {number} of {operation}"))?;
            if !died {
                ensure!(number > 3, "{operation} has {number} writes only");
                eprintln!("{operation}: {} writes", number - 1);
                self.victims.heard_nothing()?;
                let forger = self.forger.take().context("a forger")?;
                ensure!(forger.sent() > 1000, "{} forged", forger.sent());
                return Ok(());
            }
        }
        anyhow::bail!("{operation} has {MOST} writes")
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_an_attach() -> Result<()> {
    let mut lab = lab(&configs::two_pools())?;
    let attach = |lab: &Lab| drop(lab.attach());
    lab.walk("attach", attach, |lab| {
        lab.is_attached()?;
        lab.attach().ok()?;
        ensure!(lab.is_attached()?, "it is not attached after a second attach");
        lab.device.cli(&["detach", "web"]).ok().map(drop)
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_detach() -> Result<()> {
    let mut lab = lab(&configs::two_pools())?;
    lab.attach().ok()?;
    let before = lab.device.json(&["leases"])?;
    let detach = |lab: &Lab| drop(lab.device.cli(&["detach", "web"]));
    lab.walk("detach", detach, |lab| {
        lab.is_attached()?;
        lab.attach().ok()?;
        ensure!(lab.is_attached()?, "it is not attached after the next attach");
        let now = lab.device.json(&["leases"])?;
        ensure!(now.as_array().map(Vec::len) == before.as_array().map(Vec::len), "{before} became {now}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_reload() -> Result<()> {
    let closed = configs::two_pools();
    let mut open = configs::open_pools();
    open["network"]["pools"]["third"] = configs::pool(5);
    open["network"]["pools"]["internal"]["nat"] = true.into();
    let mut lab = lab(&closed)?;
    lab.attach().ok()?;
    let configs = [open, closed];
    for number in 1..MOST {
        let config = &configs[number as usize % 2];
        let reload = |lab: &Lab| {
            // Only this reload sees the new file: the daemon has started with the other one.
            if lab.device.configure(config).is_ok() {
                drop(lab.device.cli(&["reload"]));
            }
        };
        lab.stop()?;
        let died = lab.dies("reload", number, reload)?;
        ensure!(lab.is_attached()?, "write {number}: not attached");
        let pools = lab.device.json(&["pools"])?;
        ensure!(!pools.to_string().contains("not available"), "write {number}: {pools}");
        if !died {
            ensure!(number > 3, "{number} writes only");
            return Ok(());
        }
    }
    anyhow::bail!("{MOST} writes")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_start() -> Result<()> {
    let mut lab = lab(&configs::two_pools())?;
    lab.attach().ok()?;
    let before = Snapshot::of(&lab.device)?;
    lab.walk(
        "start",
        |_| {},
        |lab| {
            ensure!(lab.is_attached()?, "not attached");
            let changed = before.diff(&Snapshot::of(&lab.device)?);
            let beyond_programs: Vec<&str> = changed.lines().filter(|l| !l.starts_with("bpf:")).collect();
            ensure!(beyond_programs.is_empty(), "{changed}");
            Ok(())
        },
    )
}

/// A bridge and settings that are somebody else's.
fn borrowed_pools() -> Value {
    let mut config = configs::two_pools();
    config["network"]["pools"]["management"]["bridge"] = "br-own".into();
    config["network"]["pools"]["internal"]["nat"] = true.into();
    config
}

/// Makes the bridge, which is down and does not forward.
fn prepared() -> Result<(Device, Snapshot)> {
    let device = Device::new(&borrowed_pools())?;
    device.ns.ip("link add br-own address 02:11:22:33:44:55 type bridge")?;
    // Its queueing discipline comes with the first time that it is up.
    device.ns.ip("link set br-own up")?;
    device.ns.ip("link set br-own down")?;
    let before = Snapshot::of(&device)?;
    Ok((device, before))
}

/// The first start, which borrows, and `down`, which gives back: whichever of them is cut short, `down` restores all.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_borrowed_is_given_back() -> Result<()> {
    // Each first start has the kernel verify all programs.
    const STEP: u32 = 3;
    for operation in ["start", "down"] {
        let (mut device, before) = prepared()?;
        let mut number = 1;
        loop {
            let running = device.start_to_die(&format!("{operation}:{number}"))?;
            let done = running && device.cli(&["down"]).code == Some(0);
            device.has_died()?;
            let context = || format!("after it died before write {number} of {operation}");
            if !done {
                // No daemon runs: the command does it by itself.
                device.down().with_context(context)?;
            }
            eventually(SOON, || {
                let changed = before.diff(&Snapshot::of(&device)?);
                ensure!(changed.is_empty(), "{changed}");
                ensure!(!device.file("run/rcu-expedited").exists(), "grace periods stay short");
                Ok(())
            })
            .with_context(context)?;
            if done {
                break;
            }
            number += STEP;
            ensure!(number < MOST, "{operation} has {MOST} writes");
        }
    }
    Ok(())
}
