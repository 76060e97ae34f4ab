//! Checksums of translated packets, with offloads on and off: every frame on every link is verified.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::{Container, Device, Namespace, capture::Capture, echo, frame, raw::RawSocket, verify::Seen};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

const PORT: u16 = 7000;

struct Lab {
    device: Device,
    outside: Namespace,
    web: Container,
    peer: Container,
}

fn lab() -> Result<Lab> {
    let mut config = configs::open_pools();
    config["network"]["uplinks"] = json!(["up0"]);
    for pool in ["internal", "management"] {
        config["network"]["pools"][pool]["nat"] = json!(true);
    }
    let mut device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    let peer = device.attach("peer", "management")?;
    for (ns, port) in [(&web.ns, 80), (&outside, PORT), (&peer.ns, PORT)] {
        echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
    }
    Ok(Lab { device, outside, web, peer })
}

/// Switches offloads off on the containers' links, their host sides, the uplink and its other end.
fn without_offloads(lab: &Lab) -> Result<()> {
    let links = [
        (&lab.web.ns, "eth0"),
        (&lab.peer.ns, "eth0"),
        (&lab.device.ns, lab.web.host_if()),
        (&lab.device.ns, lab.peer.host_if()),
        (&lab.device.ns, "up0"),
        (&lab.outside, "eth0"),
    ];
    for (ns, link) in links {
        ns.sh(&format!("ethtool -K {link} tx off tso off gso off gro off"))?;
    }
    Ok(())
}

fn traffic(lab: &Lab) -> Result<()> {
    let blob: Vec<u8> = (0..300_000u32).map(|i| ((i * 13) >> 3) as u8).collect();
    for family in [0, 1] {
        let (host, device) = HOSTS[family];
        let peer = lab.peer.addresses()[family];
        for (what, from, at) in [
            ("masquerade", &lab.web.ns, SocketAddr::new(host, PORT)),
            ("masquerade of the peer", &lab.peer.ns, SocketAddr::new(host, PORT)),
            ("published port", &lab.outside, SocketAddr::new(device, 8080)),
            ("published port from the peer", &lab.peer.ns, SocketAddr::new(device, 8080)),
            ("hairpin", &lab.web.ns, SocketAddr::new(device, 8080)),
            ("open pools", &lab.web.ns, SocketAddr::new(peer, PORT)),
        ] {
            echo::tcp(from, at, &blob).with_context(|| format!("{what}: TCP {at}"))?;
            // Odd sizes, one that needs fragments, and an empty one.
            for size in [0, 1, 333, 1200, 5000] {
                echo::udp(from, at, &blob[..size]).with_context(|| format!("{what}: UDP of {size} to {at}"))?;
            }
        }
        // Nobody listens on the port: the ICMP errors quote the datagram.
        for (from, at) in [(&lab.web.ns, host), (&lab.web.ns, peer)] {
            from.ping(at, 3)?;
            ensure!(echo::udp(from, SocketAddr::new(at, 9), b"refuse").is_err(), "port 9 answers");
            ensure!(echo::connect(from, SocketAddr::new(at, 9)).is_err(), "port 9 answers");
        }
    }
    Ok(())
}

fn captured(lab: &Lab, quotes: bool) -> Result<Vec<BTreeMap<Seen, u64>>> {
    let links = [
        Capture::start(&lab.outside, "eth0", quotes)?,
        Capture::start(&lab.device.ns, "up0", quotes)?,
        Capture::start(&lab.web.ns, "eth0", quotes)?,
        Capture::start(&lab.peer.ns, "eth0", quotes)?,
    ];
    let done = traffic(lab);
    // Looked at first: a wrong checksum explains why something did not arrive.
    let seen = links.into_iter().map(|link| Ok(link.finish()?.kinds())).collect::<Result<Vec<_>>>()?;
    done.map(|()| seen)
}

/// Fails unless every protocol of both families was on the link, with the expected kind of checksum.
fn complete(seen: &BTreeMap<Seen, u64>, partial: bool) -> Result<()> {
    for (v6, proto) in [(false, 6), (false, 17), (false, 1), (true, 6), (true, 17), (true, 58)] {
        let has = seen.keys().any(|s| s.v6 == v6 && s.proto == proto);
        ensure!(has, "nothing of protocol {proto}: {seen:?}");
        let left = seen.keys().any(|s| s.v6 == v6 && s.proto == proto && s.partial);
        // ICMP has whole checksums in any case.
        let wanted = partial && proto == 6;
        ensure!(left == wanted || (partial && proto == 17), "protocol {proto}, left to the card: {left}: {seen:?}");
    }
    Ok(())
}

#[test]
fn they_are_right_where_the_card_computes_them() -> Result<()> {
    for seen in captured(&lab()?, false)? {
        complete(&seen, true)?;
    }
    Ok(())
}

#[test]
fn they_are_right_where_the_kernel_computes_them() -> Result<()> {
    let lab = lab()?;
    without_offloads(&lab)?;
    for seen in captured(&lab, true)? {
        complete(&seen, false)?;
    }
    Ok(())
}

