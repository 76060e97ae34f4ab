//! Containers take no ports from the device's own connections, neither by publishing nor by masquerade. And one port of
//! a container is one port outside (RFC 4787, REQ-1).

use super::lab::{Lab, lab};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use harness::configs::HOSTS;
use harness::raw::RawSocket;
use harness::{Container, Device, Namespace, SOON, echo, eventually, frame};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use pv_net_common::{NatOwner, nat};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;
/// The host's second addresses.
const SECOND: [&str; 2] = ["192.0.2.10", "2001:db8:1::a"];
/// The ports of masquerade when the device has Linux's default `ip_local_port_range`.
const NAT: RangeInclusive<u16> = nat::FIRST_PORT..=nat::FIRST_PORT + (nat::PORTS - 1);
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A host that answers on two addresses and two ports.
fn serve(lab: &Lab) -> Result<()> {
    lab.out.ip("addr add 192.0.2.10/24 dev eth0")?;
    lab.out.ip("-6 addr add 2001:db8:1::a/64 dev eth0 nodad")?;
    for port in [PORT, OTHER_PORT] {
        for address in [HOSTS[0].0, HOSTS[1].0, SECOND[0].parse()?, SECOND[1].parse()?] {
            echo::serve(&lab.out, address, port)?;
        }
    }
    Ok(())
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A bound datagram socket in `ns`, not connected.
fn udp_at(ns: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let socket = ns.run(|| UdpSocket::bind(at).with_context(|| at.to_string()))?;
    socket.set_read_timeout(Some(harness::patience(echo::PATIENCE)))?;
    Ok(socket)
}

/// The address of the socket as `to` sees it, by the echo.
fn seen_udp(socket: &UdpSocket, to: SocketAddr) -> Result<SocketAddr> {
    let mark = format!("{:?}", socket.local_addr()?);
    socket.send_to(mark.as_bytes(), to)?;
    loop {
        let mut buffer = [0; 500];
        let (n, from) = socket.recv_from(&mut buffer).with_context(|| format!("{mark}: no answer of {to}"))?;
        let text = std::str::from_utf8(&buffer[..n])?;
        let (client, echoed) = text.split_once('\n').context("no first line")?;
        // A datagram for the port's former owner may come before.
        if echoed == mark && from == to {
            return Ok(client.parse()?);
        }
    }
}

/// A connection out of `ns` from this address and port.
fn tcp_from(ns: &Namespace, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    ns.run(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| from.to_string())?;
        let time = nix::sys::time::TimeVal::new(i64::try_from(harness::patience(echo::PATIENCE).as_secs())?, 0);
        setsockopt(&fd, sockopt::SendTimeout, &time)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &time)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from} to {to}"))?;
        Ok(TcpStream::from(fd))
    })
}

/// The address of this connection as the echo server sees it.
fn seen_tcp(stream: &mut TcpStream) -> Result<SocketAddr> {
    let mut line = Vec::new();
    let mut byte = [0u8];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the server's first line")?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?.trim().parse()?)
}

fn lives(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still here")?;
    let mut back = [0; 10];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"still here", "{back:?}");
    Ok(())
}

fn publish(device: &Device, ports: serde_json::Value) -> Result<Container> {
    device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ports}}))
}

fn reserved(ns: &Namespace) -> Result<String> {
    ns.run(|| {
        // In one read, since `proc_do_large_bitmap` gives nothing to a second one.
        let mut text = [0; 65_536];
        let n = std::fs::File::open(RESERVED)?.read(&mut text)?;
        Ok(String::from_utf8_lossy(&text[..n]).trim().to_owned())
    })
}

