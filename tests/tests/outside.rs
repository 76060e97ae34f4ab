//! Containers and hosts behind an uplink: masquerade, routing, ICMP errors, path MTU.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Container, Device, Namespace, Process, SOON, echo, eventually};
use pv_net_common::nat;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

const PORT: u16 = 7000;

fn config() -> Value {
    configs::masqueraded()
}

struct Lab {
    device: Device,
    outside: Namespace,
    a: Container,
}

fn lab(config: &Value) -> Result<Lab> {
    let mut device = Device::new(config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let a = device.attach("a", "internal")?;
    Ok(Lab { device, outside, a })
}

fn hosts() -> [(IpAddr, IpAddr); 2] {
    [([192, 0, 2, 9].into(), [192, 0, 2, 1].into()), addr("2001:db8:1::9", "2001:db8:1::1")]
}

fn addr(host: &str, device: &str) -> (IpAddr, IpAddr) {
    (host.parse().expect("address"), device.parse().expect("address"))
}

#[test]
fn masquerade_hides_the_container_behind_the_uplink() -> Result<()> {
    let lab = lab(&config())?;
    let blob: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 11) >> 3) as u8).collect();
    for (host, device) in hosts() {
        echo::serve(&lab.outside, host, PORT)?;
        lab.a.ns.ping(host, 10)?;
        let server = SocketAddr::new(host, PORT);
        let grown = lab.device.counted(|| {
            ensure!(echo::tcp(&lab.a.ns, server, &blob)?.ip() == device, "TCP: not the uplink's address");
            for size in [0, 1, 1200, 5000, 40_000] {
                ensure!(echo::udp(&lab.a.ns, server, &blob[..size])?.ip() == device, "UDP of {size}");
            }
            Ok(())
        })?;
        ensure!(grown["fast-path"] > 10, "{grown:?}");
    }
    Ok(())
}

#[test]
fn two_containers_with_one_source_port_are_told_apart() -> Result<()> {
    let lab = lab(&config())?;
    let b = lab.device.attach("b", "internal")?;
    for (host, device) in hosts() {
        echo::serve(&lab.outside, host, PORT)?;
        let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        // A different port for each family: a program that another test starts may hold a closed socket for a moment.
        let own_port = if host.is_ipv4() { 5555 } else { 5557 };
        let mut seen = Vec::new();
        let mut sockets = Vec::new();
        for container in [&lab.a, &b] {
            let socket = container.ns.run(|| {
                let socket = std::net::UdpSocket::bind((any, own_port))?;
                socket.connect((host, PORT))?;
                Ok(socket)
            })?;
            socket.set_read_timeout(Some(echo::PATIENCE))?;
            socket.send(container.host_if().as_bytes())?;
            sockets.push(socket);
        }
        for (socket, container) in sockets.iter().zip([&lab.a, &b]) {
            let mut buffer = [0; 200];
            let n = socket.recv(&mut buffer)?;
            let text = std::str::from_utf8(&buffer[..n])?;
            let (client, echoed) = text.split_once('\n').context("no first line")?;
            ensure!(echoed == container.host_if(), "an answer for another container");
            let client: SocketAddr = client.parse()?;
            ensure!(client.ip() == device, "{client}");
            seen.push(client.port());
        }
        // Each has one of masquerade's ports.
        ensure!(
            seen[0] != seen[1] && seen.iter().all(|port| nat::offset_of(nat::FIRST_PORT, *port).is_some()),
            "{seen:?}"
        );
    }
    Ok(())
}

#[test]
fn the_devices_own_sockets_keep_their_ports() -> Result<()> {
    let lab = lab(&config())?;
    for (host, device) in hosts() {
        echo::serve(&lab.outside, host, PORT)?;
        // A port of masquerade's range, which the container's flow could have.
        let port = if host.is_ipv4() { nat::FIRST_PORT + 556 } else { nat::FIRST_PORT + 558 };
        let own = lab.device.ns.run(|| {
            let socket = std::net::UdpSocket::bind((device, port))?;
            socket.connect((host, PORT))?;
            Ok(socket)
        })?;
        own.set_read_timeout(Some(echo::PATIENCE))?;
        let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let guest = lab.a.ns.run(|| {
            let socket = std::net::UdpSocket::bind((any, port))?;
            socket.connect((host, PORT))?;
            Ok(socket)
        })?;
        guest.set_read_timeout(Some(echo::PATIENCE))?;
        for (socket, text) in [(&guest, "guest"), (&own, "own"), (&guest, "guest")] {
            socket.send(text.as_bytes())?;
            let mut buffer = [0; 200];
            let n = socket.recv(&mut buffer)?;
            ensure!(buffer[..n].ends_with(format!("\n{text}").as_bytes()), "an answer for another");
        }
    }
    Ok(())
}

