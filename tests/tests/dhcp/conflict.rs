//! Addresses of the range that somebody has without asking.

use crate::{RANGE, Stranger, config};
use anyhow::{Result, ensure};
use harness::{Device, Process, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::Ipv4Addr;
use std::process::Stdio;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_that_somebody_uses_is_given_to_nobody() -> Result<()> {
    let mut device = Device::started(&config(json!({})))?;
    let (squatter, client) = (Stranger::new(&device, "one")?, Stranger::new(&device, "two")?);
    squatter.ns.configure(&squatter.link, &["10.0.3.100/24"])?;
    // The first addresses are probed before a client comes. This daemon may have done so before somebody took one; the
    // next one has not, and waits for answers as long as it takes.
    device.stop(Signal::SIGTERM)?;
    device.start()?;
    let said = device.file("events");
    let out = std::fs::File::create(&said)?;
    let _monitor = Process::start(device.command().arg("monitor").stdout(out).stderr(Stdio::null()))?;
    // Whoever listens misses what was before; so it is given back and asked for again until it is heard.
    eventually(SOON, || {
        let mut peer = crate::raw::Peer::of(&client)?;
        let own = crate::raw::mac(11);
        let address = peer.get(own)?;
        ensure!(address != RANGE[0] && address > RANGE[0], "{address} is the other's");
        let heard = std::fs::read_to_string(&said)?;
        if !heard.contains("leased:") {
            let release = crate::raw::Message::new(crate::raw::RELEASE, own, 1).ciaddr(address).server(crate::SERVER);
            peer.send(own, &release.bytes())?;
        }
        ensure!(heard.contains("leased: pool internal: 10.0.3.1"), "{heard}");
        Ok(())
    })?;
    let status = crate::metric(&device, "pv_net_dhcp_leases{pool=\"internal\"}")?;
    ensure!(status >= 1, "{status}");
    // It goes, and after that is known the address is free for one who asks for it; until then for nobody.
    let mut peer = crate::raw::Peer::of(&client)?;
    let other = crate::raw::mac(99);
    let wants = |xid| crate::raw::Message::new(crate::raw::DISCOVER, other, xid).requested(RANGE[0]);
    let offer = peer.ask(other, wants)?;
    ensure!(offer.yours != RANGE[0] && offer.yours > Ipv4Addr::new(10, 0, 3, 100), "{offer:?}");
    Ok(())
}

/// A declared container's LXC configuration gives it an address of the range. It does not even run.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_in_a_configuration_of_lxc_is_given_to_no_client() -> Result<()> {
    let mut device = Device::new(&config(json!({})))?;
    let run = json!({"name": "old", "type": "lxc", "network": {"mode": "none"}}).to_string();
    let baked = format!("lxc.net.0.ipv4.address = {}/24\n", RANGE[0]);
    for (dir, file, text) in [("containers", "run.json", run), ("lxc", "config", baked)] {
        let dir = device.file(dir).join("old");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(file), text)?;
    }
    device.start()?;
    let client = Stranger::new(&device, "one")?;
    let mut peer = crate::raw::Peer::of(&client)?;
    let address = peer.get(crate::raw::mac(11))?;
    ensure!(address > RANGE[0], "{address} is the container's");
    let other = crate::raw::mac(12);
    let wants = |xid| crate::raw::Message::new(crate::raw::DISCOVER, other, xid).requested(RANGE[0]);
    let offer = peer.ask(other, wants)?;
    ensure!(offer.yours > RANGE[0], "{offer:?}");
    Ok(())
}