/// Linux takes ports for connections from `ip_local_port_range` (`inet_hash_connect`, `udp_lib_get_port`). When the
/// whole range is published, answers to the device's connections come to published ports.
#[test]
fn publishing_all_local_ports_swallows_no_answer() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    let web = publish(&lab.device, json!(["32768-60999:32768-60999/tcp", "32768-60999:32768-60999/udp"]))?;
    echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), 40_000)?;
    for (host, device) in HOSTS {
        let server = SocketAddr::new(host, PORT);
        let seen = echo::tcp(&lab.device.ns, server, &[7; 100_000])?;
        ensure!(seen.ip() == device && (32_768..=60_999).contains(&seen.port()), "TCP: {seen}");
        let seen = echo::udp(&lab.device.ns, server, &[7; 1000])?;
        ensure!(seen.ip() == device && (32_768..=60_999).contains(&seen.port()), "UDP: {seen}");
        // The published ports are still reached.
        echo::tcp(&lab.out, SocketAddr::new(device, 40_000), b"published")?;
        echo::udp(&lab.out, SocketAddr::new(device, 40_000), b"published")?;
    }
    let conditions = lab.device.json(&["status"])?["conditions"].to_string();
    ensure!(conditions.contains("32768-60999: they are most of net.ipv4.ip_local_port_range"), "{conditions}");
    Ok(())
}

/// A connection of the device from before its port was published keeps its answers, and a condition names it.
#[test]
fn publishing_a_port_that_a_connection_has_leaves_it_alone() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    for (host, device) in HOSTS {
        let server = SocketAddr::new(host, PORT);
        let mut tcp = echo::connect(&lab.device.ns, server)?;
        seen_tcp(&mut tcp)?;
        let udp = lab.device.ns.run(|| Ok(UdpSocket::bind((device, 0))?))?;
        udp.connect(server)?;
        udp.set_read_timeout(Some(harness::patience(echo::PATIENCE)))?;
        let ports = [tcp.local_addr()?.port(), udp.local_addr()?.port()];
        let web = publish(&lab.device, json!([format!("{}:80/tcp", ports[0]), format!("{}:80/udp", ports[1])]))?;
        echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
        for _ in 0..3 {
            lives(&mut tcp).with_context(|| format!("TCP port {}", ports[0]))?;
            udp.send(b"mine")?;
            let n = udp.recv(&mut [0; 100]).with_context(|| format!("UDP port {}", ports[1]))?;
            ensure!(n > 4, "{n}");
        }
        // New clients reach the container.
        echo::tcp(&lab.out, SocketAddr::new(device, ports[0]), b"published")?;
        let conditions = lab.device.json(&["status"])?["conditions"].to_string();
        for (port, proto) in ports.into_iter().zip(["tcp", "udp"]) {
            ensure!(conditions.contains(&format!("port {port}/{proto} is published")), "{conditions}");
        }
        lab.device.cli(&["detach", "web"]).ok()?;
    }
    Ok(())
}

/// `ip_local_reserved_ports` contains the administrator's ports and the published ones; after `down` only the former.
#[test]
fn automatic_binds_get_no_port_of_a_container() -> Result<()> {
    // Longer than the buffer of a first read.
    let admins = "1111,2222,3333,4444,5555,6666,7777,8888,9999,11111,12222,13333,20000-20010";
    let mut lab = lab(|_| {})?;
    lab.device.down()?;
    lab.device.ns.run(|| Ok(std::fs::write(RESERVED, admins)?))?;
    lab.device.start()?;
    let nat = "1111,2222,3333,4444,5555,6666,7777,8888,9999,11111,12222,13333";
    ensure!(reserved(&lab.device.ns)? == format!("{nat},16384-30719"), "{}", reserved(&lab.device.ns)?);
    let _web = publish(&lab.device, json!(["40000-40001:80-81/tcp", "8080:80", "50000:80/udp"]))?;
    let with_ports = format!("{nat},16384-30719,40000-40001,50000");
    ensure!(reserved(&lab.device.ns)? == with_ports, "{}", reserved(&lab.device.ns)?);
    // The reservation is restored even if the daemon was killed.
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    ensure!(reserved(&lab.device.ns)? == with_ports, "{}", reserved(&lab.device.ns)?);
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(reserved(&lab.device.ns)? == format!("{nat},16384-30719"), "{}", reserved(&lab.device.ns)?);
    lab.device.down()?;
    ensure!(reserved(&lab.device.ns)? == admins, "{}", reserved(&lab.device.ns)?);
    Ok(())
}

