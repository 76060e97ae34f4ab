//! systemd-networkd as a client of DHCPv6.

use crate::host::{GATEWAY, Lab, address, config};
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually, networkd};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::Ipv6Addr;

/// What `pv-net leases` has of an address.
fn lease_of(lab: &Lab, address: Ipv6Addr) -> Result<Value> {
    let leases = lab.device.json(&["leases"])?;
    let mut all = leases.as_array().context("a list")?.iter();
    let found = all.find(|lease| lease["ipv6_address"] == address.to_string());
    Ok(found.with_context(|| format!("no {address} in {leases}"))?.clone())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn networkd_has_an_address_and_renews_it_whatever_becomes_of_the_daemon() -> Result<()> {
    let mut config = config(json!({"mode": "stateful"}));
    let range = ["fd00:5056:0:3::d000", "fd00:5056:0:3::dfff"];
    config["network"]["pools"]["internal"]["dhcp6"] = json!({"range": range, "lease_time": networkd::LEASE});
    let mut lab = Lab::new(&config)?;
    let host = lab.host("h", "0")?;
    // What it knows of servers is by DHCPv6 alone.
    let settings = "DHCP=ipv6\nIPv6AcceptRA=yes\n[IPv6AcceptRA]\nUseDNS=no\nUseDomains=no\n[DHCPv6]\nUseDomains=yes";
    let networkd = networkd::start(&host, "eth0", settings)?;
    let own = address(&host)?;
    let [first, last] = range.map(str::parse::<Ipv6Addr>);
    ensure!((first?..=last?).contains(&own), "{own}");
    let lease = lease_of(&lab, own)?;
    eventually(SOON, || {
        let noted = networkd::noted(&networkd, &host, "eth0")?;
        for line in [format!("DNS={GATEWAY}"), "DOMAINS=pv.local".to_owned()] {
            ensure!(noted.lines().any(|noted| noted == line), "no {line} in {noted}");
        }
        Ok(())
    })?;
    host.ping(GATEWAY, 1)?;
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    let count = |kind: &str| lab.metric(&format!("pv_net_dhcp6_messages_total{{type=\"{kind}\",result=\"answered\"}}"));
    // Two renewals are half a lease apart, so the second one is after the end of the lease that the killed daemon gave.
    eventually(2 * SOON, || {
        ensure!(count("renew")? + count("rebind")? >= 2, "{}", lab.metrics()?);
        Ok(())
    })?;
    ensure!(count("solicit")? == 0, "it began anew: {}", lab.metrics()?);
    ensure!(address(&host)? == own, "it has another address");
    let now = lease_of(&lab, own)?;
    ensure!(now["expires"] != lease["expires"], "not renewed: {now}");
    Ok(())
}
