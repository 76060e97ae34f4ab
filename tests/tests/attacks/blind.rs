//! A blind attacker, who does not see the flow's packets: forged resets, and frames with another MAC.

use super::lab::{Lab, lab};
use anyhow::{Context, Result, ensure};
use harness::configs::HOSTS;
use harness::{Container, SOON, echo, eventually, frame, raw::RawSocket};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

const PORT: u16 = 7000;
const PUBLISHED: u16 = 8080;
const SERVER: u16 = 80;
/// Addresses behind the host. The host forwards nothing there, and sends no error.
const SILENT: [&str; 2] = ["198.51.100.1", "2001:db8:9::1"];
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A lab with a container that publishes a port. A closed flow is removed by the next sweep.
fn published() -> Result<(Lab, Container)> {
    let lab = lab(|config| {
        config["network"]["flow_timeouts"] = json!({"tcp_closed": 1, "tcp_opening": 60});
    })?;
    lab.device.ns.ip("route add default via 192.0.2.9")?;
    lab.device.ns.ip("-6 route add default via 2001:db8:1::9")?;
    let ports = [format!("{PUBLISHED}:{SERVER}/tcp"), format!("{PUBLISHED}:{SERVER}/udp")];
    let server = lab.device.attach_run(&json!({"name": "s", "network": {"pool": "internal", "ports": ports}}))?;
    Ok((lab, server))
}

fn kind(addr: IpAddr) -> u16 {
    if addr.is_ipv4() { frame::IPV4 } else { frame::IPV6 }
}

/// Sends a frame to the device by its uplink.
fn arrives(lab: &Lab, mac: [u8; 6], packet: &[u8]) -> Result<()> {
    let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
    RawSocket::open(&lab.out, "eth0")?.send(&frame::ethernet(mac, lab.uplink_mac()?, kind, packet))
}

/// The state of the flow between a port of a container and one outside, whoever opened it.
fn state(lab: &Lab, ports: [u16; 2]) -> Result<String> {
    let all = lab.device.json(&["flows"])?;
    let port = |f: &Value, key: &str| f[key].as_u64().and_then(|p| u16::try_from(p).ok());
    let is_it = |f: &&Value| {
        let found = [port(f, "sport"), port(f, "dport")];
        found == ports.map(Some) || found == [Some(ports[1]), Some(ports[0])]
    };
    let found = all.as_array().context("a list")?.iter().find(is_it).with_context(|| format!("{ports:?}: no flow"))?;
    Ok(found["state"].as_str().context("a state")?.to_owned())
}

fn is_in_state(lab: &Lab, ports: [u16; 2], wanted: &str) -> Result<()> {
    eventually(SOON, || {
        let state = state(lab, ports)?;
        ensure!(state == wanted, "{ports:?}: {state}, not {wanted}");
        Ok(())
    })
}

/// What one end writes is read at the other.
fn passes(from: &mut TcpStream, to: &mut TcpStream, what: &str) -> Result<()> {
    from.write_all(what.as_bytes())?;
    let mut read = vec![0; what.len()];
    to.read_exact(&mut read).with_context(|| what.to_owned())?;
    ensure!(read == what.as_bytes(), "{read:?}");
    Ok(())
}

fn listen(ns: &harness::Namespace, port: u16) -> Result<TcpListener> {
    ns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(harness::patience(SOON)))?;
    Ok(stream)
}

