//! What device and containers of a macvlan pool of mode `bridge` send to each other, and the device's interface for that.

use crate::lab::{LAN4, LAN6, Lab, lan, pool};
use anyhow::{Context, Result, ensure};
use harness::{Container, Ear, Namespace, SOON, echo, eventually, frame};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Both addresses of the device on the LAN.
pub fn own() -> [IpAddr; 2] {
    [[10, 77, 0, 250].into(), [0xfd00, 0x77, 0, 0, 0, 0, 0, 0x250].into()]
}

/// The name and the MAC of the device's interface beside those of containers.
pub fn device_if(lab: &Lab) -> Result<(String, [u8; 6])> {
    let links = lab.device.ns.ip("-br link")?;
    let name = links.split_whitespace().find(|word| word.starts_with("pvdev-")).context("no such interface")?;
    let name = name.split('@').next().unwrap_or_default().to_owned();
    let mac = lab.device.ns.mac(&name)?;
    Ok((name, mac))
}

pub fn host_access(access: &str, policies: Value) -> Result<Lab> {
    let mut lan = pool("wan0", "bridge");
    lan["host_access"] = json!(access);
    Lab::with(&json!({"network": {"pools": {"lan": lan}, "policies": policies}}))
}

/// Fails unless the connection is made within a moment.
fn knock(ns: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    ns.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_millis(400))?))
}

/// Fails when a ping is answered.
fn silent(ns: &Namespace, to: IpAddr) -> Result<()> {
    ensure!(ns.sh(&format!("ping -n -q -c 1 -W 0.4 {to}")).is_err(), "{to} answers");
    Ok(())
}

fn reach(from: &Namespace, to: IpAddr, as_whom: IpAddr) -> Result<()> {
    let at = SocketAddr::new(to, 5000);
    ensure!(echo::tcp(from, at, &[7; 100_000])?.ip() == as_whom, "TCP from another address");
    ensure!(echo::udp(from, at, b"udp")?.ip() == as_whom, "UDP from another address");
    from.ping(to, 1)?;
    from.sh(&format!("ping -c 1 -W 2 -s 4000 {to}")).context("fragments")?;
    Ok(())
}