/// When `ip_local_port_range` reaches up to 65535, masquerade uses ports outside of that range.
#[test]
fn masquerade_stays_out_of_a_wide_local_port_range() -> Result<()> {
    let mut lab = lab(|_| {})?;
    serve(&lab)?;
    for (range, first) in [("1024 65535", 16_384), ("16000 40000", 1_664)] {
        lab.device.down()?;
        lab.device.ns.run(|| Ok(std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)?))?;
        lab.device.start()?;
        let a = lab.device.attach(&format!("a{first}"), "internal")?;
        let last = first + (nat::PORTS - 1);
        ensure!(reserved(&lab.device.ns)? == format!("{first}-{last}"), "{range}: {}", reserved(&lab.device.ns)?);
        for (host, _) in HOSTS {
            let seen = echo::tcp(&a.ns, SocketAddr::new(host, PORT), b"x")?;
            ensure!((first..=last).contains(&seen.port()), "{range}: {seen}");
            let seen = echo::udp(&lab.device.ns, SocketAddr::new(host, PORT), b"x")?;
            ensure!(!(first..=last).contains(&seen.port()), "{range}: {seen}");
        }
    }
    Ok(())
}

/// The device wants a port that a container's flow has: the device gets its own answers.
#[test]
fn a_containers_port_is_not_kept_from_the_device() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    for (family, (host, device)) in HOSTS.into_iter().enumerate() {
        let server = SocketAddr::new(host, PORT);
        // A different port for each family: a program that another test starts may hold a closed socket for a moment.
        let port = 40_000 + family as u16;
        let guest = udp_at(&lab.a.ns, SocketAddr::new(any(host), port))?;
        let seen = seen_udp(&guest, server)?;
        ensure!(seen.ip() == device && NAT.contains(&seen.port()), "{seen}");
        let mut held = tcp_from(&lab.a.ns, SocketAddr::new(any(host), port), server)?;
        let seen = seen_tcp(&mut held)?;
        ensure!(seen.ip() == device && NAT.contains(&seen.port()), "{seen}");
        let own = udp_at(&lab.device.ns, SocketAddr::new(device, port))?;
        ensure!(seen_udp(&own, server)? == SocketAddr::new(device, port), "the device's datagrams");
        let mut own = tcp_from(&lab.device.ns, SocketAddr::new(device, port), server)?;
        ensure!(seen_tcp(&mut own)? == SocketAddr::new(device, port), "the device's connection");
        seen_udp(&guest, server)?;
        lives(&mut held)?;
        lives(&mut own)?;
    }
    Ok(())
}

