//! What a host on the LAN sends in the name of a container, down to its MAC.

use crate::lab::{LAN4, LAN6, Lab};
use anyhow::{Context, Result, ensure};
use harness::forger::{MARK, is_forged};
use harness::raw::RawSocket;
use harness::{Container, Ear, frame};
use serde_json::json;
use std::net::IpAddr;

const ALL: [u8; 6] = [0xff; 6];

fn udp(from: &Container, to: &Container) -> Result<Vec<Vec<u8>>> {
    let (src, dst) = (from.mac()?, to.mac()?);
    let pairs = from.addresses().into_iter().zip(to.addresses());
    let packets = pairs.map(|(from, to)| frame::udp((from, 4000), (to, 5000), MARK));
    Ok(packets.map(|packet| frame::ethernet(src, dst, frame::kind(&packet), &packet)).collect())
}

/// Sends by the LAN, up to two true packets to `to`, and fails when one of `frames` has arrived.
fn refused(lab: &Lab, to: &Container, ear: &Ear, frames: &[Vec<u8>]) -> Result<()> {
    let socket = RawSocket::open(&lab.lan, "eth0")?;
    frames.iter().try_for_each(|frame| socket.send(frame))?;
    to.ns.ping(LAN4, 1)?;
    to.ns.ping(LAN6, 1)?;
    let heard = ear.heard()?;
    ensure!(!heard.is_empty() && !heard.iter().any(|packet| is_forged(packet)), "{}: {heard:02x?}", ear.name());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_containers_own_mac_does_not_make_a_container() -> Result<()> {
    for mode in ["bridge", "private"] {
        let lab = Lab::new(mode, json!([]))?;
        let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
        let ear = Ear::stack(&db.ns)?;
        // By ports of flows that the container has opened.
        let frames = udp(&web, &db)?;
        crate::attacks::send(&web, "eth0", &frames)?;
        db.ns.ping(LAN4, 1)?;
        let arrived = ear.heard()?.iter().filter(|packet| is_forged(packet)).count();
        ensure!(arrived == if mode == "bridge" { 2 } else { 0 }, "{mode}: {arrived} have arrived");
        let grown = lab.device.counted(|| refused(&lab, &db, &ear, &frames).context(mode))?;
        ensure!(grown["spoofed-mac"] >= 2, "{mode}: {grown:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_containers_address_is_told_by_its_own_frames_only() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    let own = lab.lan.mac("eth0")?;
    // What it says is true, but it is not the container that says it.
    let tells = frame::arp(2, (web.mac()?, web.v4), (db.mac()?, db.v4));
    let frames = [own, web.mac()?].map(|src| frame::ethernet(src, ALL, frame::ARP, &tells));
    let ears = [RawSocket::open_for(&db.ns, "eth0", frame::ARP)?, RawSocket::open_for(&web.ns, "eth0", frame::ARP)?];
    let grown = lab.device.counted(|| refused(&lab, &db, &Ear::stack(&db.ns)?, &frames))?;
    ensure!(grown["spoofed-arp"] >= 1 && grown["spoofed-mac"] >= 1, "{grown:?}");
    for ear in &ears {
        let heard = ear.queued()?;
        ensure!(!heard.iter().any(|frame| frame[14..].starts_with(&tells)), "{heard:02x?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nobody_sends_from_the_receivers_address_or_a_group() -> Result<()> {
    let lab = Lab::new("vepa", json!([]))?;
    let web = lab.attach("web", &[])?;
    let (own, to, ear) = (web.mac()?, lab.lan.mac("eth0")?, Ear::stack(&web.ns)?);
    // A flow of the container to itself, by the wire.
    let frames = udp(&web, &web)?;
    let by_wire: Vec<Vec<u8>> = frames.iter().map(|frame| [&to[..], &frame[6..]].concat()).collect();
    crate::attacks::send(&web, "eth0", &by_wire)?;
    let grown = lab.device.counted(|| refused(&lab, &web, &ear, &frames))?;
    ensure!(grown["spoofed-mac"] == 2, "{grown:?}");
    let discovery = RawSocket::open_for(&web.ns, "eth0", frame::IPV6)?;
    let packet = frame::neighbour(136, "ff02::1".parse()?, web.v6, LAN6, to);
    let grown = lab.device.counted(|| refused(&lab, &web, &ear, &[frame::ethernet(to, own, frame::IPV6, &packet)]))?;
    ensure!(grown["martian"] == 1, "{grown:?}");
    ensure!(!discovery.queued()?.iter().any(|frame| frame[14..].starts_with(&packet)), "it has arrived");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn link_local_addresses_do_not_pass_to_the_device() -> Result<()> {
    let lab = crate::device::host_access("all", json!([]))?;
    let web = lab.attach("web", &[])?;
    let (_, mac) = crate::device::device_if(&lab)?;
    let [_, device] = crate::device::own();
    let ear = Ear::stack(&lab.device.ns)?;
    let of = |src: IpAddr| -> Result<Vec<u8>> {
        let packet = frame::udp((src, 4000), (device, 5000), MARK);
        Ok(frame::ethernet(web.mac()?, mac, frame::IPV6, &packet))
    };
    let arrived = |src: IpAddr| -> Result<usize> {
        crate::attacks::send(&web, "eth0", &[of(src)?])?;
        web.ns.ping(device, 1)?;
        Ok(ear.heard()?.iter().filter(|packet| is_forged(packet)).count())
    };
    ensure!(arrived(web.v6.into())? == 1, "not even from its own address");
    let link_local = pv_net_common::Ip::link_local(web.mac()?).octets();
    ensure!(arrived(std::net::Ipv6Addr::from(link_local).into())? == 0, "it has arrived");
    Ok(())
}