#[test]
fn without_nat_the_address_is_kept() -> Result<()> {
    let mut config = config();
    config["network"]["pools"]["internal"]["nat"] = json!(false);
    let lab = lab(&config)?;
    lab.outside.ip("route add 10.0.3.0/24 via 192.0.2.1")?;
    lab.outside.ip("-6 route add fd00:5056:0:3::/64 via 2001:db8:1::1")?;
    for ((host, _), own) in hosts().into_iter().zip(lab.a.addresses()) {
        echo::serve(&lab.outside, host, PORT)?;
        lab.a.ns.ping(host, 3)?;
        ensure!(echo::tcp(&lab.a.ns, SocketAddr::new(host, PORT), &[5; 100_000])?.ip() == own, "not its own address");
        // From outside only published ports are reached.
        echo::serve(&lab.a.ns, own, PORT)?;
        let refused = lab.outside.run(|| {
            Ok(std::net::TcpStream::connect_timeout(&SocketAddr::new(own, PORT), Duration::from_millis(500)).is_err())
        })?;
        ensure!(refused, "outside reached a port that is not published");
    }
    ensure!(lab.device.counters()?["unpublished"] > 0, "not counted");
    Ok(())
}

/// Two routers behind the uplink, a link with a small MTU between them, and a host behind those.
fn far(lab: &Lab) -> Result<Namespace> {
    let far = Namespace::new("far")?;
    lab.outside.connect(
        ("eth1", &["198.51.100.1/24", "2001:db8:2::1/64"]),
        &far,
        ("eth0", &["198.51.100.9/24", "2001:db8:2::9/64"]),
    )?;
    for (namespace, v4, v6) in [(&lab.device.ns, "192.0.2.9", "2001:db8:1::9"), (&far, "198.51.100.1", "2001:db8:2::1")]
    {
        namespace.ip(&format!("route add default via {v4}"))?;
        namespace.ip(&format!("-6 route add default via {v6}"))?;
    }
    lab.outside.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    Ok(far)
}

#[test]
fn traceroute_goes_through_masquerade() -> Result<()> {
    let lab = lab(&config())?;
    let _far = far(&lab)?;
    for (target, hops) in [
        ("198.51.100.9", ["10.0.3.1", "192.0.2.9", "198.51.100.9"]),
        ("2001:db8:2::9", ["fd00:5056:0:3::1", "2001:db8:1::9", "2001:db8:2::9"]),
    ] {
        for how in ["-U", "-T -p 80", "-I"] {
            let said = lab.a.ns.sh(&format!("traceroute -n -q 1 -w 2 {how} {target}"))?;
            let seen: Vec<&str> = said.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
            ensure!(seen == hops, "{how} {target}: {said}");
        }
    }
    Ok(())
}

#[test]
fn path_mtu_is_learned_through_masquerade() -> Result<()> {
    let mut config = config();
    // A fixed MTU: without it the pool follows the uplink.
    config["network"]["pools"]["internal"]["mtu"] = json!(1500);
    let lab = lab(&config)?;
    let far = far(&lab)?;
    // The container has 1500, the uplink 1400, and a hop behind it 1280.
    for (namespace, link, mtu) in [(&lab.device.ns, "up0", 1400), (&lab.outside, "eth0", 1400)] {
        namespace.ip(&format!("link set {link} mtu {mtu}"))?;
    }
    for (namespace, link) in [(&lab.outside, "eth1"), (&far, "eth0")] {
        namespace.ip(&format!("link set {link} mtu 1280"))?;
    }
    ensure!(lab.a.ns.ip("link show eth0")?.contains("mtu 1500"), "the container's MTU");
    let blob: Vec<u8> = (0..65_536u32).map(|i| ((i * 11) >> 3) as u8).collect();
    // The daemon follows the uplink's MTU.
    eventually(SOON, || {
        let said = lab.a.ns.command("ping").args(["-n", "-c1", "-W1", "-Mdo", "-s1472", "192.0.2.9"]).output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        ensure!(said.contains("1400"), "{said}");
        Ok(())
    })?;
    for host in ["198.51.100.9", "2001:db8:2::9"] {
        let host: IpAddr = host.parse()?;
        echo::serve(&far, host, PORT)?;
        let server = SocketAddr::new(host, PORT);
        echo::tcp(&lab.a.ns, server, &blob)?;
        // The first datagrams are lost; their ICMP errors tell the path's MTU, as on any such path.
        eventually(SOON, || {
            let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let socket = lab.a.ns.run(|| Ok(std::net::UdpSocket::bind((any, 0))?))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send(&blob[..60_000])?;
            let mut buffer = vec![0; 65_536];
            let n = socket.recv(&mut buffer)?;
            let end = buffer[..n].iter().position(|b| *b == b'\n').context("first line")?;
            ensure!(buffer[end + 1..n] == blob[..60_000], "other bytes came back");
            Ok(())
        })
        .with_context(|| format!("UDP of 60,000 bytes to {host}"))?;
    }
    Ok(())
}

