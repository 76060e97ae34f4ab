//! What could break the way between device and containers, or lead others onto it.

use crate::device::{device_if, own};
use crate::lab::{LAN4, Lab, lan, pool};
use anyhow::{Context, Result, ensure};
use harness::forger::{MARK, is_forged};
use harness::raw::RawSocket;
use harness::{Container, Ear, Namespace, SOON, eventually, frame};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::IpAddr;

fn new() -> Result<Lab> {
    let mut lan = pool("wan0", "bridge");
    lan["host_access"] = json!("all");
    Lab::with(&json!({"network": {"pools": {"lan": lan}}}))
}

/// Fails unless device and container reach each other, and the daemon finds nothing wrong.
fn works(lab: &Lab, web: &Container) -> Result<()> {
    for (at, device) in web.addresses().into_iter().zip(own()) {
        lab.device.ns.ping(at, 1)?;
        web.ns.ping(device, 1)?;
    }
    let status = lab.device.json(&["status"])?;
    ensure!(!status["conditions"].to_string().contains("does not reach"), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_takes_its_mac_gains_nothing() -> Result<()> {
    let mut lab = new()?;
    let web = lab.attach("web", &[])?;
    let (name, mac) = device_if(&lab)?;
    works(&lab, &web)?;
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.ns.ip(&format!("link set {name} down"))?;
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    web.ns.ip(&format!("link add link eth0 name rogue address {text} type macvlan mode bridge"))?;
    web.ns.ip("link set rogue up")?;
    lab.device.start()?;
    works(&lab, &web)?;
    let (again, now) = device_if(&lab)?;
    ensure!(again == name && now != mac, "{again} {now:02x?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn somebody_elses_route_costs_one_address_only() -> Result<()> {
    let lab = new()?;
    let web = lab.attach("web", &[])?;
    lab.device.ns.ip(&format!("route replace {}/32 dev wan0", web.v4))?;
    let db = lab.attach("db", &[])?;
    for at in [web.v6.into(), db.v4.into(), IpAddr::from(db.v6)] {
        lab.device.ns.ping(at, 1)?;
    }
    let status = lab.device.json(&["status"])?["conditions"].to_string();
    let route = |to: &Container| format!("route to {}", to.v4);
    ensure!(status.contains(&route(&web)) && !status.contains(&route(&db)), "{status}");
    lab.device.ns.ip(&format!("route del {}/32 dev wan0", web.v4))?;
    eventually(SOON, || works(&lab, &web))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_route_without_its_source_is_made_again() -> Result<()> {
    let mut lab = new()?;
    let web = lab.attach("web", &[])?;
    let (name, _) = device_if(&lab)?;
    lab.device.stop(Signal::SIGKILL)?;
    let ns = &lab.device.ns;
    ns.ip("addr del fd00:77::250/64 dev wan0")?;
    ns.ip("addr add fd00:77::251/64 dev wan0 nodad")?;
    // The kernel leaves the route, but takes its source off.
    ns.ip(&format!("addr del fd00:77::250/128 dev {name}"))?;
    let routes = ns.ip(&format!("-6 route show dev {name}"))?;
    ensure!(routes.contains(&format!("{} proto 112", web.v6)) && !routes.contains("src"), "{routes}");
    lab.device.start()?;
    let routes = lab.device.ns.ip(&format!("route get {}", web.v6))?;
    ensure!(routes.contains("src fd00:77::251"), "{routes}");
    web.ns.ping("fd00:77::251", 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_daemon_that_is_killed_at_any_write_finds_its_way_back() -> Result<()> {
    let mut lab = new()?;
    let ns = Namespace::new("web")?;
    let run = lab.device.file("web.json");
    std::fs::write(&run, json!({"name": "web", "network": {"pool": "lan"}}).to_string())?;
    let (netns, run) = (ns.path().display().to_string(), run.display().to_string());
    let attach = ["attach", "web", "--netns", &netns, "--run", &run];
    for operation in ["attach", "detach"] {
        let args = if operation == "attach" { &attach[..] } else { &["detach", "web"] };
        for number in 1.. {
            lab.device.stop(Signal::SIGTERM)?;
            lab.device.start_to_die(&format!("{operation}:{number}"))?;
            // It may get no answer.
            drop(lab.device.cli(args));
            let died = lab.device.has_died()?;
            if !died {
                lab.device.stop(Signal::SIGKILL)?;
            }
            lab.device.start()?;
            let at = || format!("write {number} of {operation}");
            let is_attached = lab.device.json(&["containers"])?.to_string().contains("\"attached\"");
            ensure!(device_if(&lab).is_ok() == is_attached, "{}: {is_attached}", at());
            lab.device.cli(&attach).ok().with_context(at)?;
            let web = Container::new(Namespace::new("view")?, lab.device.json(&["containers"])?[0].clone())?;
            for (to, device) in web.addresses().into_iter().zip(own()) {
                lab.device.ns.ping(to, 1).with_context(at)?;
                ns.ping(device, 1).with_context(at)?;
            }
            if operation == "attach" {
                lab.device.cli(&["detach", "web"]).ok().with_context(at)?;
                ensure!(device_if(&lab).is_err(), "{}: it stays", at());
            }
            if !died {
                ensure!(number > 3, "{number} writes only");
                break;
            }
        }
        lab.device.cli(&attach).ok()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_link_lends_nobody_a_containers_address() -> Result<()> {
    let mut lan = pool("wan0", "bridge");
    lan["host_access"] = json!("all");
    let pools = json!({"lan": lan, "inner": harness::configs::pool(3)});
    let lab = Lab::with(&json!({"network": {"uplinks": ["wan1"], "pools": pools}}))?;
    let (web, ns) = (lab.attach("web", &[])?, &lab.device.ns);
    let (beyond, stranger) = (Namespace::new("beyond")?, Namespace::new("stranger")?);
    ns.connect(
        ("wan1", &["10.88.0.250/24", "fd00:88::250/64"]),
        &beyond,
        ("eth0", &["10.88.0.1/24", "fd00:88::1/64"]),
    )?;
    ns.connect(("port", &[]), &stranger, ("eth0", &["10.0.3.200/24"]))?;
    ns.ip("link set port master pvbr3")?;
    for link in ["all", "wan0", "wan1", "pvbr3"] {
        ns.sh(&format!("sysctl -qw net.ipv4.conf.{link}.rp_filter=0"))?;
    }
    eventually(SOON, || {
        // Not in a condition that it is not there yet.
        let uplinks = lab.device.json(&["status"])?["uplinks"].to_string();
        ensure!(uplinks.contains("wan1"), "{uplinks}");
        Ok(())
    })?;
    // The last two broadcasts are in frames to the device alone.
    let by_uplink =
        ["10.88.0.250", "fd00:88::250", "10.77.0.250", "10.88.0.255", "ff02::1", "10.77.0.255", "255.255.255.255"];
    for (at, from, link, to) in [
        (&beyond, "eth0", "wan1", by_uplink.as_slice()),
        (&stranger, "eth0", "pvbr3", ["10.0.3.1", "10.77.0.250", "fd00:77::250", "ff02::1"].as_slice()),
        // The parent itself, which need not be an uplink.
        (&lab.lan, "eth0", "wan0", ["10.77.0.250", "fd00:77::250", "10.77.0.255", "ff02::1"].as_slice()),
    ] {
        let (src_mac, dst_mac) = (at.mac(from)?, ns.mac(link)?);
        let socket = RawSocket::open(at, from)?;
        let (ear, stack) = (Ear::link(ns, link)?, Ear::stack(ns)?);
        let sent = |src4: IpAddr, src6: IpAddr| -> Result<()> {
            for dst in to {
                let dst: IpAddr = dst.parse()?;
                let src = if dst.is_ipv4() { src4 } else { src6 };
                let mac = match dst {
                    IpAddr::V4(dst) if dst.octets() == [10, 88, 0, 255] => [0xff; 6],
                    IpAddr::V6(dst) if dst.is_multicast() => [0x33, 0x33, 0, 0, 0, 1],
                    _ => dst_mac,
                };
                let packet = frame::udp((src, 4000), (dst, 5000), MARK);
                socket.send(&frame::ethernet(src_mac, mac, frame::kind(&packet), &packet))?;
            }
            Ok(())
        };
        let wanted = to.len() as u64;
        let arrived = || -> Result<()> {
            let heard = ear.heard()?.iter().filter(|frame| is_forged(frame)).count();
            ensure!(heard >= to.len(), "{link}: {heard} have come");
            Ok(())
        };
        let grown = lab.device.counted(|| {
            sent("10.77.0.99".parse()?, "fd00:77::99".parse()?)?;
            arrived()
        })?;
        ensure!(grown["forged-source"] == 0, "{link}: under its own address: {grown:?}");
        stack.heard()?;
        let grown = lab.device.counted(|| {
            sent(web.v4.into(), web.v6.into())?;
            arrived()
        })?;
        ensure!(grown["forged-source"] == wanted, "{link}: of {wanted}: {grown:?}");
        let heard = stack.heard()?;
        ensure!(!heard.iter().any(|packet| is_forged(packet)), "{link}: {heard:02x?}");
    }
    works(&lab, &web)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_containers_mark_says_nothing_on_the_parent() -> Result<()> {
    let lab = new()?;
    let web = lab.attach("web", &[])?;
    let ns = &lab.device.ns;
    let _filter = harness::stranger::drop_marked(ns, "wan0", 119)?;
    for to in lan() {
        let ping = format!("ping -n -c 1 -W 1 -m 119 {to}");
        ns.ping(to, 1)?;
        ensure!(ns.sh(&ping).is_err(), "the filter drops nothing");
        web.ns.sh(&ping)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn its_addresses_are_preferred_for_nothing_else() -> Result<()> {
    let lab = new()?;
    let ns = &lab.device.ns;
    // By the other link the device sends with an address of the parent. The first one is nearer to the destination, but no
    // more so than their prefix.
    ns.ip("addr add fd00:77::8:1/64 dev wan0 nodad")?;
    let beyond = Namespace::new("beyond")?;
    ns.connect(("wan1", &[]), &beyond, ("eth0", &[]))?;
    ns.ip("-6 route add fd00:77::2ff/128 dev wan1")?;
    let source = || -> Result<String> {
        let route = ns.ip("-6 route get fd00:77::2ff")?;
        Ok(route.split("src ").nth(1).and_then(|rest| rest.split(' ').next()).context("no source")?.to_owned())
    };
    let before = source()?;
    let on_lan = ns.ip(&format!("-6 route get {}", lan()[1]))?;
    let web = lab.attach("web", &[])?;
    let (name, _) = device_if(&lab)?;
    let addresses = ns.ip(&format!("-6 addr show dev {name}"))?;
    ensure!(addresses.matches("deprecated").count() == 2, "{addresses}");
    ensure!(source()? == before, "{before} became {}", source()?);
    ensure!(ns.ip(&format!("-6 route get {}", lan()[1]))? == on_lan, "another way to the LAN");
    web.ns.ping("fd00:77::8:1", 1)?;
    works(&lab, &web)?;
    web.ns.ping(LAN4, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_next_container_with_an_address_is_found_at_once() -> Result<()> {
    let lab = new()?;
    let attach = |name: &str, mac: &str| {
        let interface = json!({"name": "eth0", "pool": "lan", "mac_address": mac, "ipv4_address": "10.77.0.77",
            "ipv6_address": "fd00:77::77"});
        lab.device.attach_run(&json!({"name": name, "network": {"interfaces": [interface]}}))
    };
    let web = attach("web", "02:00:00:00:77:01")?;
    works(&lab, &web)?;
    let db = lab.attach("db", &[])?;
    lab.device.cli(&["detach", "web"]).ok()?;
    drop(web);
    let web = attach("web", "02:00:00:00:77:02")?;
    for at in web.addresses() {
        lab.device.ns.sh(&format!("ping -n -c 1 -W 1 {at}"))?;
    }
    works(&lab, &db)
}
