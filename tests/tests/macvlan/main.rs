//! Macvlan pools: containers with interfaces on a link of the device.

mod attacks;
mod lab;
mod traffic;

use anyhow::{Context, Result, ensure};
use harness::{SOON, echo, eventually};
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
    ensure!(link.contains("macvlan") && link.contains("mode bridge"), "{link}");
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
        ensure!(grown.contains_key("unpublished"), "{grown:?}");
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
