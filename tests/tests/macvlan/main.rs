//! Macvlan pools: containers with interfaces on a link of the device.

mod attacks;
mod device;
mod lab;
mod rogue;
mod traffic;
mod way;
mod wire;

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, SOON, Snapshot, echo, eventually};
use lab::{LAN4, Lab, lan};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::SocketAddr;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_is_on_the_lan() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &["80/tcp"])?;
    let link = web.ns.ip("-d link show eth0")?;
    ensure!(link.contains("macvlan") && link.contains("mode vepa"), "{link}");
    for (own, peer) in web.addresses().into_iter().zip(lan()) {
        web.ns.ping(peer, 1)?;
        echo::serve(&lab.lan, peer, 7000)?;
        let seen = echo::tcp(&web.ns, SocketAddr::new(peer, 7000), b"out")?;
        ensure!(seen.ip() == own, "{seen}");
        echo::serve(&web.ns, own, 80)?;
        echo::serve(&web.ns, own, 81)?;
        echo::tcp(&lab.lan, SocketAddr::new(own, 80), b"in")?;
        let grown = lab.device.counted(|| {
            ensure!(echo::tcp(&lab.lan, SocketAddr::new(own, 81), b"in").is_err(), "a port that is not published");
            Ok(())
        })?;
        ensure!(grown["unpublished"] > 0, "{grown:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_restart_finds_the_containers_again() -> Result<()> {
    let mut lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &[])?;
    let before = web.ns.ip("link show eth0")?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lab.device.stop(signal)?;
        web.ns.ping(LAN4, 1)?;
        lab.device.start()?;
        web.ns.ping(LAN4, 1)?;
        let view = lab.device.json(&["containers"])?;
        ensure!(view[0]["state"] == "attached", "{view}");
    }
    ensure!(web.ns.ip("link show eth0")? == before, "another link");
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(web.ns.ip("link show eth0").is_err(), "the link is still there");
    eventually(SOON, || {
        let pins = lab.device.pinned()?;
        ensure!(!pins.contains("child_out/"), "{pins}");
        Ok(())
    })
    .context("pins")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn down_leaves_nothing() -> Result<()> {
    let mut device = Device::new(&lab::config("bridge", json!([])))?;
    let host = Namespace::new("lan")?;
    device.ns.connect(("wan0", &[lab::OWN4]), &host, ("eth0", &["10.77.0.1/24", "fd00:77::1/64"]))?;
    let before = Snapshot::of(&device)?;
    device.start()?;
    let web = device.attach("web", "lan")?;
    web.ns.ping(LAN4, 1)?;
    device.down()?;
    ensure!(web.ns.ip("link show eth0").is_err(), "the link is still there");
    let after = Snapshot::of(&device)?;
    let diff = before.diff(&after);
    ensure!(diff.is_empty(), "{diff}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn parents_that_cannot_work_are_refused() -> Result<()> {
    let mut pools = serde_json::Map::new();
    for (i, (name, parent, mode)) in [
        ("none", "none0", "bridge"),
        ("port", "port0", "bridge"),
        ("loop", "lo", "bridge"),
        ("bridged", "pvbr3", "bridge"),
        ("whole", "wan0", "passthru"),
    ]
    .into_iter()
    .enumerate()
    {
        pools.insert(
            name.to_owned(),
            json!({"type": "macvlan", "parent": parent, "mode": mode, "subnet": format!("10.78.{i}.0/24")}),
        );
    }
    pools.insert("internal".to_owned(), harness::configs::pool(3));
    let mut device = Device::new(&json!({"network": {"pools": pools}}))?;
    let host = Namespace::new("lan")?;
    device.ns.connect(("wan0", &[]), &host, ("eth0", &[]))?;
    device.ns.connect(("port0", &[]), &host, ("eth1", &[]))?;
    device.ns.ip("link add other0 type bridge")?;
    device.ns.ip("link set port0 master other0")?;
    device.start()?;
    for (pool, why) in [
        ("none", "no such link"),
        ("port", "is a port of another link"),
        ("loop", "is not an Ethernet link"),
        ("bridged", "is the bridge of a pool"),
        ("whole", "passthru is not supported"),
    ] {
        let ns = Namespace::new("web")?;
        let reply = device.cli(&["attach", "web", "--netns", &ns.path().display().to_string(), "--pool", pool]);
        ensure!(reply.code == Some(1) && reply.stderr.contains(why), "{pool}: {reply:?}");
        ensure!(ns.ip("link show eth0").is_err(), "{pool}: a link was made");
        let status = device.json(&["status"])?;
        ensure!(status["conditions"].to_string().contains(why), "{pool}: {status}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_parent_that_comes_back_is_used_again() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &[])?;
    lab.device.ns.ip("link del wan0")?;
    eventually(SOON, || {
        let view = lab.device.json(&["containers"])?;
        ensure!(view[0]["state"].is_string() && view[0]["state"] != "attached", "{view}");
        let status = lab.device.json(&["status"])?;
        ensure!(status["conditions"].to_string().contains("no such link"), "{status}");
        Ok(())
    })?;
    ensure!(web.ns.ip("link show eth0").is_err(), "the link is still there");
    lab.device.ns.connect(("wan0", &[lab::OWN4]), &lab.lan, ("eth0", &["10.77.0.1/24", "fd00:77::1/64"]))?;
    let path = web.ns.path().display().to_string();
    let run = json!({"name": "web", "network": {"pool": "lan"}}).to_string();
    std::fs::write(lab.device.file("again.json"), run)?;
    let run = lab.device.file("again.json").display().to_string();
    eventually(SOON, || lab.device.cli(&["attach", "web", "--netns", &path, "--run", &run]).ok())?;
    web.ns.ping(LAN4, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_kill_leaves_no_open_interface() -> Result<()> {
    let mut lab = Lab::new("bridge", json!([]))?;
    lab.device.stop(Signal::SIGTERM)?;
    let ns = Namespace::new("web")?;
    std::fs::write(lab.device.file("web.json"), json!({"name": "web", "network": {"pool": "lan"}}).to_string())?;
    let (path, run) = (ns.path().display().to_string(), lab.device.file("web.json").display().to_string());
    for operation in ["attach", "detach"] {
        for point in 1.. {
            ensure!(point < 200, "{operation} has no end");
            ensure!(lab.device.start_to_die(&format!("{operation}:{point}"))?, "it died at its start");
            if operation == "detach" {
                lab.device.cli(&["attach", "web", "--netns", &path, "--run", &run]).ok()?;
            }
            let words = ["attach", "web", "--netns", &path, "--run", &run];
            let reply = lab.device.cli(if operation == "attach" { &words } else { &["detach", "web"] });
            let died = reply.code != Some(0);
            if died {
                ensure!(lab.device.has_died()?, "{operation}:{point}: {reply:?}");
                lab.device.start().with_context(|| format!("{operation}:{point}"))?;
                let about = || format!("{operation}:{point}");
                let view = lab.device.json(&["containers"])?;
                let attached = view[0]["state"] == "attached";
                let link = ns.ip("link show eth0");
                ensure!(attached == link.is_ok(), "{}: {view} {link:?}", about());
                if attached {
                    eventually(SOON, || ns.ping(LAN4, 1)).with_context(about)?;
                }
                ensure!(!lab.device.ns.ip("-d link")?.contains("pv-net:pool"), "{}: left in the device", about());
                let pins = lab.device.pinned()?;
                ensure!(pins.contains("child_out/") == attached, "{}: {pins}", about());
            }
            if lab.device.json(&["containers"])?.to_string().contains("\"web\"") {
                lab.device.cli(&["detach", "web"]).ok().with_context(|| format!("{operation}:{point}"))?;
            }
            lab.device.stop(Signal::SIGTERM)?;
            if !died {
                break;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_build_takes_the_programs_over() -> Result<()> {
    let mut lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &["80/tcp"])?);
    lab.device.stop(Signal::SIGTERM)?;
    harness::other_layout::grow(&lab.device, pv_net_common::names::MAP_FLOWS, 8)?;
    lab.device.start()?;
    let view = lab.device.json(&["containers"])?;
    ensure!(view[0]["state"] == "attached" && view[1]["state"] == "attached", "{view}");
    for (own, peer) in db.addresses().into_iter().zip(lan()) {
        web.ns.ping(peer, 1)?;
        web.ns.ping(own, 1)?;
        echo::serve(&db.ns, own, 80)?;
        echo::tcp(&lab.lan, SocketAddr::new(own, 80), b"in")?;
    }
    let status = lab.device.json(&["status"])?;
    ensure!(!status["conditions"].to_string().contains("child"), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_parent_stays_an_uplink() -> Result<()> {
    let mut config = lab::config("bridge", json!([]));
    config["network"]["uplinks"] = json!(["wan0"]);
    config["network"]["pools"]["internal"] = harness::configs::pool(3);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    let mut device = Device::new(&config)?;
    let host = Namespace::new("lan")?;
    let device_addresses = [lab::OWN4, "fd00:77::250/64"];
    device.ns.connect(("wan0", &device_addresses), &host, ("eth0", &["10.77.0.1/24", "fd00:77::1/64"]))?;
    device.start()?;
    let (inner, web) = (device.attach("inner", "internal")?, device.attach("web", "lan")?);
    for (peer, own) in lan().into_iter().zip(web.addresses()) {
        inner.ns.ping(peer, 1)?;
        web.ns.ping(peer, 1)?;
        device.ns.ping(peer, 1)?;
        host.ping(if peer.is_ipv4() { "10.77.0.250" } else { "fd00:77::250" }, 1)?;
        ensure!(inner.ns.sh(&format!("ping -c 1 -W 1 {own}")).is_err(), "{own} is reached from another pool");
    }
    // An interface whose namespace is gone is forgotten.
    drop(web);
    eventually(SOON, || {
        let pins = device.json(&["containers"])?.to_string();
        ensure!(!pins.contains("\"attached\",\"name\":\"web\"") && !device.pinned()?.contains("child_out/"), "{pins}");
        Ok(())
    })
}
