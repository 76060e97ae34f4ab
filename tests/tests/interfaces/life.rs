//! Interfaces that come and go while the container runs, and daemons that come and go while it has several.

use super::*;
use harness::{SOON, eventually};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An exchange over one TCP connection that goes on until it is asked whether it still works.
struct Stream {
    stop: Arc<AtomicBool>,
    exchanged: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Stream {
    /// Begins to talk to an echo server.
    fn start(from: &Namespace, at: SocketAddr) -> Result<Self> {
        use std::io::{Read, Write};
        let mut connection = echo::connect(from, at)?;
        let (stop, exchanged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (stop.clone(), exchanged.clone());
        let thread = std::thread::spawn(move || {
            let mut byte = [0u8];
            while byte != *b"\n" {
                connection.read_exact(&mut byte).context("the first line")?;
            }
            while !ends.load(Ordering::Relaxed) {
                connection.write_all(b"more")?;
                let mut back = [0u8; 4];
                connection.read_exact(&mut back).context("the echo")?;
                ensure!(back == *b"more", "{back:?}");
                counts.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Ok(())
        });
        Ok(Self { stop, exchanged, thread: Some(thread) })
    }

    /// Waits for some more exchanges.
    fn goes_on(&self) -> Result<()> {
        let before = self.exchanged.load(Ordering::Relaxed);
        eventually(SOON, || {
            let now = self.exchanged.load(Ordering::Relaxed);
            ensure!(now > before + 20, "{} exchanges since", now - before);
            Ok(())
        })
    }

    fn finish(mut self) -> Result<()> {
        self.goes_on()?;
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a thread")?;
        thread.join().map_err(|_| anyhow::anyhow!("the exchange panicked"))?
    }
}

const ADD: [&str; 6] = ["attach", "web", "--interface", "eth1", "--pool", "management"];
const REMOVE: [&str; 4] = ["detach", "web", "--interface", "eth1"];

#[test]
fn an_interface_comes_and_goes_while_the_other_one_works() -> Result<()> {
    let plain = json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80/tcp"]}});
    let lab = lab_of(configs::two_pools(), &plain)?;
    let peer = lab.device.attach("b", "management")?;
    serve(&lab.device, &lab.web, &["eth0"])?;
    let streams: Vec<Stream> = AT
        .iter()
        .map(|at| Stream::start(&lab.outside, SocketAddr::new(at.parse()?, PORTS[0])))
        .collect::<Result<_>>()?;
    let before = (harness::Snapshot::of(&lab.device)?, lab.device.json(&["leases"])?, inside(&lab.web.ns)?);
    let mut had = None;
    for round in 0..3 {
        let said = lab.device.cli(&ADD).ok()?;
        let [v4, v6] = addresses(&lab.device, "web", "eth1")?;
        ensure!(said.contains("eth1") && said.contains(&v4.to_string()) && said.contains(&v6.to_string()), "{said}");
        let shown = lab.device.cli(&["containers", "web"]).ok()?;
        for part in ["eth0", "eth1", "internal", "management", &v4.to_string(), "10.0.3.1, fd00:5056:0:3::1"] {
            ensure!(shown.contains(part), "no {part} in {shown}");
        }
        // The same again changes nothing.
        let first = (lab.device.json(&["containers", "web"])?, inside(&lab.web.ns)?);
        lab.device.cli(&ADD).ok()?;
        let again = (lab.device.json(&["containers", "web"])?, inside(&lab.web.ns)?);
        ensure!(interfaces(&first.0) == interfaces(&again.0) && first.1 == again.1, "{first:?} became {again:?}");
        if round == 0 {
            serve(&lab.device, &lab.web, &["eth1"])?;
            had = Some([v4, v6]);
        }
        for (at, own) in had.into_iter().flatten().zip(peer.addresses()) {
            // The servers of the first round are bound to its addresses.
            if [v4, v6].contains(&at) {
                reaches(&peer.ns, SocketAddr::new(at, INNER), own)?;
            }
        }
        for name in ["eth1.web.pv.local", "web.management.pv.local", "web.pv.local"] {
            let found = lab.device.json(&["resolve", name])?.to_string();
            ensure!(found.contains(&v4.to_string()) && found.contains(&v6.to_string()), "{name}: {found}");
        }
        for to in [v4, v6] {
            peer.ns.ping(to, 1)?;
        }
        lab.device.cli(&REMOVE).ok()?;
        for to in [v4, v6] {
            ensure!(peer.ns.ping(to, 1).is_err(), "{to} still answers");
        }
        let found = lab.device.json(&["resolve", "eth1.web.pv.local"])?.to_string();
        ensure!(!found.contains(&v4.to_string()), "{found}");
        for stream in &streams {
            stream.goes_on().with_context(|| format!("round {round}"))?;
        }
        let now = (harness::Snapshot::of(&lab.device)?, lab.device.json(&["leases"])?, inside(&lab.web.ns)?);
        ensure!(now.1 == before.1 && now.2 == before.2, "{before:?} became {now:?}");
        ensure!(before.0.diff(&now.0).is_empty(), "{}", before.0.diff(&now.0));
    }
    streams.into_iter().try_for_each(Stream::finish)
}

/// The interfaces in a view, without counters.
pub fn interfaces(view: &Value) -> Vec<Value> {
    let all = view["interfaces"].as_array().cloned().unwrap_or_default();
    let without = |mut i: Value| {
        i.as_object_mut().into_iter().for_each(|i| drop(i.remove("flows")));
        i
    };
    all.into_iter().map(without).collect()
}

/// Links, addresses, rules and routes of a container.
fn inside(ns: &Namespace) -> Result<String> {
    let mut all = String::new();
    for line in
        ["-br link", "-o -4 addr", "-o -6 addr", "rule", "-6 rule", "route show table all", "-6 route show table all"]
    {
        all.push_str(&ns.ip(line)?);
    }
    Ok(all)
}

/// A restart, and a kill, leave both interfaces working, and the next daemon knows them.
#[test]
fn a_daemon_that_comes_back_knows_all_interfaces() -> Result<()> {
    let mut lab = lab()?;
    let third = ["attach", "web", "--interface", "lan", "--pool", "management", "--ipv4-address", "10.0.4.77"];
    lab.device.cli(&third).ok()?;
    serve(&lab.device, &lab.web, &["eth0", "eth1", "lan"])?;
    let peer = lab.device.attach("b", "management")?;
    let before = (interfaces(&view(&lab.device, "web")?), inside(&lab.web.ns)?);
    let streams: Vec<Stream> = PORTS
        .iter()
        .flat_map(|port| AT.map(|at| Stream::start(&lab.outside, SocketAddr::new(at.parse()?, *port))))
        .collect::<Result<_>>()?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lab.device.stop(signal)?;
        streams.iter().try_for_each(Stream::goes_on)?;
        lab.device.start()?;
        let now = (interfaces(&view(&lab.device, "web")?), inside(&lab.web.ns)?);
        ensure!(now == before, "{signal}: {before:?} became {now:?}");
        streams.iter().try_for_each(Stream::goes_on)?;
        reaches(&peer.ns, SocketAddr::new("10.0.4.77".parse()?, INNER), peer.v4.into())?;
    }
    streams.into_iter().try_for_each(Stream::finish)?;
    // The run.json stands for the next start: the interface that was added is not in it.
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(arranged(&lab.web.ns)?.is_empty(), "left: {}", arranged(&lab.web.ns)?);
    let leases = lab.device.json(&["leases"])?.to_string();
    ensure!(!leases.contains("web"), "{leases}");
    Ok(())
}

#[test]
fn the_default_route_follows_the_interfaces() -> Result<()> {
    let lab = lab_of(configs::two_pools(), &json!({"name": "web", "network": {"pool": "internal"}}))?;
    lab.device.cli(&ADD).ok()?;
    ensure!(default_links(&lab.web.ns)? == ["eth0", "eth0"], "{:?}", default_links(&lab.web.ns)?);
    lab.device.cli(&REMOVE).ok()?;
    // One that claims it gets it, and gives it back when it goes.
    lab.device.cli(&[&ADD[..], &["--default-route"]].concat()).ok()?;
    ensure!(default_links(&lab.web.ns)? == ["eth1", "eth1"], "{:?}", default_links(&lab.web.ns)?);
    lab.device.cli(&REMOVE).ok()?;
    ensure!(default_links(&lab.web.ns)? == ["eth0", "eth0"], "{:?}", default_links(&lab.web.ns)?);
    // The one that has it goes: the next one in the list gets it.
    lab.device.cli(&ADD).ok()?;
    lab.device.cli(&["detach", "web", "--interface", "eth0"]).ok()?;
    ensure!(default_links(&lab.web.ns)? == ["eth1", "eth1"], "{:?}", default_links(&lab.web.ns)?);
    lab.web.ns.ping("10.0.4.1", 1)?;
    ensure!(arranged(&lab.web.ns)?.is_empty(), "one interface with rules: {}", arranged(&lab.web.ns)?);
    Ok(())
}

/// A detach that was killed when one of two links was gone is finished by the next daemon.
#[test]
fn a_detach_that_was_killed_half_way_is_finished() -> Result<()> {
    let mut lab = lab()?;
    let links = |lab: &Lab| {
        let shown = lab.web.ns.ip("-br link")?;
        anyhow::Ok(["eth0", "eth1"].into_iter().filter(|name| shown.contains(name)).count())
    };
    for number in 1..50 {
        lab.device.stop(Signal::SIGTERM)?;
        ensure!(lab.device.start_to_die(&format!("detach:{number}"))?, "it did not start");
        drop(lab.device.cli(&["detach", "web"]));
        ensure!(lab.device.has_died()?, "a detach has {number} writes, and none between two links");
        let half = links(&lab)? == 1;
        lab.device.start()?;
        if half {
            ensure!(links(&lab)? == 0, "{}", lab.web.ns.ip("-br link")?);
            ensure!(arranged(&lab.web.ns)?.is_empty(), "left: {}", arranged(&lab.web.ns)?);
            let all = [lab.device.json(&["containers"])?, lab.device.json(&["leases"])?, lab.device.json(&["ports"])?];
            ensure!(!json!(all).to_string().contains("web"), "{all:?}");
            return Ok(());
        }
        match links(&lab)? {
            0 => again(&lab)?,
            left => ensure!(left == 2, "write {number}: {}", lab.web.ns.ip("-br link")?),
        }
    }
    anyhow::bail!("a detach has 50 writes, and none between two links")
}

/// `down` leaves nothing in the container's namespace, with a daemon and without.
#[test]
fn down_removes_the_rules_too() -> Result<()> {
    for with_daemon in [true, false] {
        let mut lab = lab()?;
        ensure!(!arranged(&lab.web.ns)?.is_empty(), "no rules");
        if !with_daemon {
            lab.device.stop(Signal::SIGTERM)?;
        }
        lab.device.down()?;
        ensure!(arranged(&lab.web.ns)?.is_empty(), "daemon {with_daemon}: left: {}", arranged(&lab.web.ns)?);
        ensure!(!lab.web.ns.ip("-br link")?.contains("eth"), "{}", lab.web.ns.ip("-br link")?);
    }
    Ok(())
}

/// A port that names an interface is not published without it, and that is said.
#[test]
fn a_port_without_its_interface() -> Result<()> {
    let lab = lab()?;
    lab.device.cli(&REMOVE).ok()?;
    let shown = view(&lab.device, "web")?;
    let conditions = shown["conditions"].as_array().context("conditions")?;
    ensure!(conditions.len() == 2, "{shown}");
    for (condition, port) in conditions.iter().zip(["8081:80/tcp@eth1", "8081:80/udp@eth1"]) {
        let text = condition.as_str().unwrap_or_default();
        ensure!(text.contains(port) && text.contains("attach web --interface eth1"), "{text}");
    }
    lab.device.cli(&ADD).ok()?;
    ensure!(view(&lab.device, "web")?["conditions"] == json!([]), "{}", view(&lab.device, "web")?);
    lab.device.cli(&REMOVE).ok()?;
    lab.device.cli(&["detach", "web"]).ok()?;
    let status = lab.device.json(&["status"])?.to_string();
    ensure!(!status.contains("8081"), "{status}");
    Ok(())
}

/// A pool is not in the configuration any more: the interface in it is stopped, and the others can be changed all the same.
/// The condition goes with the interface.
#[test]
fn an_interface_without_its_pool_stops_no_other() -> Result<()> {
    let mut lab = lab()?;
    lab.device.stop(Signal::SIGTERM)?;
    let mut config = configs::two_pools();
    config["network"]["pools"].as_object_mut().context("pools")?.remove("management");
    lab.device.configure(&config)?;
    lab.device.start()?;
    let says = |lab: &Lab, what: &str| {
        let all =
            [view(&lab.device, "web")?["conditions"].clone(), lab.device.json(&["status"])?["conditions"].clone()];
        anyhow::Ok(json!(all).to_string().contains(what))
    };
    ensure!(says(&lab, "eth1")?, "{}", lab.device.json(&["status"])?);
    lab.device.cli(&["attach", "web", "--interface", "eth2", "--pool", "internal"]).ok()?;
    ensure!(default_links(&lab.web.ns)? == ["eth0", "eth0"], "{:?}", default_links(&lab.web.ns)?);
    lab.web.ns.ping("10.0.3.1", 1)?;
    ensure!(says(&lab, "eth1: its traffic is stopped")?, "{}", view(&lab.device, "web")?);
    lab.device.cli(&REMOVE).ok()?;
    ensure!(!says(&lab, "its traffic is stopped")?, "{} {}", view(&lab.device, "web")?, lab.device.json(&["status"])?);
    Ok(())
}
