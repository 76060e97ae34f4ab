//! systemd-networkd as a client of DHCPv6.

use crate::host::{Lab, address, config};
use anyhow::{Result, ensure};
use harness::{SOON, eventually, networkd};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::Ipv6Addr;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn networkd_has_an_address_and_renews_it_whatever_becomes_of_the_daemon() -> Result<()> {
    let mut config = config(json!({"mode": "stateful"}));
    let range = ["fd00:5056:0:3::d000", "fd00:5056:0:3::dfff"];
    config["network"]["pools"]["internal"]["dhcp6"] = json!({"range": range, "lease_time": "10s"});
    let mut lab = Lab::new(&config)?;
    let host = lab.host("h", "0")?;
    let _networkd = networkd::start(&host, "eth0", "DHCP=ipv6\nIPv6AcceptRA=yes")?;
    let own = address(&host)?;
    let [first, last] = range.map(str::parse::<Ipv6Addr>);
    ensure!((first?..=last?).contains(&own), "{own}");
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    let renewed = "pv_net_dhcp6_messages_total{type=\"renew\",result=\"answered\"}";
    eventually(3 * SOON, || {
        ensure!(lab.metric(renewed)? > 0, "{}", lab.metrics()?);
        Ok(())
    })?;
    ensure!(address(&host)? == own, "it has another address");
    Ok(())
}
