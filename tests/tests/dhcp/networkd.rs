//! systemd-networkd as a client.

use crate::{SERVER, Stranger, config, is_in_range, lease_of, metric};
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
    let mut device = Device::started(&config(json!({"lease_time": networkd::LEASE})))?;
    let stranger = Stranger::new(&device, "nd")?;
    let networkd =
        networkd::start(&stranger.ns, &stranger.link, "DHCP=ipv4\n[DHCPv4]\nHostname=box-nd\nUseDomains=yes")?;
    let own = address(&stranger)?;
    ensure!(is_in_range(own), "{own}");
    let lease = lease_of(&device, &stranger.mac_text())?;
    ensure!(lease["ipv4_address"] == own.to_string() && lease["hostname"] == "box-nd", "{lease}");
    eventually(SOON, || {
        let noted = networkd::noted(&networkd, &stranger.ns, &stranger.link)?;
        ensure!(noted.lines().any(|line| line == format!("DNS={SERVER}")), "no DNS server in {noted}");
        // By two options: the domain, and the list of search domains.
        let domains = noted.lines().find_map(|line| line.strip_prefix("DOMAINS="));
        ensure!(domains.is_some_and(|all| all.split(' ').all(|domain| domain == "pv.local")), "no domain in {noted}");
        Ok(())
    })?;
    let way_out = stranger.ns.ip("-4 route show default")?;
    ensure!(way_out.contains(&format!("via {SERVER}")), "{way_out:?}");
    stranger.ns.ping(SERVER, 1)?;
    device.stop(Signal::SIGKILL)?;
    device.start()?;
    // Two renewals are half a lease apart, so the second one is after the end of the lease that the killed daemon gave.
    eventually(2 * SOON, || {
        let renewed = metric(&device, "pv_net_dhcp_sent_total{type=\"ack\"}")?;
        ensure!(renewed >= 2, "{renewed} answers");
        Ok(())
    })?;
    ensure!(metric(&device, "pv_net_dhcp_sent_total{type=\"offer\"}")? == 0, "it began anew");
    ensure!(address(&stranger)? == own, "it has another address");
    let now = lease_of(&device, &stranger.mac_text())?;
    ensure!(now["ipv4_address"] == own.to_string() && now["expires"] != lease["expires"], "not renewed: {now}");
    Ok(())
}