/// `SO_NO_CHECK`: the socket sends datagrams without a checksum.
fn without_checksum(socket: &UdpSocket) -> Result<()> {
    let one: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&one))?;
    let at = (&raw const one).cast();
    // SAFETY: the kernel reads one integer.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, at, size) };
    ensure!(done == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn a_datagram_without_one_stays_so() -> Result<()> {
    let lab = lab()?;
    let (host, device) = HOSTS[0];
    let bound = |ns: &Namespace, port: u16| -> Result<UdpSocket> {
        let socket = ns.run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?))?;
        without_checksum(&socket)?;
        socket.set_read_timeout(Some(echo::PATIENCE))?;
        Ok(socket)
    };
    let (inside, outside) = (bound(&lab.web.ns, 5000)?, bound(&lab.outside, 7001)?);
    let (wan, lan) = (RawSocket::open(&lab.outside, "eth0")?, RawSocket::open(&lab.web.ns, "eth0")?);
    // Longer than the frame's padding, and with bytes whose sum would not be zero.
    let bare = |socket: &RawSocket, text: &[u8]| -> Result<()> {
        let udp = |f: &[u8]| f[12..14] == frame::IPV4.to_be_bytes() && f[23] == 17 && f[42..].starts_with(text);
        let got = socket.receive(echo::PATIENCE, udp)?.context("no datagram")?;
        ensure!(got[40..42] == [0, 0], "a checksum of {:02x?}", &got[40..42]);
        Ok(())
    };
    // Twice: by the slow path and by the fast one.
    for round in 0..3 {
        let text = format!("round {round}, a datagram without a checksum");
        inside.send_to(text.as_bytes(), (host, 7001))?;
        let (n, client) = outside.recv_from(&mut [0; 200])?;
        ensure!(n == text.len() && client.ip() == device, "{n} bytes from {client}");
        bare(&wan, text.as_bytes())?;
        let answer = format!("answer {round}, one without a checksum too");
        outside.send_to(answer.as_bytes(), client)?;
        inside.recv_from(&mut [0; 200])?;
        bare(&lan, answer.as_bytes())?;
    }
    Ok(())
}

/// An option of a socket.
fn set(socket: &impl AsRawFd, (level, name): (libc::c_int, libc::c_int), value: libc::c_int) -> Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value))?;
    // SAFETY: the kernel reads one integer.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    ensure!(done == 0, "option {name}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Sends a datagram from outside that is larger than the path's MTU; the answer must be an ICMP error.
fn datagram_is_refused(lab: &Lab, device: IpAddr) -> Result<()> {
    let (level, errors, hops, mtu) = match device {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_TTL, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_UNICAST_HOPS, libc::IPV6_MTU),
    };
    let any: IpAddr = if device.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = lab.outside.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.connect((device, 8080))?;
    socket.set_read_timeout(Some(echo::PATIENCE))?;
    set(&socket, (level, errors), 1)?;
    set(&socket, (level, hops), 1)?;
    socket.send(b"at the end of its hops")?;
    let told = socket.recv(&mut [0; 64]).err().and_then(|e| e.raw_os_error());
    ensure!(told == Some(libc::EHOSTUNREACH), "{device}: at the end of its hops: {told:?}");
    set(&socket, (level, hops), 64)?;
    socket.send(&[0; 1450])?;
    let told = socket.recv(&mut [0; 64]).err().and_then(|e| e.raw_os_error());
    ensure!(told == Some(libc::EMSGSIZE), "{device}: too large: {told:?}");
    let (mut found, mut size) = (0u32, libc::socklen_t::try_from(size_of::<u32>())?);
    // SAFETY: the kernel writes at most `size` bytes.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), level, mtu, (&raw mut found).cast(), &raw mut size) };
    ensure!(got == 0 && found == 1400, "{device}: the path's MTU is {found}");
    Ok(())
}

/// Packets from virtual machines and from GRO have checksums that are left to a card (`CHECKSUM_PARTIAL`). pv-net turns
/// such a packet into its answer, and the flag stays set. When the answer leaves by a card (`skb_checksum_help` here),
/// that writes a checksum into the answer, which must be right then, and also where no card is on the way.
#[test]
fn answers_are_right_whatever_a_card_adds() -> Result<()> {
    for card in [true, false] {
        let mut config = configs::masqueraded();
        config["network"]["pools"]["internal"]["mtu"] = json!(1400);
        let mut device = Device::new(&config)?;
        let outside = device.outside("up0", &DEVICE, &HOST)?;
        device.start()?;
        let run = json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}});
        let web = device.attach_run(&run)?;
        let peer = device.attach("peer", "internal")?;
        if card {
            device.ns.sh("ethtool -K up0 tx off tso off gso off")?;
        }
        echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
        let mut lab = Lab { device, outside, web, peer };
        let capture = Capture::start(&lab.outside, "eth0", false)?;
        for (_, device) in HOSTS {
            datagram_is_refused(&lab, device)?;
        }
        // The container is detached before these connections go on.
        let mut streams = Vec::new();
        for (_, device) in HOSTS {
            streams.push(echo::connect(&lab.outside, (device, 8080).into())?);
        }
        lab.device.cli(&["detach", "web"]).ok()?;
        lab.web = lab.device.attach_run(&run)?;
        for stream in &mut streams {
            stream.write_all(b"is anybody there?")?;
            let end = stream.read_to_end(&mut Vec::new()).err().map(|e| e.kind());
            ensure!(end == Some(ErrorKind::ConnectionReset), "a connection to nobody ends by {end:?}");
        }
        let seen = capture.finish()?.received.kinds;
        for (v6, proto) in [(false, 1), (true, 58), (false, 6), (true, 6)] {
            let right = |s: &&Seen| (s.v6, s.proto) == (v6, proto) && (!card || !s.partial);
            ensure!(seen.keys().any(|s| right(&s)), "card: {card}: no answer of protocol {proto}: {seen:?}");
        }
    }
    Ok(())
}
