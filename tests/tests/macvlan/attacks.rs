//! What a container must not be able to do by its macvlan interface, as root in its own namespace.

use crate::lab::{LAN4, LAN6, Lab, lan};
use anyhow::{Context, Result, ensure};
use harness::forger::{self, FORGED_MAC, MARK, is_forged};
use harness::raw::RawSocket;
use harness::{Container, Ear, Namespace, SOON, eventually, frame, stranger};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};

const ALL: [u8; 6] = [0xff; 6];

/// Runs a shell's line in the container.
fn shell(container: &Container, line: &str) -> Result<String> {
    harness::output(container.ns.command("sh").args(["-ec", line]))
}

/// Frames that a container on this LAN must not send.
fn forged(mac: [u8; 6], to: [u8; 6], stranger: &Container) -> Result<Vec<Vec<u8>>> {
    let mut all = forger::frames(mac, to)?;
    let udp = |src: IpAddr, dst: IpAddr| frame::udp((src, 9), (dst, 9), MARK);
    for src in [mac, FORGED_MAC, stranger.mac()?] {
        for (theirs, dst) in stranger.addresses().into_iter().zip(lan()) {
            let packet = udp(theirs, dst);
            all.push(frame::ethernet(src, to, frame::kind(&packet), &packet));
        }
        all.push(frame::ethernet(src, ALL, frame::ARP, &frame::arp(1, (FORGED_MAC, stranger.v4), ([0; 6], LAN4))));
        all.push(frame::ethernet(src, ALL, 0x88cc, MARK));
    }
    Ok(all)
}

pub fn send(from: &Container, link: &str, frames: &[Vec<u8>]) -> Result<()> {
    send_in(&from.ns, link, frames)
}

