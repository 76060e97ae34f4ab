//! systemd-networkd as a client.

use crate::{Stranger, config, is_in_range, lease_of};
use anyhow::{Context, Result, ensure};
use harness::{Device, SOON, eventually, networkd};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::Ipv4Addr;

/// The address that it has set on the link.
fn address(stranger: &Stranger) -> Result<Ipv4Addr> {
    eventually(2 * SOON, || {
        let said = stranger.ns.ip(&format!("-4 -o addr show dev {}", stranger.link))?;
        let found = said.split_whitespace().nth(3).and_then(|word| word.split('/').next());
        Ok(found.with_context(|| format!("no address in {said:?}"))?.parse()?)
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn networkd_has_an_address_and_renews_it_whatever_becomes_of_the_daemon() -> Result<()> {
    let mut device = Device::started(&config(json!({"lease_time": "10s"})))?;
    let stranger = Stranger::new(&device, "nd")?;
    let _networkd = networkd::start(&stranger.ns, &stranger.link, "DHCP=ipv4\n[DHCPv4]\nHostname=box-nd")?;
    let own = address(&stranger)?;
    ensure!(is_in_range(own), "{own}");
    let lease = lease_of(&device, &stranger.mac_text())?;
    let expires = |lease: &serde_json::Value| lease["expires"].to_string();
    device.stop(Signal::SIGKILL)?;
    device.start()?;
    eventually(3 * SOON, || {
        let now = lease_of(&device, &stranger.mac_text())?;
        ensure!(expires(&now) != expires(&lease), "not renewed: {now}");
        Ok(())
    })?;
    ensure!(address(&stranger)? == own, "it has another address");
    Ok(())
}