/// Whether the LAN has heard a frame with this MAC in it.
fn names(ear: &Ear, mac: [u8; 6]) -> Result<bool> {
    Ok(ear.heard()?.iter().any(|frame| frame.windows(6).any(|six| six == mac)))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn device_and_containers_reach_each_other() -> Result<()> {
    let lab = host_access("all", json!([]))?;
    ensure!(device_if(&lab).is_err(), "an interface without a container");
    let ear = Ear::link(&lab.lan, "eth0")?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let (name, mac) = device_if(&lab)?;
    lab.device.ns.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1")?;
    for ((at, device), peer) in web.addresses().into_iter().zip(own()).zip(lan()) {
        echo::serve(&web.ns, at, 5000)?;
        echo::serve(&lab.device.ns, device, 5000)?;
        reach(&lab.device.ns, at, device).with_context(|| format!("the device to {at}"))?;
        reach(&web.ns, device, at).with_context(|| format!("a container to {device}"))?;
        // Nobody listens there, and the ICMP error says so.
        for (ns, to) in [(&lab.device.ns, at), (&web.ns, device)] {
            let refused = ns.run(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.connect(SocketAddr::new(to, 9999))?;
                socket.send(b"x")?;
                Ok(socket.recv(&mut [0; 8]).map_err(|e| e.kind()))
            })?;
            ensure!(refused == Err(std::io::ErrorKind::ConnectionRefused), "{to}: {refused:?}");
        }
        lab.device.ns.ping(peer, 1)?;
        lab.lan.ping(device, 1)?;
    }
    ensure!(!names(&ear, mac)?, "the LAN has heard of the device's interface");
    let view = lab.device.ns.ip(&format!("-d link show {name}"))?;
    ensure!(view.contains("mode vepa"), "{view}");
    lab.device.cli(&["detach", "web"]).ok()?;
    let routes = lab.device.ns.ip(&format!("route show dev {name}"))?;
    let leads_to = |to: &Container| routes.contains(&format!("{} proto", to.v4));
    ensure!(!leads_to(&web) && leads_to(&db), "{routes}");
    lab.device.cli(&["detach", "db"]).ok()?;
    ensure!(device_if(&lab).is_err(), "it stays after the last container");
    let pins = lab.device.pinned()?;
    ensure!(!pins.contains("pv_device_out/") && !pins.contains("pv_device_in/"), "{pins}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn host_access_and_rules_decide() -> Result<()> {
    let rules = json!([
        {"name": "to-db", "from": "host", "to": {"container": "db"}, "action": "deny"},
        {"name": "from-db", "from": {"container": "db"}, "to": "host", "ports": ["tcp/5000"], "action": "allow"},
        {"name": "from-mute", "from": {"container": "mute"}, "to": "host", "action": "deny"},
    ]);
    for access in ["none", "services"] {
        let lab = host_access(access, rules.clone())?;
        let [web, db, mute] = ["web", "db", "mute"].map(|name| lab.attach(name, &[]));
        let (web, db, mute) = (web?, db?, mute?);
        for (place, device) in own().into_iter().enumerate() {
            let [to_web, to_db, to_mute] = [&web, &db, &mute].map(|c| c.addresses()[place]);
            echo::serve(&web.ns, to_web, 5000)?;
            reach(&lab.device.ns, to_web, device).with_context(|| format!("{access}: the device to {to_web}"))?;
            echo::serve(&lab.device.ns, device, 53)?;
            echo::serve(&lab.device.ns, device, 5000)?;
            let grown = lab.device.counted(|| {
                let refused = knock(&web.ns, SocketAddr::new(device, if access == "none" { 5000 } else { 53 }));
                ensure!(refused.is_err(), "{access}: {device}");
                Ok(())
            })?;
            ensure!(grown["host-access"] > 0, "{access}: {grown:?}");
            if access == "none" {
                silent(&web.ns, device).context("none")?;
                continue;
            }
            web.ns.ping(device, 1)?;
            silent(&lab.device.ns, to_db)?;
            echo::tcp(&db.ns, SocketAddr::new(device, 5000), b"allowed")?;
            lab.device.ns.ping(to_mute, 1)?;
            let grown = lab.device.counted(|| silent(&mute.ns, device))?;
            ensure!(grown["policy-denied"] > 0, "{grown:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn it_follows_the_parents_addresses_and_is_made_again() -> Result<()> {
    let lab = host_access("all", json!([]))?;
    let web = lab.attach("web", &[])?;
    let (name, _) = device_if(&lab)?;
    let new: [IpAddr; 2] = ["10.77.0.251".parse()?, "fd00:77::251".parse()?];
    let ns = &lab.device.ns;
    for (old, to) in [("10.77.0.250/24", "10.77.0.251/24"), ("fd00:77::250/64", "fd00:77::251/64")] {
        ns.ip(&format!("addr del {old} dev wan0"))?;
        ns.ip(&format!("addr add {to} dev wan0 nodad"))?;
    }
    for ((old, new), at) in own().into_iter().zip(new).zip(web.addresses()) {
        echo::serve(&web.ns, at, 6000)?;
        eventually(SOON, || {
            let routes = ns.ip(&format!("route get {at}"))?;
            ensure!(routes.contains(&format!("src {new}")) && routes.contains("pvdev-"), "{routes}");
            Ok(())
        })?;
        let seen = echo::udp(ns, SocketAddr::new(at, 6000), b"x")?;
        ensure!(seen.ip() == new, "{seen}");
        web.ns.ping(new, 1)?;
        silent(&web.ns, old).context("it is still the device's")?;
    }
    ns.ip(&format!("link del {name}"))?;
    eventually(SOON, || ns.ping(web.v4, 1)).context("deleted")?;
    ns.ip(&format!("link set {name} down"))?;
    eventually(SOON, || ns.ping(web.v6, 1)).context("set down")?;
    ns.ip(&format!("route del {} dev {name}", web.v4))?;
    eventually(SOON, || ns.ping(web.v4, 1)).context("without its route")?;
    let status = lab.device.json(&["status"])?;
    ensure!(!status["conditions"].to_string().contains("does not reach"), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_killed_daemon_leaves_it_as_it_was() -> Result<()> {
    let mut lab = host_access("services", json!([]))?;
    let web = lab.attach("web", &[])?;
    for (at, device) in web.addresses().into_iter().zip(own()) {
        echo::serve(&web.ns, at, 5000)?;
        echo::serve(&lab.device.ns, device, 5000)?;
    }
    let before = device_if(&lab)?;
    let works = |lab: &Lab| -> Result<()> {
        for (at, device) in web.addresses().into_iter().zip(own()) {
            echo::udp(&lab.device.ns, SocketAddr::new(at, 5000), b"x")?;
            web.ns.ping(device, 1)?;
            ensure!(knock(&web.ns, SocketAddr::new(device, 5000)).is_err(), "{device} is open");
        }
        Ok(())
    };
    works(&lab)?;
    lab.device.stop(Signal::SIGKILL)?;
    works(&lab).context("without a daemon")?;
    harness::other_layout::grow(&lab.device, pv_net_common::names::MAP_FLOWS, 8)?;
    lab.device.start()?;
    works(&lab).context("with another build's programs")?;
    ensure!(device_if(&lab)? == before, "another one");
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(device_if(&lab).is_err(), "it stays");
    Ok(())
}

/// A packet of the outside for a container, in a frame to the device.
fn routed(lab: &Lab, src: IpAddr, to: &Container, data: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (from, device) = (lab.lan.mac("eth0")?, lab.device.ns.mac("wan0")?);
    let of = |dst: IpAddr| frame::udp((src, 4000), (dst, 5000), data);
    let all = to.addresses().into_iter().filter(|dst| dst.is_ipv4() == src.is_ipv4());
    Ok(all.map(of).map(|packet| frame::ethernet(from, device, frame::kind(&packet), &packet)).collect())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nobody_is_routed_by_it() -> Result<()> {
    let mut pools =
        json!({"lan": pool("wan0", "bridge"), "inner": harness::configs::pool(3), "open": harness::configs::pool(4)});
    for name in ["lan", "inner", "open"] {
        pools[name]["isolated"] = json!(false);
    }
    pools["inner"]["nat"] = json!(true);
    let lab = Lab::with(&json!({"network": {"uplinks": ["wan0"], "pools": pools}}))?;
    let web = lab.attach("web", &["5000/udp", "5000/tcp"])?;
    let (inner, open) = (lab.device.attach("inner", "inner")?, lab.device.attach("open", "open")?);
    let ns = &lab.device.ns;
    ns.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    // A program that makes all that is forwarded look like the device's own.
    ns.sh("nft add table inet other")?;
    ns.sh("nft add chain inet other post { type nat hook postrouting priority 100 ; }")?;
    ns.sh("nft add rule inet other post masquerade")?;
    for at in web.addresses() {
        echo::serve(&web.ns, at, 5000)?;
        ns.ping(at, 1)?;
        for from in [&inner, &open] {
            silent(&from.ns, at).context("from another pool")?;
            ensure!(knock(&from.ns, SocketAddr::new(at, 5000)).is_err(), "{at} is reached from another pool");
        }
    }
    // Where somebody records frames, the kernel makes fragments of IPv6 anew, without noting by which link they came.
    let (ear, _recorder) = (Ear::stack(&web.ns)?, Ear::link(ns, "wan0")?);
    let mut frames = Vec::new();
    for src in ["10.77.0.99", "192.0.2.9", "fd00:77::99", "2001:db8::9"] {
        frames.extend(routed(&lab, src.parse()?, &web, harness::forger::MARK)?);
        // In fragments, which the kernel puts together and makes anew.
        let long = [harness::forger::MARK, &[0; 2400]].concat();
        for whole in routed(&lab, src.parse()?, &web, &long)? {
            let (ethernet, packet) = whole.split_at(14);
            let pieces = harness::wrap::fragments(packet, 77, &[0, 1200]);
            frames.extend(pieces.iter().map(|piece| [ethernet, piece].concat()));
        }
    }
    let socket = harness::raw::RawSocket::open(&lab.lan, "eth0")?;
    let grown = lab.device.counted(|| {
        frames.iter().try_for_each(|frame| socket.send(frame))?;
        lab.lan.ping(own()[0], 1)?;
        ns.ping(web.v4, 1)?;
        ns.ping(web.v6, 1)
    })?;
    let heard = ear.heard()?;
    ensure!(!heard.is_empty() && !heard.iter().any(|packet| harness::forger::is_forged(packet)), "{heard:02x?}");
    ensure!(grown["pool-isolated"] > 0, "nothing was forwarded: {grown:?}");
    // Nor does a container get out by it.
    let (_, mac) = device_if(&lab)?;
    let (outside, wire) = (Ear::stack(&lab.lan)?, Ear::stack(ns)?);
    let mut frames = Vec::new();
    for (at, dst) in web.addresses().into_iter().zip(lan()).chain(web.addresses().into_iter().zip(inner.addresses())) {
        let packet = frame::udp((at, 4000), (dst, 5000), harness::forger::MARK);
        frames.push(frame::ethernet(web.mac()?, mac, frame::kind(&packet), &packet));
    }
    crate::attacks::send(&web, "eth0", &frames)?;
    web.ns.ping(LAN4, 1)?;
    for ear in [outside, wire, Ear::stack(&inner.ns)?] {
        let heard = ear.heard()?;
        ensure!(!heard.iter().any(|packet| harness::forger::is_forged(packet)), "{}: {heard:02x?}", ear.name());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn only_the_devices_own_packets_leave_by_it() -> Result<()> {
    let lab = host_access("all", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let ((name, mac), ns) = (device_if(&lab)?, &lab.device.ns);
    let (nobody4, nobody6): (Ipv4Addr, Ipv6Addr) = ("10.77.0.99".parse()?, "fd00:77::99".parse()?);
    let (own4, own6): (Ipv4Addr, Ipv6Addr) = ("10.77.0.250".parse()?, "fd00:77::250".parse()?);
    let mut frames = Vec::new();
    // To a container from an address that is not the device's, and to another container's MAC.
    for ((nobody, device), at) in [nobody4.into(), nobody6.into()].into_iter().zip(own()).zip(web.addresses()) {
        for (src, to) in [(nobody, web.mac()?), (device, db.mac()?)] {
            let packet = frame::udp((src, 4000), (at, 5000), harness::forger::MARK);
            frames.push(frame::ethernet(mac, to, frame::kind(&packet), &packet));
        }
    }
    // In another's name, with another MAC, and about somebody who is no container.
    for (sender, target) in [((mac, nobody4), web.v4), ((web.mac()?, own4), web.v4), ((mac, own4), LAN4)] {
        frames.push(frame::ethernet(mac, [0xff; 6], frame::ARP, &frame::arp(1, sender, ([0; 6], target))));
    }
    let group = "ff02::1:ff00:1".parse()?;
    for (to, packet) in [
        (web.mac()?, frame::neighbour(136, nobody6, web.v6, nobody6, mac)),
        (web.mac()?, frame::neighbour(136, own6, web.v6, own6, harness::forger::FORGED_MAC)),
        ([0x33, 0x33, 0xff, 0, 0, 1], frame::neighbour(135, own6, group, LAN6, mac)),
    ] {
        frames.push(frame::ethernet(mac, to, frame::IPV6, &packet));
    }
    let ears = [Ear::link(&web.ns, "eth0")?, Ear::link(&db.ns, "eth0")?, Ear::link(&lab.lan, "eth0")?];
    let silent = || -> Result<()> {
        for at in lan() {
            web.ns.ping(at, 1)?;
            db.ns.ping(at, 1)?;
        }
        for ear in &ears {
            let heard = ear.heard()?;
            ensure!(!heard.is_empty(), "{}: not even the true packets", ear.name());
            ensure!(!heard.iter().any(|frame| frame[6..12] == mac), "{}: {heard:02x?}", ear.name());
        }
        Ok(())
    };
    let grown = lab.device.counted(|| {
        crate::attacks::send_in(ns, &name, &frames)?;
        silent()
    })?;
    ensure!(grown["forged-source"] == 2 && grown["not-addressed"] == 2 && grown["spoofed-nd"] == 1, "{grown:?}");
    // Nor does it answer for others, whatever its settings say.
    for (family, key) in [("ipv4", "proxy_arp"), ("ipv6", "proxy_ndp")] {
        let (conf, neigh) = (format!("net.{family}.conf.{name}"), format!("net.{family}.neigh.{name}"));
        ns.sh(&format!("sysctl -qw {conf}.forwarding=1 {conf}.{key}=1 {neigh}.proxy_delay=0"))?;
    }
    ns.ip(&format!("neigh add proxy {LAN6} dev {name}"))?;
    web.ns.ip("neigh flush dev eth0")?;
    silent().context("in a proxy's settings")?;
    for at in web.addresses() {
        ns.ping(at, 1)?;
    }
    Ok(())
}
