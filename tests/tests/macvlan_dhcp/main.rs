//! Macvlan pools whose addresses the network of their parent chooses (`"ipam": "dhcp"`), with servers as they come.

mod lab;

use anyhow::{Result, ensure};
use harness::{Namespace, SOON, echo, eventually};
use lab::{LAN4, LAN6, Lab, addresses};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn addresses_are_those_that_the_network_gives() -> Result<()> {
    let policies =
        json!([{"name": "mute", "from": {"container": "mute"}, "to": {"cidr": "10.77.0.1/32"}, "action": "deny"}]);
    let mut lab = Lab::new(&policies)?;
    let _server = lab.dnsmasq(50, 99, &[])?;
    let (web, mute) = (Namespace::new("web")?, Namespace::new("mute")?);
    let view = lab.attach(&web, "web", &["80/tcp"])?;
    let other = lab.attach(&mute, "mute", &[])?;
    let own = addresses(&view)?;
    for (own, peer) in own.into_iter().zip([IpAddr::from(LAN4), LAN6.into()]) {
        web.ping(peer, 1)?;
        echo::serve(&lab.lan, peer, 7000)?;
        let seen = echo::tcp(&web, SocketAddr::new(peer, 7000), b"out")?;
        ensure!(seen.ip() == own, "{seen}");
        echo::serve(&web, own, 80)?;
        echo::serve(&web, own, 81)?;
        echo::tcp(&lab.lan, SocketAddr::new(own, 80), b"in")?;
        ensure!(echo::tcp(&lab.lan, SocketAddr::new(own, 81), b"in").is_err(), "a port that is not published");
    }
    ensure!(own[0].to_string().starts_with("10.77.0.") && own[1].to_string().starts_with("fd00:77:"), "{view}");
    // Another container has others, and its rule holds for them.
    let others = addresses(&other)?;
    ensure!(others.iter().zip(own).all(|(a, b)| *a != b), "{view} {other}");
    ensure!(mute.ping(LAN4, 1).is_err(), "a rule denies it");
    mute.ping(LAN6, 1)?;
    // Nobody else's: not of the other container, nor one that was made up.
    web.ip("addr add 10.77.0.200/24 dev eth0")?;
    let grown = lab.device.counted(|| {
        let from = web.command("ping").args(["-c1", "-W1", "-I", "10.77.0.200", "10.77.0.1"]).output()?;
        ensure!(!from.status.success(), "an address that the network has not given");
        Ok(())
    })?;
    ensure!(grown.iter().any(|(name, count)| name.contains("spoofed") && *count > 0), "{grown:?}");
    web.ip("addr del 10.77.0.200/24 dev eth0")?;
    // Routes, name servers, and what is said of the lease.
    let routes = web.ip("-4 route")? + &web.ip("-6 route")?;
    ensure!(routes.contains("default via 10.77.0.1 ") && routes.contains("default via fe80::"), "{routes}");
    let text = std::fs::read_to_string(lab.device.file("run/resolv/web.conf"))?;
    ensure!(text.contains("search lan.example\n") && text.contains("nameserver 10.77.0.1\n"), "{text}");
    let leases = lab.device.json(&["leases"])?;
    let lease = leases.as_array().into_iter().flatten().find(|lease| lease["container"] == "web");
    let lease = lease.cloned().unwrap_or_default();
    ensure!(lease["server"] == "10.77.0.1" && lease["state"] == "bound" && lease["expires"].is_u64(), "{leases}");
    let text = lab.device.cli(&["leases"]).ok()?;
    ensure!(text.contains("10.77.0.1"), "{text}");
    // The next start of the container, and of the daemon, find the same addresses and MAC.
    let mac = view["interfaces"][0]["mac_address"].clone();
    drop(web);
    let web = Namespace::new("web")?;
    let again = eventually(SOON, || lab.attach(&web, "web", &["80/tcp"]))?;
    ensure!(addresses(&again)? == own && again["interfaces"][0]["mac_address"] == mac, "{view} {again}");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lab.device.stop(signal)?;
        web.ping(LAN4, 1)?;
        lab.device.start()?;
        web.ping(LAN4, 1)?;
        web.ping(LAN6, 1)?;
    }
    let now = lab.device.json(&["containers"])?;
    ensure!(
        now.as_array().into_iter().flatten().any(|c| c["name"] == "web" && c["ipv4_address"] == view["ipv4_address"]),
        "{now}"
    );
    // A detached container has nothing left, and the server has its address back.
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(web.ip("link show eth0").is_err(), "the link is still there");
    let file = lab.device.file("dnsmasq.leases");
    eventually(SOON, || {
        let text = std::fs::read_to_string(&file)?;
        ensure!(!text.contains(&own[0].to_string()), "{text}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_refused_address_is_given_up_and_a_wrong_one_is_not_taken() -> Result<()> {
    let lab = Lab::new(&json!([]))?;
    let server = lab.dnsmasq(50, 59, &[])?;
    let web = Namespace::new("web")?;
    let before = addresses(&lab.attach(&web, "web", &[])?)?;
    drop((server, web));
    // The same server with other addresses refuses the one that the client had (INIT-REBOOT).
    let server = lab.dnsmasq(60, 69, &[])?;
    let web = Namespace::new("web")?;
    let after = addresses(&eventually(SOON, || lab.attach(&web, "web", &[]))?)?;
    ensure!(before[0] != after[0] && before[1] == after[1], "{before:?} {after:?}");
    web.ping(LAN4, 1)?;
    // The device has an address there too.
    lab.device.ns.ping(after[0], 1)?;
    web.ping("10.77.0.250".parse::<IpAddr>()?, 1)?;
    drop(server);
    // A server that gives an address of the device itself.
    let _server = lab.dnsmasq(60, 69, &["--dhcp-host=02:aa:00:00:00:01,10.77.0.250"])?;
    let bad = Namespace::new("bad")?;
    let run = json!({"name": "bad", "network": {"interfaces": [
        {"name": "eth0", "pool": "lan", "mac_address": "02:aa:00:00:00:01"}]}});
    let file = lab.device.file("bad.json");
    std::fs::write(&file, run.to_string())?;
    let path = bad.path().display().to_string();
    let reply = lab.device.cli(&["attach", "bad", "--netns", &path, "--run", &file.display().to_string()]);
    ensure!(reply.code == Some(1) && reply.stderr.contains("10.77.0.250 is an address of the device"), "{reply:?}");
    ensure!(bad.ip("link show eth0").is_err(), "a link was made");
    web.ping(LAN4, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_of_another_network_takes_nothing_from_the_device() -> Result<()> {
    let lab = Lab::new(&json!([]))?;
    lab.lan.ip("addr add 198.51.100.1/24 dev eth0")?;
    lab.device.ns.ip("route add default via 10.77.0.1")?;
    let _server = lab.udhcpd_in("198.51.100", 50, 59)?;
    let web = Namespace::new("web")?;
    let view = lab.attach(&web, "web", &[])?;
    let own = view["ipv4_address"].as_str().unwrap_or_default().to_owned();
    ensure!(own.starts_with("198.51.100."), "{view}");
    web.ping("198.51.100.1".parse::<IpAddr>()?, 1)?;
    // The device has no address there: what it sends to that network goes to its router, as before.
    let route = lab.device.ns.ip(&format!("route get {own}"))?;
    ensure!(route.contains("via 10.77.0.1 dev wan0"), "{route}");
    let status = lab.device.json(&["status"])?;
    ensure!(status["conditions"].to_string().contains(&format!("not reached at {own}")), "{status}");
    // With one it reaches the container there.
    lab.device.ns.ip("addr add 198.51.100.250/24 dev wan0")?;
    let address = own.parse::<IpAddr>()?;
    eventually(SOON, || lab.device.ns.ping(address, 1))?;
    let status = lab.device.json(&["status"])?;
    ensure!(!status["conditions"].to_string().contains("not reached"), "{status}");
    web.ping("198.51.100.250".parse::<IpAddr>()?, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_lease_is_renewed_and_ends_with_its_server() -> Result<()> {
    let mut lab = Lab::new(&json!([]))?;
    let server = lab.udhcpd(50, 59)?;
    let web = Namespace::new("web")?;
    let view = lab.attach(&web, "web", &[])?;
    let first = lab.lease()?;
    let expires = |lease: &serde_json::Value| lease["expires"].as_u64().unwrap_or_default();
    // The next daemon goes on with it.
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    let renewed = lab.until(9, |lease| expires(lease) > expires(&first))?;
    ensure!(renewed["ipv4_address"] == view["ipv4_address"], "{renewed}");
    web.ping(LAN4, 1)?;
    drop(server);
    // Nobody answers: the address goes, and with it the way out, before somebody else may have it. A container that comes
    // now gets nothing, and leaves nothing.
    std::thread::scope(|scope| {
        let late = scope.spawn(|| without_a_server_nothing_is_attached(&lab));
        lab.until(14, |lease| lease["ipv4_address"].is_null())?;
        late.join().map_err(|_| anyhow::anyhow!("the late container"))?
    })?;
    ensure!(!web.ip("-4 addr show dev eth0")?.contains("10.77."), "the address is still there");
    web.ip(&format!("addr add {}/24 dev eth0", view["ipv4_address"].as_str().unwrap_or_default()))?;
    ensure!(web.ping(LAN4, 1).is_err(), "an address whose lease is over");
    web.ip("addr flush dev eth0 scope global")?;
    let now = lab.device.json(&["containers"])?;
    ensure!(now[0]["conditions"].to_string().contains("has ended"), "{now}");
    // It goes on asking.
    let _server = lab.udhcpd(70, 79)?;
    let other = lab.until(20, |lease| lease["ipv4_address"].is_string())?;
    ensure!(other["ipv4_address"] != view["ipv4_address"], "{other}");
    eventually(SOON, || web.ping(LAN4, 1))?;
    let address = other["ipv4_address"].as_str().unwrap_or_default().parse::<IpAddr>()?;
    eventually(SOON, || lab.device.ns.ping(address, 1))?;
    let now = lab.device.json(&["containers"])?;
    ensure!(now[0]["conditions"] == json!([]), "{now}");
    Ok(())
}

fn without_a_server_nothing_is_attached(lab: &Lab) -> Result<()> {
    let late = Namespace::new("late")?;
    let begun = std::time::Instant::now();
    let path = late.path().display().to_string();
    let reply = lab.device.cli(&["attach", "late", "--netns", &path, "--pool", "lan"]);
    ensure!(reply.code == Some(1) && reply.stderr.contains("no DHCP server and no router answers"), "{reply:?}");
    ensure!(reply.stderr.contains("help: "), "{reply:?}");
    ensure!(begun.elapsed() < harness::patience(Duration::from_secs(15)), "{:?}", begun.elapsed());
    ensure!(late.ip("link show eth0").is_err(), "a link was made");
    ensure!(!lab.device.json(&["leases"])?.to_string().contains("late"), "a lease is left");
    ensure!(!lab.device.json(&["containers"])?.to_string().contains("late"), "a container is left");
    ensure!(!lab.device.pinned()?.contains("child_out/pvlate"), "a pin is left");
    Ok(())
}