pub fn send_in(ns: &Namespace, link: &str, frames: &[Vec<u8>]) -> Result<()> {
    let socket = RawSocket::open(ns, link)?;
    for frame in frames {
        match socket.send(frame) {
            // What a program drops at egress, the sender is told.
            Err(e) if e.downcast_ref::<nix::errno::Errno>() == Some(&nix::errno::Errno::ENOBUFS) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Fails when one of `ears` has heard a forged frame. What is sent before arrives before this true packet.
fn heard_none(lab: &Lab, from: &Container, ears: &[&Ear]) -> Result<()> {
    from.ns.ping(LAN4, 1)?;
    from.ns.ping(LAN6, 1)?;
    lab.device.json(&["status"])?;
    for ear in ears {
        let heard = ear.heard()?;
        ensure!(!heard.iter().any(|frame| is_forged(frame)), "{}: {heard:02x?}", ear.name());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nothing_forged_leaves() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let ears = [Ear::link(&lab.lan, "eth0")?, Ear::link(&db.ns, "eth0")?, Ear::stack(&lab.device.ns)?];
    let ears: Vec<&Ear> = ears.iter().collect();
    let grown = lab.device.counted(|| {
        for to in [lab.lan.mac("eth0")?, db.mac()?] {
            send(&web, "eth0", &forged(web.mac()?, to, &db)?)?;
        }
        heard_none(&lab, &web, &ears)
    })?;
    for reason in [
        "spoofed-mac",
        "spoofed-ipv4",
        "spoofed-ipv6",
        "spoofed-arp",
        "spoofed-nd",
        "rogue-ra",
        "rogue-dhcp",
        "ethertype",
    ] {
        ensure!(grown[reason] > 0, "{reason}: {grown:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_further_macvlan_speaks_for_no_container() -> Result<()> {
    let deny =
        json!([{"name": "no-lan", "from": {"container": "web"}, "to": {"cidr": "10.77.0.0/28"}, "action": "deny"}]);
    let lab = Lab::new("bridge", deny)?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &["80/tcp"])?);
    web.ns.ip("link add link eth0 name rogue type macvlan mode bridge")?;
    web.ns.ip("link set rogue up")?;
    let rogue = web.ns.mac("rogue")?;
    let (mut ears, to) = (vec![Ear::stack(&lab.lan)?, Ear::stack(&db.ns)?], lab.lan.mac("eth0")?);
    let mut frames = Vec::new();
    let mut add = |src: [u8; 6], dst: [u8; 6], packet: &[u8]| {
        frames.push(frame::ethernet(src, dst, frame::kind(packet), packet));
    };
    // To the LAN: with its own MAC, and in the name of either container, by flows that their programs have not let pass.
    for (src, from) in [(rogue, &web), (web.mac()?, &web), (db.mac()?, &db)] {
        for (own, dst) in from.addresses().into_iter().zip(lan()) {
            add(src, to, &frame::udp((own, 4000), (dst, 4000), MARK));
        }
    }
    // To the other container: in its pool's name, and from outside to a port that is not published.
    for src in [rogue, web.mac()?] {
        for (theirs, from) in db.addresses().into_iter().zip(web.addresses()) {
            add(src, db.mac()?, &frame::udp((from, 4000), (theirs, 4000), MARK));
        }
        add(
            src,
            db.mac()?,
            &frame::udp((IpAddr::from(Ipv4Addr::new(10, 77, 0, 99)), 4000), (db.v4.into(), 4000), MARK),
        );
        add(src, db.mac()?, &frame::udp((LAN4.into(), 4000), (db.v4.into(), 4000), MARK));
    }
    let grown = lab.device.counted(|| {
        send(&web, "rogue", &frames)?;
        db.ns.ping(LAN4, 1)?;
        db.ns.ping(LAN6, 1)?;
        for ear in &mut ears {
            let heard = ear.heard()?;
            ensure!(!heard.iter().any(|packet| is_forged(packet)), "{}: {heard:02x?}", ear.name());
        }
        Ok(())
    })?;
    for reason in ["spoofed-mac", "no-flow", "spoofed-ipv4"] {
        ensure!(grown[reason] > 0, "{reason}: {grown:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_programs_stay_whatever_the_container_does() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let ear = Ear::link(&lab.lan, "eth0")?;
    let (mac, to) = (web.mac()?, lab.lan.mac("eth0")?);
    let frames = forged(mac, to, &db)?;
    let address = format!("addr add {}/24 dev eth0", web.v4);
    for (what, line) in [
        (
            "another name",
            "ip link set eth0 down; ip link set eth0 name lan9; ip link set lan9 name eth0; ip link set eth0 up",
        ),
        ("clsact", "tc qdisc add dev eth0 clsact; tc qdisc del dev eth0 clsact"),
        ("another queue", "tc qdisc replace dev eth0 root pfifo; tc qdisc del dev eth0 root"),
        ("another mode", "ip link set eth0 type macvlan mode vepa; ip link set eth0 type macvlan mode bridge"),
        ("promiscuous", "ip link set eth0 promisc on; ip link set eth0 promisc off"),
        ("another MAC", "ip link set eth0 address 02:00:de:ad:00:11"),
    ] {
        shell(&web, line).with_context(|| what)?;
        let grown = lab.device.counted(|| {
            send(&web, "eth0", &frames)?;
            // What is sent before arrives before this true packet.
            db.ns.ping(LAN4, 1)
        })?;
        let heard = ear.heard()?;
        ensure!(!heard.is_empty(), "{what}: not even the true packet");
        ensure!(!heard.iter().any(|frame| is_forged(frame)), "{what}: {heard:02x?}");
        ensure!(grown["spoofed-mac"] > 0, "{what}: {grown:?}");
    }
    let restore = mac.map(|byte| format!("{byte:02x}")).join(":");
    web.ns.ip(&format!("link set eth0 address {restore}"))?;
    let _ = web.ns.ip(&address);
    let _ = web.ns.ip("route add default via 10.77.0.1");
    eventually(SOON, || web.ns.ping(LAN4, 1)).context("the true one passes")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_was_checked_is_not_changed_behind() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let other = Ipv4Addr::new(10, 77, 0, 99);
    // A filter on the container's own queue runs after the program on its interface.
    let path = lab.device.file("bpf/rewrite");
    stranger::pin(&stranger::rewrite_source(web.v4, other)?, &path)?;
    let filter = "tc filter add dev eth0 parent 1: protocol ip bpf da object-pinned";
    shell(&web, &format!("tc qdisc add dev eth0 root handle 1: htb; {filter} {}", path.display()))?;
    let ear = Ear::stack(&lab.lan)?;
    let grown = lab.device.counted(|| {
        ensure!(web.ns.sh(&format!("ping -c 2 -W 1 {LAN4}")).is_err(), "nothing was changed");
        db.ns.ping(LAN4, 1)
    })?;
    ensure!(grown["spoofed-ipv4"] > 0, "{grown:?}");
    let heard = ear.heard()?;
    ensure!(!heard.is_empty(), "not even the true packet");
    let is_changed = heard.iter().any(|packet| packet.windows(4).any(|four| four == other.octets()));
    ensure!(!is_changed, "{heard:02x?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_host_on_the_lan_speaks_for_no_container() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &["80/udp"])?, lab.attach("db", &[])?);
    let (own, to) = (lab.lan.mac("eth0")?, web.mac()?);
    let ear = Ear::stack(&web.ns)?;
    let (mut packets, mut claims) = (Vec::new(), Vec::new());
    // The port is published, so only the source is wrong.
    for ((theirs, mine), peer) in db.addresses().into_iter().zip(web.addresses()).zip(lan()) {
        for src in [own, FORGED_MAC] {
            let packet = frame::udp((theirs, 4000), (mine, 80), MARK);
            packets.push(frame::ethernet(src, to, frame::kind(&packet), &packet));
        }
        // An answer to a connection that nobody has opened.
        let answer = frame::tcp((peer, 7000), (mine, 4000), 0x12, MARK);
        packets.push(frame::ethernet(own, to, frame::kind(&answer), &answer));
    }
    claims.push(frame::ethernet(own, to, frame::ARP, &frame::arp(2, (own, db.v4), (to, web.v4))));
    for (src, mac) in [(LAN6, own), (db.v6, own), (db.v6, db.mac()?)] {
        let packet = frame::neighbour(136, src, web.v6, db.v6, mac);
        claims.push(frame::ethernet(own, to, frame::IPV6, &packet));
    }
    // With the container's MAC as the sender, and another one in the message.
    let packet = frame::neighbour(136, db.v6, web.v6, db.v6, own);
    claims.push(frame::ethernet(db.mac()?, to, frame::IPV6, &packet));
    let socket = RawSocket::open(&lab.lan, "eth0")?;
    let grown = lab.device.counted(|| {
        packets.iter().chain(&claims).try_for_each(|frame| socket.send(frame))?;
        web.ns.ping(LAN4, 1)?;
        web.ns.ping(LAN6, 1)
    })?;
    let heard = ear.heard()?;
    ensure!(!heard.is_empty() && !heard.iter().any(|packet| is_forged(packet)), "{heard:02x?}");
    ensure!(grown["forged-source"] == 6 && grown["unpublished"] == 2, "{grown:?}");
    ensure!(grown["spoofed-arp"] == 1 && grown["spoofed-nd"] == 1 && grown["spoofed-mac"] == 1, "{grown:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_answer_opens_no_flow() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let (mac, ear) = (web.mac()?, Ear::link(&lab.lan, "eth0")?);
    let mut frames = Vec::new();
    for (own, peer) in web.addresses().into_iter().zip(lan()) {
        let answer = frame::tcp((own, 80), (peer, 4000), 0x12, MARK);
        frames.push(frame::ethernet(mac, lab.lan.mac("eth0")?, frame::kind(&answer), &answer));
    }
    let grown = lab.device.counted(|| {
        send(&web, "eth0", &frames)?;
        heard_none(&lab, &db, &[&ear])
    })?;
    ensure!(grown["no-flow"] == 2, "{grown:?}");
    Ok(())
}