#[test]
fn a_closed_port_outside_is_refused_at_once() -> Result<()> {
    let lab = lab(&config())?;
    for (host, _) in hosts() {
        let refused = lab.a.ns.run(|| Ok(std::net::TcpStream::connect((host, 9)).err()))?;
        ensure!(refused.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "TCP to {host}");
        let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = lab.a.ns.run(|| Ok(std::net::UdpSocket::bind((any, 0))?))?;
        socket.connect((host, 9))?;
        socket.set_read_timeout(Some(echo::PATIENCE))?;
        socket.send(b"x")?;
        let answer = socket.recv(&mut [0; 16]).err();
        ensure!(
            answer.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused),
            "UDP to {host}: {answer:?}"
        );
    }
    Ok(())
}

#[test]
fn an_uplink_with_another_address_ends_its_flows() -> Result<()> {
    let lab = lab(&config())?;
    for ((host, old), (new, length)) in hosts().into_iter().zip([("192.0.2.2", 24), ("2001:db8:1::2", 64)]) {
        echo::serve(&lab.outside, host, PORT)?;
        let server = SocketAddr::new(host, PORT);
        ensure!(echo::tcp(&lab.a.ns, server, b"before")?.ip() == old, "before");
        let held = echo::connect(&lab.a.ns, server)?;
        let add = format!("addr add {new}/{length} dev up0{}", if old.is_ipv6() { " nodad" } else { "" });
        lab.device.ns.ip(&add)?;
        lab.device.ns.ip(&format!("addr del {old}/{length} dev up0"))?;
        // The kernel may have removed the secondary address together with its primary one.
        if !lab.device.ns.ip("addr show up0")?.contains(new) {
            lab.device.ns.ip(&add)?;
        }
        let new: IpAddr = new.parse()?;
        eventually(SOON, || {
            let seen = echo::tcp(&lab.a.ns, server, b"after")?;
            ensure!(seen.ip() == new, "{seen}");
            Ok(())
        })?;
        // An address is added and another one removed: the new one may be used before the daemon hears of the removal.
        eventually(SOON, || {
            let flows = lab.device.json(&["flows"])?;
            ensure!(!flows.to_string().contains(&format!("{old}\"")), "{flows}");
            Ok(())
        })?;
        drop(held);
    }
    Ok(())
}

#[test]
fn masquerade_outlives_the_daemon() -> Result<()> {
    use nix::sys::signal::Signal;
    let mut lab = lab(&config())?;
    echo::serve(&lab.outside, [192, 0, 2, 9].into(), PORT)?;
    let ping =
        Process::start(lab.a.ns.command("ping").args(["-n", "-q", "-i", "0.005", "192.0.2.9"]).stdout(Stdio::piped()))?;
    let mut stream = echo::connect(&lab.a.ns, SocketAddr::new([192, 0, 2, 9].into(), PORT))?;
    for _ in 0..5 {
        lab.device.stop(Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_millis(50));
        lab.device.start()?;
    }
    use std::io::{Read, Write};
    stream.write_all(b"still here")?;
    let mut text = vec![0; 200];
    let mut got = Vec::new();
    while !got.ends_with(b"still here") {
        let n = stream.read(&mut text)?;
        ensure!(n > 0, "the connection ended");
        got.extend_from_slice(&text[..n]);
    }
    ping.signal(Signal::SIGINT)?;
    let said = ping.finish(SOON)?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

#[test]
fn an_uplink_is_used_when_it_comes() -> Result<()> {
    let mut device = Device::new(&config())?;
    device.start()?;
    let a = device.attach("a", "internal")?;
    let conditions = || device.json(&["status"]).map(|s| s["conditions"].to_string());
    ensure!(conditions()?.contains("uplink up0: no such link"), "{}", conditions()?);
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    for (host, own) in hosts() {
        echo::serve(&outside, host, PORT)?;
        eventually(SOON, || {
            let seen = echo::udp(&a.ns, SocketAddr::new(host, PORT), b"hello")?;
            ensure!(seen.ip() == own, "{seen}");
            Ok(())
        })?;
    }
    ensure!(!conditions()?.contains("up0"), "{}", conditions()?);
    // The uplink is deleted and made again: another link of the same name.
    device.ns.ip("link del up0")?;
    eventually(SOON, || {
        ensure!(conditions()?.contains("uplink up0: no such link"), "{}", conditions()?);
        Ok(())
    })?;
    let again = device.outside("up0", &DEVICE, &HOST)?;
    for (host, _) in hosts() {
        echo::serve(&again, host, PORT)?;
        eventually(SOON, || echo::udp(&a.ns, SocketAddr::new(host, PORT), b"again").map(drop))?;
    }
    Ok(())
}

#[test]
fn without_a_list_default_routes_name_the_uplinks() -> Result<()> {
    let mut config = config();
    config["network"]["uplinks"] = json!([]);
    let lab = lab(&config)?;
    let far = far(&lab)?;
    for (host, own) in [addr("198.51.100.9", "192.0.2.1"), addr("2001:db8:2::9", "2001:db8:1::1")] {
        echo::serve(&far, host, PORT)?;
        eventually(SOON, || {
            let seen = echo::udp(&lab.a.ns, SocketAddr::new(host, PORT), b"hello")?;
            ensure!(seen.ip() == own, "{seen}");
            Ok(())
        })?;
    }
    Ok(())
}