/// A program of the device may bind a port of masquerade's range. The flow that has the port ends, and no other flow
/// gets it.
#[test]
fn the_device_takes_a_port_from_masquerade() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    for (family, (host, device)) in HOSTS.into_iter().enumerate() {
        let (port, next) = (20_000 + 10 * family as u16, 20_001 + 10 * family as u16);
        let server = SocketAddr::new(host, PORT);
        let guest = udp_at(&lab.a.ns, SocketAddr::new(any(host), port))?;
        let first = seen_udp(&guest, server)?;
        ensure!(first.port() == port, "a port of the range is not kept: {first}");
        let own = udp_at(&lab.device.ns, SocketAddr::new(device, port))?;
        // The daemon ends the flow when it learns of the bind.
        eventually(SOON, || {
            own.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
            let seen = seen_udp(&own, server)?;
            ensure!(seen == SocketAddr::new(device, port), "{seen}");
            Ok(())
        })?;
        let second = seen_udp(&guest, server)?;
        ensure!(second.port() != port && NAT.contains(&second.port()), "{second}");
        // A listening socket has the port too, and so has one that is only bound.
        let mut held = tcp_from(&lab.a.ns, SocketAddr::new(any(host), next), server)?;
        ensure!(seen_tcp(&mut held)?.port() == next, "a port of the range is not kept");
        let listener = lab.device.ns.run(|| Ok(TcpListener::bind((device, next))?))?;
        let mut own = lab.out.run(|| Ok(TcpStream::connect((device, next))?))?;
        own.write_all(b"hello")?;
        let (mut accepted, _) = listener.accept()?;
        let mut text = [0; 5];
        accepted.read_exact(&mut text)?;
        eventually(SOON, || {
            let mut again = tcp_from(&lab.a.ns, SocketAddr::new(any(host), next), SocketAddr::new(host, OTHER_PORT))?;
            let seen = seen_tcp(&mut again)?;
            ensure!(seen.port() != next && NAT.contains(&seen.port()), "{seen}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Without a cgroup2 hierarchy no hook reports binds; the device's sockets are looked up when a flow opens.
#[test]
fn without_hooks_sockets_of_the_device_keep_their_answers() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    // A hook is attached as long as its link is pinned.
    std::fs::remove_dir_all(lab.device.pins().join("links/sockets"))?;
    for (family, (host, device)) in HOSTS.into_iter().enumerate() {
        let (port, next) = (21_000 + 10 * family as u16, 21_001 + 10 * family as u16);
        let server = SocketAddr::new(host, PORT);
        let own = udp_at(&lab.device.ns, SocketAddr::new(device, port))?;
        let guest = udp_at(&lab.a.ns, SocketAddr::new(any(host), port))?;
        for _ in 0..3 {
            ensure!(seen_udp(&own, server)?.port() == port, "the device's datagrams");
            let seen = seen_udp(&guest, server)?;
            ensure!(seen.port() != port && NAT.contains(&seen.port()), "{seen}");
        }
        let mut own = tcp_from(&lab.device.ns, SocketAddr::new(device, next), server)?;
        ensure!(seen_tcp(&mut own)?.port() == next, "the device's connection");
        let mut guest = tcp_from(&lab.a.ns, SocketAddr::new(any(host), next), server)?;
        let seen = seen_tcp(&mut guest)?;
        ensure!(seen.port() != next && NAT.contains(&seen.port()), "{seen}");
        lives(&mut own)?;
        lives(&mut guest)?;
    }
    Ok(())
}

/// RFC 4787, REQ-1, and RFC 5382, REQ-1: the outside port of a container's port is the same for all peers, also when
/// two containers use the same port.
#[test]
fn a_port_of_a_container_is_one_port_to_all_peers() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    for (family, (host, device)) in HOSTS.into_iter().enumerate() {
        let peers: Vec<SocketAddr> = [host, SECOND[family].parse()?]
            .into_iter()
            .flat_map(|address| [PORT, OTHER_PORT].map(|port| SocketAddr::new(address, port)))
            .collect();
        let mut mapped = Vec::new();
        for own_port in [40_000, 20_500].map(|port| port + family as u16) {
            for container in [&lab.a, &lab.b] {
                let socket = udp_at(&container.ns, SocketAddr::new(any(host), own_port))?;
                let seen = peers.iter().map(|peer| seen_udp(&socket, *peer)).collect::<Result<Vec<_>>>()?;
                ensure!(seen.iter().all(|s| *s == seen[0] && s.ip() == device), "UDP {own_port}: {seen:?}");
                ensure!(NAT.contains(&seen[0].port()), "UDP {own_port}: {seen:?}");
                mapped.push(("udp", seen[0]));
                let mut streams = Vec::new();
                let mut seen = Vec::new();
                for peer in &peers {
                    let mut stream = tcp_from(&container.ns, SocketAddr::new(any(host), own_port), *peer)?;
                    seen.push(seen_tcp(&mut stream)?);
                    streams.push(stream);
                }
                ensure!(seen.iter().all(|s| *s == seen[0] && s.ip() == device), "TCP {own_port}: {seen:?}");
                mapped.push(("tcp", seen[0]));
            }
        }
        let mut once = mapped.clone();
        once.sort_unstable();
        once.dedup();
        ensure!(once.len() == mapped.len(), "two have one port: {mapped:?}");
    }
    Ok(())
}

/// RFC 5508, REQ-1: the same holds for the identifier of echoes.
#[test]
fn an_echo_identifier_is_one_to_all_peers() -> Result<()> {
    let lab = lab(|_| {})?;
    serve(&lab)?;
    let (out, gateway) = (RawSocket::open(&lab.out, "eth0")?, lab.gateway_mac()?);
    for (family, (host, device)) in HOSTS.into_iter().enumerate() {
        let (kind, l4) = if family == 0 { (frame::IPV4, 34) } else { (frame::IPV6, 54) };
        let mut mapped = Vec::new();
        for container in [&lab.a, &lab.b] {
            let socket = RawSocket::open(&container.ns, "eth0")?;
            let mut seen = Vec::new();
            for peer in [host, SECOND[family].parse()?] {
                let echo = frame::echo(container.addresses()[family], peer, 40_000, 77);
                socket.send(&frame::ethernet(container.mac()?, gateway, kind, &echo))?;
                let octets = match peer {
                    IpAddr::V4(a) => a.octets().to_vec(),
                    IpAddr::V6(a) => a.octets().to_vec(),
                };
                let request = [8, 128][family];
                let ours = |f: &[u8]| {
                    f.len() > l4 + 8
                        && f[12..14] == kind.to_be_bytes()
                        && f[l4] == request
                        && f[l4 - octets.len()..l4] == octets
                        && f[l4 + 6..l4 + 8] == [0, 77]
                };
                let got = out.receive(echo::PATIENCE, ours)?.with_context(|| format!("no echo at {peer}"))?;
                seen.push(u16::from_be_bytes([got[l4 + 4], got[l4 + 5]]));
            }
            ensure!(seen[0] == seen[1] && NAT.contains(&seen[0]), "{device}: {seen:?}");
            mapped.push(seen[0]);
        }
        ensure!(mapped[0] != mapped[1], "{mapped:?}");
    }
    Ok(())
}

/// The outside port is held as long as one of its flows exists, and no longer.
#[test]
fn a_port_that_nobody_uses_is_free_again() -> Result<()> {
    let short = json!({"tcp_opening": 5, "udp": 5, "udp_opening": 5, "other": 5});
    let lab = lab(|config| config["network"]["flow_timeouts"] = short)?;
    serve(&lab)?;
    let path = lab.device.pins().join("maps/nat_owners");
    let owners: Array<_, NatOwner> = Array::try_from(Map::Array(MapData::from_pin(&path)?))?;
    let owner = |v4: bool, port: u16| owners.get(&nat::slot_of(v4, 17, u32::from(port - nat::FIRST_PORT)), 0);
    for (family, (host, _)) in HOSTS.into_iter().enumerate() {
        let port = 20_700 + family as u16;
        let server = SocketAddr::new(host, PORT);
        let mut ports = Vec::new();
        for container in [&lab.a, &lab.b] {
            let socket = udp_at(&container.ns, SocketAddr::new(any(host), port))?;
            ports.push(seen_udp(&socket, server)?.port());
        }
        ensure!(ports[0] == port && ports[1] != port, "{ports:?}");
        for port in &ports {
            ensure!(owner(host.is_ipv4(), *port)?.link() != 0, "{port} is nobody's");
        }
        eventually(SOON, || {
            for port in &ports {
                ensure!(owner(host.is_ipv4(), *port)? == NatOwner::FREE, "{port} is not free");
            }
            Ok(())
        })?;
    }
    Ok(())
}