/// RFC 5961 section 3: the receiver of a reset outside the window ignores it. So the device must keep the flow too,
/// even if it is then silent for longer than a closed flow lives. Formerly the flow was removed after the time-out of
/// closed flows, and the server's later segments were refused.
#[test]
fn a_blind_reset_ends_no_connection() -> Result<()> {
    let (lab, server) = published()?;
    let (outer, inner) = (listen(&lab.out, PORT)?, listen(&server.ns, SERVER)?);
    for (host, own) in HOSTS {
        // A masqueraded connection and one by a published port: client, server, and the flow's ports.
        let mut masqueraded = echo::connect(&lab.a.ns, SocketAddr::new(host, PORT))?;
        let mut far = accept(&outer)?;
        let mut client = echo::connect(&lab.out, SocketAddr::new(own, PUBLISHED))?;
        let mut served = accept(&inner)?;
        let nat = far.peer_addr()?.port();
        let port = client.local_addr()?.port();
        let flows = [[masqueraded.local_addr()?.port(), PORT], [port, PUBLISHED]];
        for (src, dst) in [((host, PORT), (own, nat)), ((host, port), (own, PUBLISHED))] {
            // Window checks of a reset do not use the acknowledgement; the sequence number is a guess.
            arrives(&lab, lab.out_mac()?, &frame::tcp_numbered(src, dst, [0xdead_beef, 0], RST, b""))?;
        }
        for ports in flows {
            is_in_state(&lab, ports, "closing")?;
        }
        for ports in flows {
            // The container sends something, which shows that the connection lives.
            is_in_state(&lab, ports, "established").with_context(|| format!("{host}"))?;
        }
        passes(&mut far, &mut masqueraded, "from the server after a forged reset")?;
        passes(&mut masqueraded, &mut far, "to the server after a forged reset")?;
        passes(&mut client, &mut served, "from the client after a forged reset")?;
        passes(&mut served, &mut client, "to the client after a forged reset")?;
        // A real reset closes the flow.
        setsockopt(&far, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop(far);
        ensure!(masqueraded.read(&mut [0; 9]).is_err(), "no reset");
        eventually(SOON, || {
            ensure!(state(&lab, flows[0]).is_err(), "it stays");
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 9293 section 3.10.7.3: a host that has sent a SYN ignores a reset that does not acknowledge it. So the device
/// must keep the half-open flow for the answer.
#[test]
fn a_blind_reset_ends_no_half_open_connection() -> Result<()> {
    let (lab, _server) = published()?;
    for (family, silent) in SILENT.iter().enumerate() {
        let (silent, own): (IpAddr, IpAddr) = (silent.parse()?, HOSTS[family].1);
        let port = 5000 + family as u16;
        let link = RawSocket::open(&lab.a.ns, "eth0")?;
        let wire = RawSocket::open(&lab.out, "eth0")?;
        let syn = frame::tcp((lab.a.addresses()[family], port), (silent, 80), SYN, b"");
        link.send(&frame::ethernet(lab.a.mac()?, lab.gateway_mac()?, kind(silent), &syn))?;
        let at = if family == 0 { 34 } else { 54 };
        let is_syn = |f: &[u8]| f.len() > at + 13 && f[at + 2..at + 4] == [0, 80] && f[at + 13] == SYN;
        let left = wire.receive(SOON, is_syn)?.context("no SYN")?;
        let nat = u16::from_be_bytes([left[at], left[at + 1]]);
        for (numbers, flags) in [([7, 7], RST | ACK), ([8, 0], RST), ([9, 1001], SYN | ACK)] {
            let segment = frame::tcp_numbered((silent, 80), (own, nat), numbers, flags, b"");
            arrives(&lab, lab.out_mac()?, &segment)?;
            let is_it = |f: &[u8]| {
                f.len() > at + 13 && f[at..at + 2] == [0, 80] && f[at + 7] == numbers[0] as u8 && f[at + 13] == flags
            };
            ensure!(link.receive(SOON, is_it)?.is_some(), "{silent}: flags {flags:#x} did not arrive");
        }
        // The flow may have ended by then: the container's stack does not know the connection, and resets it.
        let created = lab.device.counters()?["flows-created"];
        ensure!(created > family as u64, "{silent}: the answer to the SYN established no flow");
    }
    Ok(())
}

/// The last acknowledgement of a masqueraded connection is lost, and the container uses the port again at once (RFC
/// 6191, or a bound port). The new connection is established as usual, and its segments are not taken for the end of
/// the old one.
#[test]
fn a_port_used_again_after_a_lost_acknowledgement_is_a_new_connection() -> Result<()> {
    const FIN: u8 = 1;
    let (lab, _server) = published()?;
    // Without addresses the container's own stack sends no resets.
    lab.a.ns.ip("addr flush dev eth0")?;
    for (family, silent) in SILENT.iter().enumerate() {
        let (silent, own): (IpAddr, IpAddr) = (silent.parse()?, HOSTS[family].1);
        let port = 5000 + family as u16;
        let (link, wire) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.out, "eth0")?);
        let at = if family == 0 { 34 } else { 54 };
        // Segments of both ends, each with its own number, without the acknowledgement of the last FIN.
        let number = |f: &[u8], n: u8| f.len() > at + 13 && f[at + 4..at + 8] == [0xab, 0, 0, n];
        let from_container = |n: u8, flags: u8| -> Result<u16> {
            let numbers = [0xab00_0000 + u32::from(n), 1];
            let segment = frame::tcp_numbered((lab.a.addresses()[family], port), (silent, 80), numbers, flags, b"");
            link.send(&frame::ethernet(lab.a.mac()?, lab.gateway_mac()?, kind(silent), &segment))?;
            let seen = wire.receive(SOON, |f| number(f, n))?.with_context(|| format!("segment {n}"))?;
            Ok(u16::from_be_bytes([seen[at], seen[at + 1]]))
        };
        let from_far = |n: u8, flags: u8, nat: u16| -> Result<()> {
            let numbers = [0xab00_0000 + u32::from(n), 1];
            arrives(&lab, lab.out_mac()?, &frame::tcp_numbered((silent, 80), (own, nat), numbers, flags, b""))?;
            link.receive(SOON, |f| number(f, n))?.with_context(|| format!("segment {n}")).map(drop)
        };
        let nat = from_container(1, SYN)?;
        from_far(2, SYN | ACK, nat)?;
        from_container(3, ACK)?;
        from_container(4, FIN | ACK)?;
        from_far(5, FIN | ACK, nat)?;
        is_in_state(&lab, [port, 80], "closing")?;
        ensure!(from_container(6, SYN)? == nat, "{silent}: another port outside");
        from_far(7, SYN | ACK, nat)?;
        from_container(8, ACK)?;
        is_in_state(&lab, [port, 80], "established")?;
    }
    Ok(())
}

/// A MAC that nobody has.
const FORGED: [u8; 6] = [2, 0xbb, 0, 0, 0, 1];
/// Another MAC, which the host changes to.
const NEXT: &str = "02:aa:00:00:00:02";

/// A forged frame of a published port's flow with another source MAC must not make the container's answers go to that
/// MAC (ARP says who has an address, RFC 826; a frame does not). A UDP datagram has no window to check.
#[test]
fn a_frame_from_another_mac_leads_no_answers_away() -> Result<()> {
    let (lab, server) = published()?;
    let inner = listen(&server.ns, SERVER)?;
    let socket = server.ns.run(|| Ok(std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, SERVER))?))?;
    socket.set_read_timeout(Some(harness::patience(SOON)))?;
    let seen = RawSocket::open(&server.ns, "eth0")?;
    let wire = RawSocket::open(&lab.out, "eth0")?;
    for (host, own) in HOSTS {
        let mut client = echo::connect(&lab.out, SocketAddr::new(own, PUBLISHED))?;
        client.set_read_timeout(Some(harness::patience(SOON)))?;
        let mut served = accept(&inner)?;
        let any: IpAddr = if own.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let asker = lab.out.run(|| Ok(std::net::UdpSocket::bind((any, 0))?))?;
        asker.send_to(b"question", (own, PUBLISHED))?;
        let (_, from) = socket.recv_from(&mut [0; 99])?;
        socket.send_to(b"answer", from)?;
        let (tcp, udp) = (client.local_addr()?.port(), asker.local_addr()?.port());
        for packet in [
            frame::tcp_numbered((host, tcp), (own, PUBLISHED), [0xdead_beef, 0], ACK, b"led away, tcp"),
            frame::udp((host, udp), (own, PUBLISHED), b"led away, udp"),
        ] {
            arrives(&lab, FORGED, &packet)?;
            let end = packet[packet.len() - 13..].to_vec();
            ensure!(seen.receive(SOON, |f| f.ends_with(&end))?.is_some(), "{own}: the forgery did not arrive");
        }
        socket.send_to(b"where does this go, udp", from)?;
        served.write_all(b"where does this go, tcp")?;
        let mac = lab.out_mac()?;
        for end in [&b"where does this go, udp"[..], b"where does this go, tcp"] {
            let left = wire.receive(SOON, |f| f.ends_with(end))?.context("nothing left")?;
            ensure!(left[..6] == mac, "{own}: to {:02x?}, not {mac:02x?}", &left[..6]);
        }
        let mut read = [0; 23];
        client.read_exact(&mut read)?;
        // Another router takes over and announces it (RFC 5227, RFC 4861 section 7.2.6): the kernel's neighbour entry
        // changes.
        lab.out.ip(&format!("link set eth0 address {NEXT}"))?;
        passes(&mut client, &mut served, "from the new MAC")?;
        passes(&mut served, &mut client, "to the new MAC")?;
        lab.out.ip(&format!("link set eth0 address {}", text(mac)))?;
        passes(&mut client, &mut served, "from the old MAC")?;
        passes(&mut served, &mut client, "to the old MAC")?;
    }
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
