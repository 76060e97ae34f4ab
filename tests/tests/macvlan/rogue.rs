//! A container that makes itself a further macvlan, or moves its own away.

use crate::attacks::send;
use crate::lab::{LAN4, LAN6, Lab, config, lan};
use anyhow::{Context, Result, ensure};
use harness::forger::{FORGED_MAC, MARK, is_forged};
use harness::{Container, Ear, Namespace, frame};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};

/// Makes the further macvlan `rogue` and returns its MAC.
fn rogue(of: &Container) -> Result<[u8; 6]> {
    of.ns.ip("link add link eth0 name rogue type macvlan mode bridge")?;
    of.ns.ip("link set rogue up")?;
    of.ns.mac("rogue")
}

fn udp(src: IpAddr, dst: IpAddr) -> Vec<u8> {
    frame::udp((src, 4000), (dst, 4000), MARK)
}

/// A frame that carries an IP packet.
fn of(src: [u8; 6], dst: [u8; 6], packet: &[u8]) -> Vec<u8> {
    frame::ethernet(src, dst, frame::kind(packet), packet)
}

/// Fails unless nothing forged has been heard, up to a true packet of `neighbour`.
fn heard_none(ear: &Ear, neighbour: &Container) -> Result<()> {
    neighbour.ns.ping(LAN4, 1)?;
    let heard = ear.heard()?;
    ensure!(!heard.is_empty(), "{}: not even the true packet", ear.name());
    ensure!(!heard.iter().any(|frame| is_forged(frame)), "{}: {heard:02x?}", ear.name());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_devices_mac_speaks_for_no_container() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    rogue(&web)?;
    let (device, to) = (lab.device.ns.mac("wan0")?, lab.lan.mac("eth0")?);
    let ear = Ear::link(&lab.lan, "eth0")?;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for own in [&web, &db] {
        frames.extend(own.addresses().into_iter().zip(lan()).map(|(own, dst)| of(device, to, &udp(own, dst))));
    }
    let tagged = harness::wrap::tagged(&frames[0], &[(0x8100, 0)]);
    frames.push(tagged);
    let stranger = Ipv4Addr::new(10, 77, 0, 99);
    for sender in [(FORGED_MAC, stranger), (device, db.v4)] {
        frames.push(frame::ethernet(device, to, frame::ARP, &frame::arp(2, sender, (FORGED_MAC, LAN4))));
    }
    let nobody = "fd00:77::99".parse()?;
    for (target, mac) in [(nobody, FORGED_MAC), (db.v6, FORGED_MAC)] {
        frames.push(of(device, to, &frame::neighbour(136, nobody, LAN6, target, mac)));
    }
    let grown = lab.device.counted(|| {
        send(&web, "rogue", &frames)?;
        heard_none(&ear, &db)
    })?;
    for reason in ["spoofed-ipv4", "spoofed-ipv6", "spoofed-arp", "spoofed-nd", "vlan-tag"] {
        ensure!(grown[reason] > 0, "{reason}: {grown:?}");
    }
    Ok(())
}

