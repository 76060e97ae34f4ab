//! Every change by somebody else is found, repaired, and named in an event.

use anyhow::{Context, Result, ensure};
use harness::forger::{Forger, Victims};
use harness::stranger::{Kind, detach, swap};
use harness::{Container, Device, Namespace, SOON, configs, eventually, output};
use pv_net_common::names;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long to listen for packets that must not come.
const WHILE: Duration = Duration::from_millis(400);

/// A running `pv-net monitor`, and the events that it printed.
pub struct Monitor {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Monitor {
    pub fn of(device: &Device) -> Result<Self> {
        let mut command = device.command();
        let mut child = command.args(["--json", "monitor"]).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = events.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let monitor = Self { child, events };
        // The monitor has subscribed as soon as it prints an event.
        eventually(SOON, || {
            device.cli(&["reload"]).ok()?;
            ensure!(!monitor.events().is_empty(), "it hears nothing");
            Ok(())
        })?;
        Ok(monitor)
    }

    fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The texts of all repairs so far.
    pub fn repaired(&self) -> Vec<String> {
        let all = self.events();
        let texts = all.iter().filter(|e| e["event"] == "repaired").filter_map(|e| e["text"].as_str());
        texts.map(ToOwned::to_owned).collect()
    }

    /// Waits for an event that contains all of `words`.
    pub fn says(&self, words: &[&str]) -> Result<()> {
        eventually(SOON, || {
            let all = self.repaired();
            ensure!(all.iter().any(|text| words.iter().all(|w| text.contains(w))), "nothing of {words:?} in {all:#?}");
            Ok(())
        })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Lab {
    pub device: Device,
    pub a: Container,
    pub b: Container,
    host: Namespace,
    pub monitor: Monitor,
}

/// Two containers of a pool that is masqueraded, one with a published port, and an uplink with a filter.
pub fn lab(clsact: bool) -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["uplink_filter"] = json!({"xdp": "generic", "deny": ["203.0.113.0/24"]});
    let mut device = Device::new(&config)?;
    device.clsact = clsact;
    let host = device.outside(configs::UPLINK, &configs::DEVICE, &configs::HOST)?;
    device.start()?;
    let a = device.attach("a", "internal")?;
    let b = device.attach_run(&json!({"name": "b", "network": {"pool": "internal", "ports": ["8080:80/tcp"]}}))?;
    let monitor = Monitor::of(&device)?;
    let lab = Lab { device, a, b, host, monitor };
    lab.well()?;
    Ok(lab)
}

impl Lab {
    /// Fails unless containers reach each other, the device and the world, and there is no condition.
    pub fn well(&self) -> Result<()> {
        let (near, far) = (self.b.addresses(), configs::HOSTS.map(|(host, _)| host));
        let gateways: [IpAddr; 2] = ["10.0.3.1".parse()?, "fd00:5056:0:3::1".parse()?];
        for to in near.into_iter().chain(far).chain(gateways) {
            eventually(SOON, || self.a.ns.ping(to, 1))?;
        }
        for (_, device) in configs::HOSTS {
            self.host.ping(device, 1)?;
        }
        let conditions = self.device.json(&["status"])?["conditions"].to_string();
        ensure!(conditions == "[]", "{conditions}");
        Ok(())
    }

    /// Fails unless forged frames are stopped now.
    pub fn guarded(&self) -> Result<()> {
        let victims = Victims::listen(&self.device, &["pvbr3"], &[&self.b.ns])?;
        let forger = Forger::start(vec![self.a.ns.path()], self.b.mac()?)?;
        forger.has_sent(50)?;
        std::thread::sleep(WHILE);
        drop(forger);
        victims.heard_nothing()
    }

    pub fn index(&self, link: &str) -> Result<u32> {
        self.device.ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?))
    }

