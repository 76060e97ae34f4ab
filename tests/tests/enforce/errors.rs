//! ICMP and ICMPv6 errors under rules: an error about an allowed flow belongs to that flow, any other is checked like
//! all traffic. And protocols without ports.

use crate::lab::{self, Lab, PUBLISHED, gateway, uplink};
use crate::probe::udp_socket;
use anyhow::{Context, Result, ensure};
use harness::{AT_ONCE, Container, Namespace, eventually, frame, patience, raw::RawSocket};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};
use pv_net_common::Ip;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A port that nobody listens on.
const CLOSED: u16 = 7999;
const WAIT: Duration = Duration::from_secs(4);

fn deny(from: Value, to: Value) -> Value {
    json!({"from": from, "to": to, "action": "deny"})
}

fn container(name: &str) -> Value {
    json!({"container": name})
}

/// Fails unless one of a few datagrams on the socket is answered by "port unreachable" at once. A single one may be
/// late on a busy machine, or may fall between two policies, and is then checked by itself.
fn is_told(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(patience(AT_ONCE)))?;
    let mut seen = Vec::new();
    for _ in 0..4 {
        socket.send(b"pv")?;
        let got = socket.recv(&mut [0; 100]).map_err(|e| e.kind());
        if got == Err(ErrorKind::ConnectionRefused) {
            return Ok(());
        }
        seen.push(got);
    }
    anyhow::bail!("{seen:?}")
}

/// The same for a new flow to a port that nobody listens on.
fn closed(ns: &Namespace, to: impl Into<IpAddr>, port: u16) -> Result<()> {
    let to = SocketAddr::new(to.into(), port);
    is_told(&udp_socket(ns, to)?).with_context(|| format!("a datagram to {to}"))
}

fn link_local(of: &Container) -> Result<Ipv6Addr> {
    match IpAddr::from(Ip::link_local(of.mac()?)) {
        IpAddr::V6(addr) => Ok(addr),
        IpAddr::V4(addr) => anyhow::bail!("{addr}"),
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_error_about_an_allowed_flow_passes_where_its_way_is_denied() -> Result<()> {
    let mut config = lab::config(json!([
        deny(container("b"), container("a")),
        deny(container("c"), container("a")),
        deny(container("b"), json!("host")),
    ]));
    for pool in ["internal", "management"] {
        config["network"]["pools"][pool]["isolated"] = json!(false);
    }
    let lab = Lab::quiet(&config)?;
    for to in lab.b.addresses() {
        closed(&lab.a.ns, to, CLOSED).context("in the pool")?;
        closed(&lab.device.ns, to, CLOSED).context("from the device")?;
    }
    for to in lab.c.addresses() {
        closed(&lab.a.ns, to, CLOSED).context("in another pool")?;
    }
    // Waits for duplicate address detection: no packet leaves from a tentative address.
    lab.a.ns.settle()?;
    lab.b.ns.settle()?;
    let to = link_local(&lab.b)?;
    let socket = lab.a.ns.run(|| {
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddrV6::new(to, CLOSED, 0, index))?;
        Ok(socket)
    })?;
    is_told(&socket).context("by link-local addresses")
}

/// The new rules allow the direction of the quoted packet, and deny that of the error.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_error_about_an_established_flow_passes_after_new_rules() -> Result<()> {
    let lab = Lab::quiet(&lab::config(json!([])))?;
    for to in lab.b.addresses() {
        let server = lab.b.ns.run(|| Ok(UdpSocket::bind((to, CLOSED))?))?;
        server.set_read_timeout(Some(patience(WAIT)))?;
        let client = udp_socket(&lab.a.ns, SocketAddr::new(to, CLOSED))?;
        client.set_read_timeout(Some(patience(WAIT)))?;
        for _ in 0..2 {
            client.send(b"pv")?;
            let (_, from) = server.recv_from(&mut [0; 100])?;
            server.send_to(b"pv", from)?;
            client.recv(&mut [0; 100]).context("the flow's answer")?;
        }
        lab.set_rules(json!([deny(container("b"), container("a"))]))?;
        drop(server);
        is_told(&client).with_context(|| format!("{to}"))?;
        lab.set_rules(json!([]))?;
    }
    Ok(())
}

