//! The daemon is killed before each of its writes, in each of its operations, while containers send forged frames. None
//! of these arrives, and after the next start everything is either complete or as it was before.
//!
//! `PV_NET_KILL_AT=attach:7` kills before the seventh write of an attach. The daemon itself counts its writes.

mod interfaces;

use anyhow::{Context, Result, ensure};
use harness::forger::{Forger, Victims};
use harness::{Container, Device, Namespace, SOON, Snapshot, configs, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;

/// An upper limit for the writes of an operation in these tests.
const MOST: u32 = 600;

struct Lab {
    device: Device,
    /// The host beyond the uplink.
    _host: Namespace,
    /// A container that forges and stays attached.
    evil: Container,
    /// A container that must not hear forged frames.
    victim: Container,
    /// The namespace of a container that is attached and detached, and forges while it is attached.
    ns: Namespace,
    forger: Option<Forger>,
    victims: Victims,
}

fn lab(config: &Value) -> Result<Lab> {
    lab_of(config, false)
}

/// A lab with an uplink that has the filter. With `clsact` programs are attached as on a kernel without tcx.
fn lab_of(config: &Value, clsact: bool) -> Result<Lab> {
    let mut device = Device::new(config)?;
    device.clsact = clsact;
    let host = device.outside(configs::UPLINK, &configs::DEVICE, &configs::HOST)?;
    device.start()?;
    let (evil, victim) = (device.attach("evil", "internal")?, device.attach("victim", "internal")?);
    let ns = Namespace::new("web")?;
    fs::write(device.file("web.json"), run().to_string())?;
    let victims = Victims::listen(&device, &["pvbr3", "pvbr4"], &[&victim.ns])?;
    let forger = Some(Forger::start(vec![evil.ns.path(), ns.path()], victim.mac()?)?);
    Ok(Lab { device, _host: host, evil, victim, ns, forger, victims })
}

/// Two pools, and an uplink with the filter.
fn filtered() -> Value {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!([configs::UPLINK]);
    config["network"]["uplink_filter"] = json!({"xdp": "generic", "deny": ["203.0.113.0/24"]});
    config
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

    /// Whether `web` is attached; fails when it is attached only in part.
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

    /// Kills the daemon before write `number` of `operation`, which `work` starts. False when the operation has fewer
    /// writes.
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

    /// Kills the daemon at each write of `operation` in turn, and calls `check` after each.
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
                forger.has_sent(1_000)?;
                return Ok(());
            }
        }
        anyhow::bail!("{operation} has {MOST} writes")
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_an_attach() -> Result<()> {
    an_attach(lab(&configs::two_pools())?)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_an_attach_without_tcx() -> Result<()> {
    an_attach(lab_of(&configs::two_pools(), true)?)
}

fn an_attach(mut lab: Lab) -> Result<()> {
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
        // The next daemon has finished what was begun.
        let all = lab.device.json(&["containers"])?.to_string();
        if !lab.is_attached()? {
            let rules = format!("{}{}", lab.ns.ip("-4 rule show")?, lab.ns.ip("-6 rule show")?);
            ensure!(
                !all.contains("\"web\"") && !rules.contains("proto 112"),
                "neither attached nor gone: {all} {rules}"
            );
        }
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
    // The filter and the uplink's program are added and removed.
    open["network"]["uplinks"] = filtered()["network"]["uplinks"].clone();
    open["network"]["uplink_filter"] = filtered()["network"]["uplink_filter"].clone();
    let mut lab = lab(&closed)?;
    lab.attach().ok()?;
    let configs = [open, closed];
    for number in 1..MOST {
        let config = &configs[number as usize % 2];
        let reload = |lab: &Lab| {
            // The daemon has started with the other file, and this reload reads the new one.
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
    a_start(lab(&filtered())?)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_start_without_tcx() -> Result<()> {
    a_start(lab_of(&filtered(), true)?)
}

fn a_start(mut lab: Lab) -> Result<()> {
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

/// Each start finds programs of another build, and is killed while it replaces them.
fn an_upgrade(mut lab: Lab) -> Result<()> {
    // Only every fourth write, since the kernel verifies all programs in each start.
    const STEP: u32 = 4;
    lab.attach().ok()?;
    for number in (1..MOST).step_by(STEP as usize) {
        lab.stop()?;
        let programs = lab.device.pins().join("programs");
        for (at, dir) in fs::read_dir(&programs)?.collect::<std::io::Result<Vec<_>>>()?.into_iter().enumerate() {
            fs::rename(dir.path(), programs.join(format!("other{at}")))?;
        }
        let died = lab.dies("take_over", number, |_| {})?;
        ensure!(lab.is_attached()?, "write {number}: not attached");
        let dirs = fs::read_dir(&programs)?.count();
        ensure!(dirs == 1, "write {number}: {dirs} directories of programs");
        if !died {
            eprintln!("take-over: less than {number} writes");
            ensure!(number > 8, "{number} writes only");
            lab.victims.heard_nothing()?;
            return lab.forger.take().context("a forger")?.has_sent(1_000);
        }
    }
    anyhow::bail!("{MOST} writes")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_the_take_over_of_an_upgrade() -> Result<()> {
    an_upgrade(lab(&filtered())?)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_the_take_over_of_an_upgrade_without_tcx() -> Result<()> {
    an_upgrade(lab_of(&filtered(), true)?)
}

/// Attaches a container again while it sends forged frames.
fn attach_again(lab: &Lab, name: &str, ns: &Namespace) -> Result<()> {
    let path = ns.path().display().to_string();
    lab.device.cli(&["attach", name, "--netns", &path, "--pool", "internal"]).ok().map(drop)
}

/// `down` is cut short. Forged frames are not heard, however much of it is done, and the next `down` does the rest.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_down() -> Result<()> {
    // Only every third write, since many links and pins are of the same kind.
    const STEP: u32 = 3;
    let mut lab = lab(&filtered())?;
    for number in (1..MOST).step_by(STEP as usize) {
        lab.stop()?;
        let mut done = false;
        if lab.device.start_to_die(&format!("down:{number}"))? {
            done = lab.device.cli(&["down"]).code == Some(0);
        }
        lab.device.has_died()?;
        let context = || format!("after it died before write {number} of down");
        lab.victims.heard_nothing().with_context(context)?;
        if !done {
            lab.device.down().with_context(context)?;
        }
        ensure!(!lab.device.pins().exists(), "pins are left {}", context());
        if done {
            ensure!(number > 8, "{number} writes only");
            return lab.forger.take().context("a forger")?.has_sent(100);
        }
        lab.device.start()?;
        attach_again(&lab, "evil", &lab.evil.ns)?;
        attach_again(&lab, "victim", &lab.victim.ns)?;
        lab.victims = Victims::listen(&lab.device, &["pvbr3", "pvbr4"], &[&lab.victim.ns])?;
    }
    anyhow::bail!("{MOST} writes")
}

/// A bridge and settings that belong to others.
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
    // The bridge gets its queueing discipline when it is set up for the first time.
    device.ns.ip("link set br-own up")?;
    device.ns.ip("link set br-own down")?;
    let before = Snapshot::of(&device)?;
    Ok((device, before))
}

/// The first start borrows settings, and `down` gives them back. Whichever of them is cut short, `down` restores
/// everything.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_borrowed_is_given_back() -> Result<()> {
    // Only every third write, since the kernel verifies all programs in each first start.
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
                // No daemon runs: the command itself does the work.
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
