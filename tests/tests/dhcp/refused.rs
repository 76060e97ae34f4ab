//! What is answered and what is not, and to whom it goes.

use crate::raw::{ACK, DECLINE, DISCOVER, INFORM, Message, NAK, NOTHING, OFFER, Peer, RELEASE, REQUEST, mac};
use crate::{RANGE, SERVER, Stranger, condition, config, is_in_range, lease_of, leases_of_clients, metric};
use anyhow::{Result, ensure};
use harness::{Device, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::{Ipv4Addr, UdpSocket};

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_no_question_of_a_client_is_not_answered() -> Result<()> {
    let device = Device::started(&config(json!({})))?;
    let stranger = Stranger::new(&device, "one")?;
    let mut peer = Peer::of(&stranger)?;
    let own = peer.mac;
    let message = move |xid| Message::new(DISCOVER, own, xid);
    let cut = |message: Message, len: usize| message.bytes()[..len].to_vec();
    // By a relay, BOOTP with and without options, an answer, no Ethernet, and what is broken.
    type Make = Box<dyn Fn(u32) -> Vec<u8>>;
    let odd: Vec<(&str, Make)> = vec![
        ("relayed", Box::new(move |xid| message(xid).change(24, 10).change(27, 9).bytes())),
        ("bootp", Box::new(move |xid| cut(message(xid), 236))),
        ("bootp", Box::new(move |xid| Message { options: vec![1, 4, 255, 255, 255, 0], ..message(xid) }.bytes())),
        ("other", Box::new(move |xid| message(xid).change(0, 2).bytes())),
        ("other", Box::new(move |xid| Message::new(OFFER, own, xid).bytes())),
        ("malformed", Box::new(move |xid| message(xid).change(2, 255).bytes())),
        ("malformed", Box::new(move |xid| message(xid).option(50, &[10]).bytes())),
        ("malformed", Box::new(move |xid| cut(message(xid), 100))),
        ("forged", Box::new(move |xid| Message::new(DISCOVER, mac(1), xid).bytes())),
    ];
    // From now on the server is there.
    peer.get(own)?;
    for (kind, make) in &odd {
        let line = format!("pv_net_dhcp_received_total{{type=\"{kind}\"}}");
        let (xid, before) = (peer.xid(), metric(&device, &line)?);
        peer.send(own, &make(xid))?;
        eventually(SOON, || {
            let now = metric(&device, &line)?;
            ensure!(now == before + 1, "{kind}: {now}");
            Ok(())
        })?;
        ensure!(peer.answer(xid, NOTHING)?.is_none(), "{kind} is answered");
    }
    // The server goes on, and of all of this nothing stays.
    ensure!(peer.get(own)? == RANGE[0], "the first address is taken");
    ensure!(leases_of_clients(&device)?.len() == 1, "{}", device.json(&["leases"])?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn each_state_of_a_request_has_its_answer() -> Result<()> {
    let device = Device::started(&config(json!({})))?;
    let stranger = Stranger::new(&device, "one")?;
    let mut peer = Peer::of(&stranger)?;
    let own = peer.mac;
    let address = peer.get(own)?;
    let request = |xid| Message::new(REQUEST, own, xid);
    let elsewhere = Ipv4Addr::new(192, 168, 7, 7);
    ensure!(peer.ask(own, |xid| request(xid).requested(address))?.kind == ACK, "INIT-REBOOT");
    ensure!(peer.ask(own, |xid| request(xid).ciaddr(address))?.kind == ACK, "RENEWING");
    ensure!(peer.ask(own, |xid| request(xid).requested(RANGE[1]))?.kind == NAK, "INIT-REBOOT, another's");
    ensure!(peer.ask(own, |xid| request(xid).requested(elsewhere))?.kind == NAK, "INIT-REBOOT, another network");
    let refused = peer.ask(own, |xid| request(xid).ciaddr(elsewhere))?;
    ensure!(refused.kind == NAK && refused.to == Ipv4Addr::BROADCAST && refused.mac == [0xff; 6], "{refused:?}");
    let told = peer.ask(own, |xid| Message::new(INFORM, own, xid).ciaddr(address))?;
    ensure!(told.kind == ACK && told.yours.is_unspecified() && told.to == address, "{told:?}");
    // Who is nobody's yet is left alone, and so is who chose another server.
    for make in [
        |xid| Message::new(REQUEST, mac(1), xid).requested(RANGE[1]),
        |xid| Message::new(REQUEST, mac(1), xid).requested(RANGE[1]).server(Ipv4Addr::new(10, 0, 3, 9)),
    ] {
        let xid = peer.xid();
        peer.send(mac(1), &make(xid).bytes())?;
        ensure!(peer.answer(xid, NOTHING)?.is_none(), "it is answered");
    }
    // Without the flag of broadcast it goes to the client alone, before that has an address.
    let offer = peer.ask(mac(2), |xid| Message::new(DISCOVER, mac(2), xid))?;
    ensure!(offer.mac == mac(2) && offer.to == offer.yours && is_in_range(offer.yours), "{offer:?}");
    let offer = peer.ask(mac(2), |xid| Message::new(DISCOVER, mac(2), xid).change(10, 0x80))?;
    ensure!(offer.mac == [0xff; 6] && offer.to == Ipv4Addr::BROADCAST, "{offer:?}");
    // It is given back, and what is declined is nobody's for a while.
    peer.send(own, &Message::new(RELEASE, own, 1).ciaddr(address).server(SERVER).bytes())?;
    eventually(SOON, || {
        ensure!(leases_of_clients(&device)?.is_empty(), "{}", device.json(&["leases"])?);
        Ok(())
    })?;
    ensure!(peer.get(own)? == address, "another one than before");
    peer.send(own, &Message::new(DECLINE, own, 1).requested(address).server(SERVER).bytes())?;
    eventually(SOON, || {
        ensure!(leases_of_clients(&device)?.is_empty(), "{}", device.json(&["leases"])?);
        Ok(())
    })?;
    ensure!(peer.get(own)? != address, "what was declined");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_said_reaches_the_server_and_the_client_alone() -> Result<()> {
    let device = Device::started(&config(json!({})))?;
    let (web, db) = (device.attach("web", "internal")?, device.attach("db", "internal")?);
    let stranger = Stranger::new(&device, "one")?;
    let (mut inside, ear, mut outside) = (Peer::on(&web.ns, "eth0")?, Peer::on(&db.ns, "eth0")?, Peer::of(&stranger)?);
    let own = inside.mac;
    let offer = inside.ask(own, |xid| Message::new(DISCOVER, own, xid))?;
    ensure!(offer.kind == OFFER && offer.yours == web.v4, "{offer:?}");
    let forged = inside.xid();
    inside.send(own, &Message::new(DISCOVER, ear.mac, forged).bytes())?;
    ensure!(inside.answer(forged, NOTHING)?.is_none(), "another container's MAC in the message");
    let stranger_mac = outside.mac;
    let address = outside.get(stranger_mac)?;
    ensure!(is_in_range(address), "{address}");
    // All of this is over, as it was answered.
    // What a container says goes to the server, and what that says to whom it is for.
    let is_dhcp = |frame: &Vec<u8>| {
        let port = frame.get(36..38).filter(|_| frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17));
        port == Some(&[0, 68]) || port == Some(&[0, 67]) && frame[6..12] == own
    };
    let heard: Vec<_> = ear.socket.queued()?.into_iter().filter(is_dhcp).collect();
    ensure!(heard.is_empty(), "another container hears {heard:02x?}");
    ensure!(lease_of(&device, &stranger.mac_text())?["ipv4_address"] == address.to_string(), "no lease");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_that_floods_takes_neither_the_range_nor_the_server() -> Result<()> {
    let device = Device::started(&config(json!({"leases_per_port": 8})))?;
    let (flood, other) = (Stranger::new(&device, "one")?, Stranger::new(&device, "two")?);
    let mut peer = Peer::of(&flood)?;
    // As many as wait in a socket and more, each from a MAC of its own; until the server has seen many of them.
    eventually(SOON, || {
        for number in 0..2000 {
            let xid = peer.xid();
            peer.send(mac(number), &Message::new(DISCOVER, mac(number), xid).bytes())?;
        }
        let refused = metric(&device, "pv_net_dhcp_unanswered_total{reason=\"port-limit\"}")?;
        ensure!(refused > 1000, "{refused}");
        Ok(())
    })?;
    let mut peer = Peer::of(&other)?;
    let own = peer.mac;
    // What floods the socket may cost it a message, as on any wire: it asks again.
    eventually(SOON, || {
        let xid = peer.xid();
        peer.send(own, &Message::new(DISCOVER, own, xid).bytes())?;
        ensure!(peer.answer(xid, NOTHING)?.is_some(), "no offer");
        ensure!(is_in_range(peer.get(own)?), "no address");
        Ok(())
    })?;
    // One MAC that says nothing else is slowed down.
    eventually(SOON, || {
        for _ in 0..100 {
            let xid = peer.xid();
            peer.send(own, &Message::new(INFORM, own, xid).ciaddr(RANGE[0]).bytes())?;
        }
        let limited = metric(&device, "pv_net_dhcp_received_total{type=\"limited\"}")?;
        ensure!(limited > 0, "{limited}");
        Ok(())
    })?;
    ensure!(metric(&device, "pv_net_dhcp_leases{pool=\"internal\"}")? == 1, "leases");
    ensure!(metric(&device, "pv_net_dhcp_free{pool=\"internal\"}")? == 19, "free");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_full_range_and_a_port_that_is_taken_are_said() -> Result<()> {
    let two = json!({"range": [RANGE[0], Ipv4Addr::new(10, 0, 3, 101)], "leases_per_port": 3});
    let mut device = Device::new(&config(two))?;
    let taken = device.ns.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67))?))?;
    device.start()?;
    condition(&device, "port 67 of pool internal", true)?;
    drop(taken);
    condition(&device, "port 67 of pool internal", false)?;
    let stranger = Stranger::new(&device, "one")?;
    let mut peer = Peer::of(&stranger)?;
    for number in 1..=2 {
        peer.get(mac(number))?;
    }
    let xid = peer.xid();
    peer.send(mac(3), &Message::new(DISCOVER, mac(3), xid).bytes())?;
    condition(&device, "pool internal: all addresses of its DHCP range are in use", true)?;
    ensure!(peer.answer(xid, NOTHING)?.is_none(), "it is answered");
    let release = Message::new(RELEASE, mac(1), 1).ciaddr(RANGE[0]).bytes();
    peer.send(mac(1), &release)?;
    eventually(SOON, || {
        ensure!(leases_of_clients(&device)?.len() == 1, "{}", device.json(&["leases"])?);
        Ok(())
    })?;
    // What was seen to be over is looked for once a second.
    let address = eventually(SOON, || {
        let xid = peer.xid();
        peer.send(mac(3), &Message::new(DISCOVER, mac(3), xid).bytes())?;
        let offer = peer.answer(xid, NOTHING)?;
        ensure!(offer.is_some(), "no offer");
        peer.get(mac(3))
    })?;
    ensure!(address == RANGE[0], "{address}");
    condition(&device, "DHCP range", false)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_was_agreed_to_outlives_a_kill_at_once() -> Result<()> {
    let mut device = Device::started(&config(json!({})))?;
    let stranger = Stranger::new(&device, "one")?;
    let mut given = Vec::new();
    for number in 1..=5 {
        let mut peer = Peer::of(&stranger)?;
        let address = eventually(SOON, || {
            // A server that has just started may not be there yet.
            let xid = peer.xid();
            peer.send(mac(number), &Message::new(DISCOVER, mac(number), xid).bytes())?;
            ensure!(peer.answer(xid, NOTHING)?.is_some(), "no offer");
            peer.get(mac(number))
        })?;
        device.stop(Signal::SIGKILL)?;
        ensure!(!given.contains(&address), "{address} twice");
        given.push(address);
        device.start()?;
        let leases = leases_of_clients(&device)?;
        ensure!(leases.len() == given.len(), "{leases:?}");
        ensure!(given.iter().all(|a| leases.iter().any(|l| l["ipv4_address"] == a.to_string())), "{leases:?}");
    }
    Ok(())
}