/// An ICMP error from `from` to `to` that quotes a datagram from `quoted[0]` to `quoted[1]`.
fn error(from: IpAddr, to: IpAddr, quoted: [(IpAddr, u16); 2]) -> Vec<u8> {
    let head: &[u8] = if from.is_ipv4() { &[3, 3, 0, 0, 0, 0, 0, 0] } else { &[1, 4, 0, 0, 0, 0, 0, 0] };
    frame::icmp(from, to, &[head, &frame::udp(quoted[0], quoted[1], b"quoted")].concat())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_error_about_no_known_flow_passes_under_no_rules() -> Result<()> {
    let lab = Lab::quiet(&lab::config(json!([])))?;
    let (a_mac, b_mac) = (lab.a.mac()?, lab.b.mac()?);
    let (sends, hears) = (RawSocket::open(&lab.b.ns, "eth0")?, RawSocket::open(&lab.a.ns, "eth0")?);
    for ((a, b), gateway) in lab.a.addresses().into_iter().zip(lab.b.addresses()).zip(gateway()) {
        let kind = if a.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        let sent = |packet: &[u8]| frame::ethernet(b_mac, a_mac, kind, packet);
        let unknown = sent(&error(b, a, [(a, 4000), (b, 4001)]));
        // A flow of the device, to which `a` does not belong.
        let of_device = udp_socket(&lab.device.ns, SocketAddr::new(b, CLOSED))?;
        is_told(&of_device)?;
        let others = sent(&error(b, a, [(gateway, of_device.local_addr()?.port()), (b, CLOSED)]));
        for rules in [json!([]), json!([deny(container("b"), container("a"))])] {
            lab.set_rules(rules)?;
            is_told(&of_device).context("the device's flow goes on")?;
            sends.send(&unknown)?;
            sends.send(&others)?;
            // Sent after the forged errors, so these would arrive first.
            let known = udp_socket(&lab.a.ns, SocketAddr::new(b, CLOSED))?;
            is_told(&known)?;
            let forged = |frame: &[u8]| frame == &unknown[..] || frame == &others[..];
            let last = hears.receive(WAIT, |frame| forged(frame) || is_error(frame, b))?;
            let last = last.context("the error about a known flow was not seen")?;
            ensure!(!forged(&last), "{b} to {a}: an error about no flow of theirs passed");
        }
        lab.set_rules(json!([]))?;
    }
    Ok(())
}

/// Whether the frame is an ICMP or ICMPv6 error from `from`.
fn is_error(frame: &[u8], from: IpAddr) -> bool {
    match from {
        IpAddr::V4(from) => frame.len() > 34 && frame[23] == 1 && frame[26..30] == from.octets() && frame[34] == 3,
        IpAddr::V6(from) => frame.len() > 54 && frame[20] == 58 && frame[22..38] == from.octets() && frame[54] == 1,
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_error_comes_back_by_a_published_port() -> Result<()> {
    // The port of `a` is published, but nobody listens on it.
    let lab = Lab::quiet(&lab::config(json!([])))?;
    for to in [gateway(), uplink()].concat() {
        closed(&lab.b.ns, to, PUBLISHED).context("of a peer")?;
        closed(&lab.a.ns, to, PUBLISHED).context("of its own")?;
    }
    for to in uplink() {
        closed(&lab.outside, to, PUBLISHED).context("from outside")?;
    }
    // `a` may send nothing to `b`, except the ICMP error about `b`'s flow.
    lab.set_rules(json!([deny(container("a"), container("b"))]))?;
    for to in gateway() {
        closed(&lab.b.ns, to, PUBLISHED).context("of a peer to which the way is denied")?;
    }
    Ok(())
}

/// Sends a whole IP packet from `ns`.
fn send_ip(ns: &Namespace, to: IpAddr, packet: &[u8]) -> Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = ns.run(|| Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?))?;
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    let sent = sendto(fd.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    ensure!(sent == packet.len(), "{sent} of {} bytes sent", packet.len());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn rules_bind_what_the_device_sends_without_ports() -> Result<()> {
    let lab = Lab::quiet(&lab::config(json!([])))?;
    let hears = RawSocket::open(&lab.a.ns, "eth0")?;
    // GRE, SCTP, and a protocol number for experiments.
    for proto in [47, 132, 253] {
        for (from, to) in gateway().into_iter().zip(lab.a.addresses()) {
            let packet = |payload: &[u8]| frame::ip(from, to, proto, payload);
            let has = |frame: &[u8], payload: &[u8]| frame.len() > 60 && frame.ends_with(payload);
            let (first, denied, last) = ([1u8; 32], [2u8; 32], [3u8; 32]);
            send_ip(&lab.device.ns, to, &packet(&first))?;
            let got = hears.receive(WAIT, |f| has(f, &first))?;
            ensure!(got.is_some(), "protocol {proto} to {to}: lost without rules");
            lab.set_rules(json!([deny(json!("host"), container("a"))]))?;
            send_ip(&lab.device.ns, to, &packet(&denied))?;
            // A rule about ports does not concern these protocols, and neighbour discovery works whatever rules say.
            let icmp = json!({"from": "host", "to": {"container": "a"}, "ports": ["icmp", "tcp"], "action": "deny"});
            lab.set_rules(json!([icmp]))?;
            lab.device.ns.ip("neigh flush dev pvbr3")?;
            send_ip(&lab.device.ns, to, &packet(&last))?;
            let got = hears.receive(WAIT, |f| has(f, &denied) || has(f, &last))?;
            let got = got.with_context(|| format!("protocol {proto} to {to}: lost by a rule about ports"))?;
            ensure!(has(&got, &last), "protocol {proto} to {to}: passed though denied");
            lab.set_rules(json!([]))?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_link_that_was_taken_off_its_bridge_is_put_back() -> Result<()> {
    let lab = Lab::quiet(&lab::config(json!([])))?;
    let link = lab.b.host_if();
    let on_bridge = || -> Result<bool> { Ok(lab.device.ns.ip(&format!("-o link show dev {link}"))?.contains("pvbr3")) };
    ensure!(on_bridge()?, "{link} is on no bridge to begin with");
    lab.device.ns.ip(&format!("link set {link} nomaster"))?;
    eventually(Duration::from_secs(20), || {
        ensure!(on_bridge()?, "{link} stays off its bridge");
        Ok(())
    })?;
    for to in lab.b.addresses() {
        // Only the bridge can find the neighbour now.
        lab.a.ns.ip("neigh flush dev eth0")?;
        lab.a.ns.ping(to, 1)?;
    }
    Ok(())
}