/// A UDP packet from `src` to `port` at `dst`.
fn to_port(src: IpAddr, (dst, port): (IpAddr, u16)) -> Vec<u8> {
    frame::udp((src, 4000), (dst, port), MARK)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_further_macvlan_reaches_no_neighbour() -> Result<()> {
    let deny = json!([{"name": "no", "from": {"container": "web"}, "to": {"container": "db"}, "action": "deny"}]);
    let lab = Lab::new("bridge", deny)?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &["80/udp"])?);
    let (device, to) = (lab.device.ns.mac("wan0")?, db.mac()?);
    let own = rogue(&web)?;
    let strangers: [IpAddr; 2] = ["10.77.0.99".parse()?, "fd00:77::99".parse()?];
    let ear = Ear::link(&db.ns, "eth0")?;
    // A host on the LAN reaches the published port.
    for (src, dst) in lan().into_iter().zip(db.addresses()) {
        let packet = to_port(src, (dst, 80));
        let socket = harness::raw::RawSocket::open(&lab.lan, "eth0")?;
        socket.send(&of(lab.lan.mac("eth0")?, to, &packet))?;
    }
    db.ns.ping(LAN4, 1)?;
    let heard = ear.heard()?.iter().filter(|frame| is_forged(frame)).count();
    ensure!(heard == 2, "{heard} of the LAN's have arrived");
    let all = [0xff; 6];
    for mode in ["bridge", "vepa", "private"] {
        web.ns.ip(&format!("link set rogue type macvlan mode {mode}"))?;
        let mut frames = Vec::new();
        for mac in [own, web.mac()?, device, lab.lan.mac("eth0")?, FORGED_MAC] {
            for (src, dst) in strangers.into_iter().chain(lan()).zip(db.addresses().into_iter().cycle()) {
                frames.push(of(mac, to, &to_port(src, (dst, 80))));
                frames.push(of(mac, all, &to_port(src, (dst, 80))));
            }
            // In the router's name.
            for dst in [to, all] {
                frames.push(frame::ethernet(mac, dst, frame::ARP, &frame::arp(2, (FORGED_MAC, LAN4), (to, db.v4))));
                frames.push(of(mac, dst, &frame::neighbour(136, LAN6, db.v6, LAN6, FORGED_MAC)));
            }
        }
        send(&web, "rogue", &frames)?;
        heard_none(&ear, &db).with_context(|| format!("mode {mode}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_further_macvlan_speaks_to_no_group_in_a_containers_name() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    rogue(&web)?;
    let ear = Ear::link(&lab.lan, "eth0")?;
    let groups: [IpAddr; 2] = ["224.0.0.251".parse()?, "ff02::fb".parse()?];
    let macs = [[1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 0xfb]];
    let mut frames = Vec::new();
    for (((own, group), mac), peer) in db.addresses().into_iter().zip(groups).zip(macs).zip(lan()) {
        frames.push(of(db.mac()?, mac, &to_port(own, (group, 5353))));
        // Nor by ICMP of which no program can note a flow: router discovery (RFC 1256), an extended echo (RFC 8335).
        let message = [&[if own.is_ipv4() { 9 } else { 160 }, 0, 0, 0, 1, 2, 0, 60][..], MARK].concat();
        frames.push(of(db.mac()?, lab.lan.mac("eth0")?, &frame::icmp(own, peer, &message)));
    }
    let grown = lab.device.counted(|| {
        send(&web, "rogue", &frames)?;
        heard_none(&ear, &db)
    })?;
    ensure!(grown["no-flow"] == 4, "{grown:?}");
    // The container itself speaks to them.
    send(&db, "eth0", &[frames[0].clone(), frames[2].clone()])?;
    db.ns.ping(LAN4, 1)?;
    let heard = ear.heard()?.iter().filter(|frame| is_forged(frame)).count();
    ensure!(heard == 2, "{heard} have arrived");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_device_hears_no_container() -> Result<()> {
    // What is sent to groups is nobody's business there, also where containers may reach the device.
    let lab = crate::device::host_access("all", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let (ear, neighbour) = (Ear::stack(&lab.device.ns)?, Ear::link(&db.ns, "eth0")?);
    let groups: [IpAddr; 2] = ["10.77.0.255".parse()?, "ff02::1".parse()?];
    let macs = [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]];
    let mut frames = Vec::new();
    for ((own, group), mac) in web.addresses().into_iter().zip(groups).zip(macs) {
        frames.push(of(web.mac()?, mac, &to_port(own, (group, 5353))));
    }
    send(&web, "eth0", &frames)?;
    lab.device.ns.ping(LAN4, 1)?;
    db.ns.ping(LAN4, 1)?;
    let heard = neighbour.heard()?.iter().filter(|frame| is_forged(frame)).count();
    ensure!(heard == 2, "{heard} have reached the neighbour");
    let heard = ear.heard()?;
    ensure!(!heard.is_empty() && !heard.iter().any(|packet| is_forged(packet)), "{heard:02x?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rule_that_comes_holds_beside_the_guard() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    rogue(&web)?;
    let (mac, to) = (web.mac()?, lab.lan.mac("eth0")?);
    let frames: Vec<Vec<u8>> =
        web.addresses().into_iter().zip(lan()).map(|(own, dst)| of(mac, to, &udp(own, dst))).collect();
    let ear = Ear::link(&lab.lan, "eth0")?;
    // Flows that the program on its interface has let pass.
    send(&web, "eth0", &frames)?;
    send(&web, "rogue", &frames)?;
    db.ns.ping(LAN4, 1)?;
    let heard = ear.heard()?.iter().filter(|frame| is_forged(frame)).count();
    ensure!(heard == 4, "{heard} have passed");
    let deny = json!([{"name": "no", "from": {"container": "web"}, "to": "world", "action": "deny"}]);
    lab.device.configure(&config("bridge", deny))?;
    lab.device.cli(&["reload"]).ok()?;
    let grown = lab.device.counted(|| {
        send(&web, "rogue", &frames)?;
        heard_none(&ear, &db)
    })?;
    ensure!(grown["policy-denied"] >= 2, "{grown:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_parent_keeps_its_guard_without_its_pool() -> Result<()> {
    let mut lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &[])?;
    let own = rogue(&web)?;
    let (to, ear) = (lab.lan.mac("eth0")?, Ear::link(&lab.lan, "eth0")?);
    let frames: Vec<Vec<u8>> = [own, web.mac()?]
        .into_iter()
        .flat_map(|mac| web.addresses().into_iter().zip(lan()).map(move |(src, dst)| of(mac, to, &udp(src, dst))))
        .collect();
    let mut large = config("bridge", json!([]));
    large["network"]["pools"]["lan"]["mtu"] = json!(9000);
    lab.device.stop(Signal::SIGTERM)?;
    lab.device.configure(&large)?;
    lab.device.start()?;
    let status = lab.device.json(&["status"])?;
    ensure!(status["conditions"].to_string().contains("its MTU is"), "{status}");
    let grown = lab.device.counted(|| {
        send(&web, "rogue", &frames)?;
        send(&web, "eth0", &frames)?;
        lab.device.ns.ping(LAN4, 1)?;
        let heard = ear.heard()?;
        ensure!(!heard.is_empty() && !heard.iter().any(|frame| is_forged(frame)), "{heard:02x?}");
        Ok(())
    })?;
    ensure!(grown["spoofed-mac"] >= 4, "{grown:?}");
    lab.device.stop(Signal::SIGTERM)?;
    lab.device.configure(&config("bridge", json!([])))?;
    lab.device.start()?;
    web.ns.ping(LAN4, 1)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_interface_on_another_parent_is_stopped() -> Result<()> {
    let mut lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &[])?;
    lab.device.ns.connect(("wan1", &[]), &lab.lan, ("eth1", &[]))?;
    lab.device.stop(Signal::SIGTERM)?;
    let mut moved = config("bridge", json!([]));
    moved["network"]["pools"]["lan"]["parent"] = json!("wan1");
    lab.device.configure(&moved)?;
    lab.device.start()?;
    ensure!(web.ns.sh(&format!("ping -c 1 -W 1 {LAN4}")).is_err(), "it still sends");
    let view = lab.device.json(&["containers"])?;
    ensure!(view.to_string().contains("not on the parent of its pool"), "{view}");
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(web.ns.ip("link show eth0").is_err(), "the link is still there");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_interface_that_was_moved_away_is_closed() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let (mac, to, away) = (web.mac()?, lab.lan.mac("eth0")?, Namespace::new("away")?);
    let frames: Vec<Vec<u8>> =
        web.addresses().into_iter().zip(lan()).map(|(own, dst)| of(mac, to, &udp(own, dst))).collect();
    web.ns.ip(&format!("link set eth0 netns {}", away.name()))?;
    away.ip("link set eth0 up")?;
    let ear = Ear::link(&lab.lan, "eth0")?;
    lab.device.cli(&["detach", "web"]).ok().context("detach")?;
    away.ip("link show eth0").context("it is the container's")?;
    let socket = harness::raw::RawSocket::open(&away, "eth0")?;
    for frame in &frames {
        // The sender is told what a program drops.
        let _ = socket.send(frame);
    }
    heard_none(&ear, &db)?;
    let view = lab.device.json(&["containers"])?;
    ensure!(!view.to_string().contains("\"web\""), "{view}");
    Ok(())
}

/// Packets in the device's name to a container, and in a container's name to the device: by ports of connections that there
/// are, and by others; and claims of their addresses.
fn in_names(macs: &[[u8; 6]], own: [u8; 6], db: &Container, flows: [u16; 2]) -> Result<Vec<Vec<u8>>> {
    let (to, [opened, served]) = (db.mac()?, flows);
    let mut frames = Vec::new();
    for mac in macs {
        for (device, at) in crate::device::own().into_iter().zip(db.addresses()) {
            for (src, dst) in [(5000, served), (opened, 5000), (4000, 5000)] {
                let (forth, back) = (((device, src), (at, dst)), ((at, dst), (device, src)));
                for (packet, dst) in [(forth, to), (back, own)] {
                    let packet = frame::udp(packet.0, packet.1, MARK);
                    frames.push(of(*mac, dst, &packet));
                    frames.push(of(*mac, [0xff; 6], &packet));
                }
            }
        }
        let (device4, device6) = (Ipv4Addr::new(10, 77, 0, 250), "fd00:77::250".parse()?);
        for dst in [to, [0xff; 6]] {
            frames.push(frame::ethernet(*mac, dst, frame::ARP, &frame::arp(2, (FORGED_MAC, device4), (to, db.v4))));
            frames.push(of(*mac, dst, &frame::neighbour(136, device6, db.v6, device6, FORGED_MAC)));
        }
        for dst in [own, [0xff; 6]] {
            frames.push(frame::ethernet(*mac, dst, frame::ARP, &frame::arp(2, (FORGED_MAC, db.v4), (own, device4))));
            frames.push(of(*mac, dst, &frame::neighbour(136, db.v6, device6, db.v6, FORGED_MAC)));
        }
    }
    Ok(frames)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nobody_speaks_for_the_device_or_to_it_in_a_containers_name() -> Result<()> {
    let lab = crate::device::host_access("all", json!([]))?;
    let (web, db) = (lab.attach("web", &["5000/udp"])?, lab.attach("db", &["5000/udp"])?);
    let rogue_mac = rogue(&web)?;
    let (_, own) = crate::device::device_if(&lab)?;
    // One flow that the device has opened, and one that the container has.
    let flow = |from: &Namespace, to: &Namespace, dst: IpAddr| -> Result<u16> {
        harness::echo::serve(to, dst, 5000)?;
        Ok(harness::echo::udp(from, (dst, 5000).into(), b"x")?.port())
    };
    let [device, _] = crate::device::own();
    let opened = flow(&lab.device.ns, &db.ns, db.v4.into())?;
    let served = flow(&db.ns, &lab.device.ns, device)?;
    let ears = [Ear::stack(&db.ns)?, Ear::stack(&lab.device.ns)?];
    let macs = [own, lab.device.ns.mac("wan0")?, web.mac()?, rogue_mac, FORGED_MAC, lab.lan.mac("eth0")?];
    let by_rogue = in_names(&macs, own, &db, [opened, served])?;
    let silent = |who: &str| -> Result<()> {
        for ear in &ears {
            let heard = ear.heard()?;
            ensure!(!heard.iter().any(|packet| is_forged(packet)), "{who}: {}: {heard:02x?}", ear.name());
        }
        for (device, at) in crate::device::own().into_iter().zip(db.addresses()) {
            lab.device.ns.ping(at, 1).with_context(|| who.to_owned())?;
            db.ns.ping(device, 1).with_context(|| who.to_owned())?;
        }
        for ns in [&db.ns, &lab.device.ns] {
            let known = ns.ip("neigh")?;
            ensure!(!known.contains("02:00:de:ad:00:11"), "{who}: {known}");
        }
        Ok(())
    };
    for mode in ["bridge", "vepa", "private"] {
        web.ns.ip(&format!("link set rogue type macvlan mode {mode}"))?;
        for link in ["rogue", "eth0"] {
            send(&web, link, &by_rogue)?;
        }
        lab.device.ns.ping(db.v4, 1)?;
        silent(&format!("a further macvlan of mode {mode}"))?;
    }
    // The LAN too, in whoever's name.
    let socket = harness::raw::RawSocket::open(&lab.lan, "eth0")?;
    let macs: Vec<[u8; 6]> = macs.into_iter().chain([db.mac()?]).collect();
    in_names(&macs, own, &db, [opened, served])?.iter().try_for_each(|frame| socket.send(frame))?;
    db.ns.ping(LAN4, 1)?;
    silent("a host on the LAN")?;
    // With the MAC of the device's interface, the parent lets nothing in.
    let frames = in_names(&[own], own, &db, [opened, served])?;
    let grown = lab.device.counted(|| {
        frames.iter().try_for_each(|frame| socket.send(frame))?;
        db.ns.ping(LAN4, 1)
    })?;
    ensure!(grown["spoofed-mac"] == frames.len() as u64, "of {}: {grown:?}", frames.len());
    // What the device sends to a container has left nothing on the wire, and the wire learns nothing of its interface.
    lab.lan.ping(device, 1)?;
    let known = lab.lan.ip("neigh")?;
    let text = own.map(|byte| format!("{byte:02x}")).join(":");
    ensure!(!known.contains(&text), "{known}");
    Ok(())
}
