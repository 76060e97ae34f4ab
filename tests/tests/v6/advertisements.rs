//! Router advertisements, as `rdisc6`, the kernel and `dhcpcd` hear them.

use crate::host::{GATEWAY, Lab, PREFIX, address, config, mode, rdisc6, way_out};
use anyhow::{Context, Result, ensure};
use harness::configs::HOST;
use harness::raw::RawSocket;
use harness::{Process, SOON, eventually, frame};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::Ipv6Addr;

/// Fails unless `said` has all of `parts`, with any number of spaces for one.
fn has(said: &str, parts: &[&str]) -> Result<()> {
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        ensure!(flat.contains(part), "no {part:?} in {said}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_host_is_told_all_that_it_needs() -> Result<()> {
    let mut now = config(json!({"lifetime": "20m", "preference": "high", "routes": ["fd00:5056::/32", "fd77:1::/80"]}));
    now["network"]["domain"] = json!("pv.internal");
    now["network"]["pools"]["internal"]["mtu"] = json!(1400);
    let lab = Lab::new(&now)?;
    let host = lab.host("h", "0")?;
    let router = lab.router()?;
    let said = rdisc6(&host)?;
    let mac = lab.device.ns.mac("pvbr3")?.map(|byte| format!("{byte:02X}")).join(":");
    has(
        &said,
        &[
            "Hop limit : 64",
            "Stateful address conf. : No",
            "Stateful other conf. : No",
            "Router preference : high",
            "Router lifetime : 1200 (0x000004b0) seconds",
            "Prefix : fd00:5056:0:3::/64",
            "On-link : Yes",
            "Autonomous address conf.: Yes",
            "Valid time : 5400",
            "Pref. time : 2700",
            "MTU : 1400 bytes",
            &format!("Source link-layer address: {mac}"),
            &format!("Recursive DNS server : {GATEWAY}"),
            "DNS server lifetime : 1200",
            "DNS search list : pv.internal",
            "Route : fd00:5056::/32",
            "Route : fd77:1::/80",
            "Route preference : high",
            &format!("from {router}"),
        ],
    )?;
    for (mode, flags) in
        [("stateless", ["No", "Yes", "Yes"]), ("stateful", ["Yes", "Yes", "No"]), ("route-only", ["No", "No", "No"])]
    {
        let [managed, other, autonomous] = flags;
        now["network"]["pools"]["internal"]["ra"] = json!({"mode": mode});
        now["network"]["pools"]["internal"]["dns"] = json!(false);
        lab.reload(&now)?;
        eventually(SOON, || {
            let said = rdisc6(&host)?;
            has(
                &said,
                &[
                    "Router preference : medium",
                    "Router lifetime : 1800",
                    &format!("Stateful address conf. : {managed}"),
                    &format!("Stateful other conf. : {other}"),
                    &format!("Autonomous address conf.: {autonomous}"),
                ],
            )?;
            for nothing in ["Recursive DNS", "DNS search", "Route  "] {
                ensure!(!said.contains(nothing), "{said}");
            }
            Ok(())
        })?;
    }
    for what in
        ["solicitation\",result=\"answered", "advertisement\",result=\"unicast", "advertisement\",result=\"unasked"]
    {
        let line = format!("pv_net_ra_messages_total{{type=\"{what}\"}}");
        ensure!(lab.metric(&line)? > 0, "{what}: {}", lab.metrics()?);
    }
    let conditions = lab.device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_kernel_makes_an_address_and_has_a_way_out() -> Result<()> {
    let mut lab = Lab::new(&config(json!({})))?;
    let host = lab.host("h", "2")?;
    let router = lab.router()?;
    let own = address(&host)?;
    way_out(&host, Some(router))?;
    host.ping(GATEWAY, 1)?;
    // By masquerade, as other hosts on the bridge by the device's stack.
    let web = lab.device.attach("web", "internal")?;
    web.ns.ping(HOST[1].split('/').next().context("address")?, 1)?;
    // Containers and hosts reach each other in the pool.
    eventually(SOON, || web.ns.ping(own, 1))?;
    eventually(SOON, || host.ping(web.v6, 1))?;
    // A killed daemon says nothing, and nothing changes; the next one goes on.
    lab.device.stop(Signal::SIGKILL)?;
    host.ping(GATEWAY, 1)?;
    way_out(&host, Some(router))?;
    lab.device.start()?;
    way_out(&host, Some(router))?;
    // One that is told to stop says so, and the address stays.
    lab.device.stop(Signal::SIGTERM)?;
    way_out(&host, None)?;
    ensure!(address(&host)? == own);
    lab.device.start()?;
    way_out(&host, Some(router))?;
    ensure!(address(&host)? == own);
    host.ping(GATEWAY, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_way_out_goes_with_the_uplink_and_comes_back_with_it() -> Result<()> {
    let lab = Lab::new(&config(json!({})))?;
    let host = lab.host("h", "2")?;
    let router = lab.router()?;
    let own = address(&host)?;
    way_out(&host, Some(router))?;
    lab.device.ns.ip("link del up0")?;
    way_out(&host, None)?;
    ensure!(address(&host)? == own);
    // What is asked now is answered so too.
    has(&rdisc6(&host)?, &["Router lifetime : 0 ", "Recursive DNS server", "DNS server lifetime : 1800"])?;
    let _outside = lab.device.outside("up0", &harness::configs::DEVICE, &HOST)?;
    way_out(&host, Some(router))?;
    // An uplink with IPv4 alone is no way out, and one with a route is, even if it has no address but the link's.
    lab.device.ns.ip("-6 addr flush dev up0 scope global")?;
    way_out(&host, None)?;
    lab.device.ns.ip("-6 route add default via fe80::1 dev up0")?;
    way_out(&host, Some(router))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_network_that_goes_is_used_for_nothing_new() -> Result<()> {
    let mut now = config(json!({}));
    let lab = Lab::new(&now)?;
    let host = lab.host("h", "2")?;
    let own = address(&host)?;
    let is_deprecated = |address: Ipv6Addr| {
        eventually(SOON, || {
            let said = host.ip("-6 -o addr show dev eth0 deprecated")?;
            ensure!(said.contains(&address.to_string()), "{said}");
            Ok(())
        })
    };
    // Another one in its place.
    now["network"]["pools"]["internal"]["subnet6"] = json!("fd00:5056:0:33::/64");
    now["network"]["pools"]["internal"]["gateway6"] = json!("fd00:5056:0:33::1");
    lab.reload(&now)?;
    is_deprecated(own)?;
    has(&rdisc6(&host)?, &["Prefix : fd00:5056:0:33::/64", "Prefix : fd00:5056:0:3::/64", "Pref. time : 0"])?;
    // And nothing at all.
    let next: Ipv6Addr = eventually(SOON, || {
        let said = host.ip("-6 -o addr show dev eth0 scope global -deprecated -tentative")?;
        let found = said.split_whitespace().find(|word| word.starts_with("fd00:5056:0:33:"));
        Ok(found.and_then(|a| a.split('/').next()).with_context(|| said.clone())?.parse()?)
    })?;
    now["network"]["pools"]["internal"].as_object_mut().context("a pool")?.remove("ra");
    lab.reload(&now)?;
    is_deprecated(next)?;
    way_out(&host, None)?;
    ensure!(rdisc6(&host).is_err(), "somebody answers");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_has_the_address_of_its_lease_and_no_other() -> Result<()> {
    let lab = Lab::new(&config(json!({})))?;
    let (a, b) = (lab.device.attach("a", "internal")?, lab.device.attach("b", "internal")?);
    let host = lab.host("h", "2")?;
    address(&host)?;
    // Networks for addresses are advertised to others alone: a program in the container would make an address that the
    // guard refuses, and send from that.
    ensure!(rdisc6(&a.ns).is_err(), "it hears of a network");
    let addresses = a.ns.ip("-6 -o addr show dev eth0 scope global")?;
    ensure!(addresses.lines().count() == 1 && addresses.contains(&a.v6.to_string()), "{addresses}");
    let routes = a.ns.ip("-6 route show default")?;
    ensure!(routes.lines().count() == 1 && routes.contains(GATEWAY), "{routes}");
    // One that makes an address all the same sends nothing by it.
    let made = format!("{PREFIX}:abcd");
    a.ns.configure("eth0", &[&format!("{made}/64")])?;
    let drops = lab.device.counted(|| {
        ensure!(a.ns.sh(&format!("ping -n -q -c 1 -W 1 -I {made} {}", b.v6)).is_err(), "it got an answer");
        Ok(())
    })?;
    ensure!(drops["spoofed-ipv6"] + drops["spoofed-nd"] > 0, "{drops:?}");
    a.ns.sh(&format!("ping -n -q -c 1 -W 2 -I {} {}", a.v6, b.v6)).map(drop)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_hears_where_to_ask_for_its_address() -> Result<()> {
    let lab = Lab::new(&config(mode("stateful")))?;
    let a = lab.device.attach("a", "internal")?;
    has(&rdisc6(&a.ns)?, &["Stateful address conf. : Yes"])
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_no_solicitation_is_not_answered() -> Result<()> {
    let lab = Lab::new(&config(json!({})))?;
    let host = lab.host("h", "0")?;
    rdisc6(&host)?;
    let raw = RawSocket::open(&host, "eth0")?;
    let mac = host.mac("eth0")?;
    let all: Ipv6Addr = "ff02::2".parse()?;
    let own = match pv_net_common::Ip::link_local(mac).into() {
        std::net::IpAddr::V6(own) => own,
        std::net::IpAddr::V4(own) => own.to_ipv6_mapped(),
    };
    let ignored = "pv_net_ra_messages_total{type=\"solicitation\",result=\"ignored\"}";
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
    let cut = [&solicitation[..], &[1, 2, 0, 0, 0, 0, 0, 0]].concat();
    for (what, hops, message) in [
        ("forwarded", 254, &solicitation[..]),
        ("with half an option", 255, &cut),
        ("with a code", 255, &[133, 1, 0, 0, 0, 0, 0, 0]),
    ] {
        let before = lab.metric(ignored)?;
        let mut packet = frame::icmp(own.into(), all.into(), message);
        packet[7] = hops;
        raw.send(&frame::ethernet(mac, harness::groups::mac(all.into()), frame::IPV6, &packet))?;
        eventually(SOON, || {
            ensure!(lab.metric(ignored)? == before + 1, "{what}: {}", lab.metrics()?);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn dhcpcd_makes_an_address() -> Result<()> {
    let lab = Lab::new(&config(mode("slaac")))?;
    let host = lab.host("h", "0")?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/sh\nenv >> \"$0.said\"\n")?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let line = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib/dhcpcd && \
         exec dhcpcd -6 -B -1 -d -f /dev/null -c {} eth0",
        script.display()
    );
    let client = Process::start(host.command("unshare").args(["-m", "sh", "-c", &line]))?;
    client.finish(SOON)?;
    let said = std::fs::read_to_string(folder.path().join("script.said")).unwrap_or_default();
    has(&said, &["reason=ROUTERADVERT", &format!("nd1_rdnss1_servers={GATEWAY}"), "nd1_dnssl1_search=pv.local"])?;
    let own = address(&host)?;
    ensure!(own.to_string().starts_with(PREFIX), "{own}");
    host.ping(GATEWAY, 1)
}