    pub fn forget(&self, map: &str, key: &[u8]) -> Result<()> {
        let path = self.device.pins().join("maps").join(map);
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        self.device.ns.sh(&format!("bpftool map delete pinned {} key {}", path.display(), key.join(" "))).map(drop)
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_programs_and_maps() -> Result<()> {
    let lab = lab(false)?;
    let (device, a, b) = (&lab.device, lab.a.host_if(), lab.b.host_if());
    swap(&device.pin_of(names::PROG_FROM_CONTAINER, a)?, Kind::Classifier, names::PROG_FROM_CONTAINER)?;
    detach(&device.pin_of(names::PROG_TO_CONTAINER, b)?)?;
    swap(&device.pin_of(names::PROG_FROM_BRIDGE, "pvbr3")?, Kind::Classifier, names::PROG_FROM_BRIDGE)?;
    std::fs::remove_file(device.pin_of(names::PROG_FROM_UPLINK, configs::UPLINK)?)?;
    swap(&device.pin_of("xdp_generic", configs::UPLINK)?, Kind::Xdp, names::PROG_XDP_UPLINK)?;
    detach(&device.pins().join("links/sockets").join(names::PROG_SOCK[2]))?;
    lab.forget(names::MAP_INTERFACES, &lab.index(b)?.to_ne_bytes())?;
    lab.forget(names::MAP_UPLINKS, &lab.index(configs::UPLINK)?.to_ne_bytes())?;
    let IpAddr::V4(v4) = lab.b.addresses()[0] else { anyhow::bail!("no IPv4 address") };
    lab.forget(names::MAP_ENDPOINTS, &v4.to_ipv6_mapped().octets())?;
    for words in [
        &["program ", "in the place of programs on", a][..],
        &["programs on", b, "not attached any more"],
        &["program ", "in the place of program on bridge pvbr3"],
        &["program on uplink up0: missing"],
        &["program ", "in the place of filter (generic) on uplink up0"],
        &["socket hook", "attached again"],
        &[b, "no entry of the map interfaces"],
        &["uplink", "missing"],
        &["no entry for endpoint", &v4.to_string()],
    ] {
        lab.monitor.says(words)?;
    }
    lab.well()?;
    lab.guarded()?;
    // Nothing is reported twice: the next look finds nothing to repair.
    let before = lab.monitor.repaired();
    device.cli(&["reload"]).ok()?;
    std::thread::sleep(Duration::from_secs(32));
    ensure!(lab.monitor.repaired() == before, "{:#?} after {before:#?}", lab.monitor.repaired());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_links_addresses_and_settings() -> Result<()> {
    let lab = lab(false)?;
    let (a, b) = (lab.a.host_if(), lab.b.host_if());
    for (damage, words) in [
        ("ip addr del 10.0.3.1/24 dev pvbr3".to_owned(), &["pvbr3: without 10.0.3.1/24"][..]),
        ("ip addr del fd00:5056:0:3::1/64 dev pvbr3".to_owned(), &["pvbr3: without fd00:5056:0:3::1/64"]),
        ("ip link set pvbr3 down".to_owned(), &["pvbr3: down"]),
        (format!("ip link set {a} down"), &[a, "down: "]),
        (format!("ip link set {b} nomaster"), &[b, "not a port of its bridge: "]),
        (format!("ip link set {a} name other"), &[a, "called other"]),
        (format!("ip link set {a} alias mine"), &[a, "without its mark"]),
        ("ip link set pvbr3 alias mine".to_owned(), &["pvbr3", "without its mark"]),
        ("ip link del pvbr3".to_owned(), &["bridge pvbr3: not there"]),
        ("sysctl -qw net.ipv4.conf.pvbr3.forwarding=0".to_owned(), &["net.ipv4.conf.pvbr3.forwarding = 0"]),
        ("sysctl -qw net.ipv6.conf.pvbr3.forwarding=0".to_owned(), &["net.ipv6.conf.pvbr3.forwarding = 0"]),
    ] {
        lab.device.ns.sh(&damage)?;
        lab.monitor.says(words).with_context(|| damage.clone())?;
        lab.well().context(damage)?;
    }
    lab.guarded()
}

/// When a bridge is deleted, the kernel sends many messages, first about its ports, routes and addresses. The daemon
/// must name the bridge, whichever message it acts on.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_a_bridge_again_and_again() -> Result<()> {
    let lab = lab(false)?;
    for times in 1..=12 {
        lab.device.ns.sh("ip link del pvbr3")?;
        eventually(SOON, || {
            let all = lab.monitor.repaired();
            let named = all.iter().filter(|text| text.starts_with("bridge pvbr3: not there")).count();
            ensure!(named == times, "named {named} times, deleted {times} times: {all:#?}");
            Ok(())
        })?;
        lab.well()?;
    }
    Ok(())
}

/// The same where programs are clsact filters. The kernel reports changes of filters at once.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_filters() -> Result<()> {
    let lab = lab(true)?;
    let dir = lab.device.file("bpf/stranger");
    let pin = |name: &str| -> Result<String> {
        let program = harness::stranger::pass_all(Kind::Classifier, name)?;
        let path = dir.with_file_name(name);
        harness::stranger::pin(&program, &path)?;
        Ok(path.display().to_string())
    };
    let (a, b) = (lab.a.host_if(), lab.b.host_if());
    let own = "pref 1 handle 0x7076 bpf";
    let passing = pin("pv_from_contain")?;
    for (damage, words) in [
        (format!("tc qdisc del dev {a} clsact"), &["programs on", a][..]),
        (format!("tc filter del dev {b} ingress {own}"), &["programs on", b]),
        (
            format!("tc filter replace dev {a} ingress protocol all {own} da object-pinned {passing}"),
            &["program ", "in the place of programs on", a],
        ),
        ("tc filter del dev pvbr3 ingress".to_owned(), &["program on bridge pvbr3: missing"]),
        ("tc qdisc del dev up0 clsact".to_owned(), &["program on uplink up0: missing"]),
    ] {
        output(lab.device.ns.command("sh").args(["-c", &damage])).with_context(|| damage.clone())?;
        lab.monitor.says(words).with_context(|| damage.clone())?;
        lab.well().context(damage.clone())?;
        lab.guarded().context(damage)?;
    }
    Ok(())
}

/// The host's nftables ruleset contains nothing of pv-net's, so flushing it changes nothing.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_flushed_ruleset_changes_nothing() -> Result<()> {
    let lab = lab(false)?;
    let before = harness::Snapshot::of(&lab.device)?;
    lab.device.ns.sh("nft add table inet stranger")?;
    lab.device.ns.sh("nft flush ruleset")?;
    lab.well()?;
    lab.guarded()?;
    let changed = before.diff(&harness::Snapshot::of(&lab.device)?);
    ensure!(changed.is_empty(), "{changed}");
    ensure!(lab.monitor.repaired().is_empty(), "{:?}", lab.monitor.repaired());
    Ok(())
}

/// Nobody looks while no daemon runs; the next daemon looks before it goes on.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_a_program_while_no_daemon_runs() -> Result<()> {
    let mut lab = lab(false)?;
    lab.device.stop(nix::sys::signal::Signal::SIGKILL)?;
    let pin = lab.device.pin_of(names::PROG_FROM_CONTAINER, lab.a.host_if())?;
    swap(&pin, Kind::Classifier, names::PROG_FROM_CONTAINER)?;
    detach(&lab.device.pin_of(names::PROG_TO_CONTAINER, lab.b.host_if())?)?;
    lab.device.start()?;
    let conditions = lab.device.json(&["status"])?["conditions"].to_string();
    ensure!(conditions.contains("which pv-net did not put there; replaced"), "{conditions}");
    ensure!(conditions.contains("its device is gone; pin removed"), "{conditions}");
    lab.guarded()
}
