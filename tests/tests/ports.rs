//! Published ports are reached from everywhere: both families, TCP and UDP, single ports and ranges.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{AT_ONCE, Container, Device, Namespace, SOON, echo, eventually};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

/// A published port, and the container's port.
const SINGLE: (u16, u16) = (8080, 80);
/// A port in the middle of a published range, and the container's port.
const RANGED: (u16, u16) = (9005, 905);

fn config() -> Value {
    configs::masqueraded()
}

fn web() -> Value {
    json!({"name": "web", "network": {"pool": "internal", "ports":
        ["8080:80/tcp", "8080:80/udp", "9001-9010:901-910/tcp", "9001-9010:901-910/udp"]}})
}

struct Lab {
    device: Device,
    outside: Namespace,
    web: Container,
}

fn lab() -> Result<Lab> {
    let mut device = Device::new(&config())?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&web())?;
    for port in [SINGLE.1, RANGED.1] {
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            // One socket on `::` serves both families.
            if any.is_ipv6() {
                echo::serve(&web.ns, any, port)?;
            }
        }
    }
    Ok(Lab { device, outside, web })
}

fn device_addresses() -> [IpAddr; 2] {
    [Ipv4Addr::new(192, 0, 2, 1).into(), "2001:db8:1::1".parse().expect("address")]
}

/// Whether `seen` is the address that the server should see.
type Check<'a> = &'a dyn Fn(IpAddr) -> bool;

fn reaches(from: &Namespace, what: &str, at: IpAddr, check: Check<'_>) -> Result<()> {
    let blob: Vec<u8> = (0..100_000u32).map(|i| ((i * 13) >> 3) as u8).collect();
    for port in [SINGLE.0, RANGED.0] {
        let server = SocketAddr::new(at, port);
        let seen = echo::tcp(from, server, &blob).with_context(|| format!("{what}: TCP to {server}"))?;
        ensure!(check(seen.ip()), "{what}: TCP to {server}: the server saw {seen}");
        for size in [1, 1200, 9000] {
            let seen = echo::udp(from, server, &blob[..size]).with_context(|| format!("{what}: UDP to {server}"))?;
            ensure!(check(seen.ip()), "{what}: UDP to {server}: the server saw {seen}");
        }
    }
    Ok(())
}

#[test]
fn from_outside_the_clients_address_is_kept() -> Result<()> {
    let lab = lab()?;
    for (at, own) in device_addresses().into_iter().zip(["192.0.2.9", "2001:db8:1::9"]) {
        let own: IpAddr = own.parse()?;
        reaches(&lab.outside, "outside", at, &|seen| seen == own)?;
    }
    Ok(())
}

#[test]
fn from_the_device_by_every_address() -> Result<()> {
    let lab = lab()?;
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let own = |seen: IpAddr| seen == IpAddr::from([10, 0, 3, 1]) || seen.to_string() == "fd00:5056:0:3::1";
    for at in device_addresses().into_iter().chain(loopback) {
        reaches(&lab.device.ns, "device", at, &own)?;
    }
    Ok(())
}

#[test]
fn from_peers_and_from_itself() -> Result<()> {
    let lab = lab()?;
    let (same, other) = (lab.device.attach("same", "internal")?, lab.device.attach("other", "management")?);
    for (i, at) in device_addresses().into_iter().enumerate() {
        for (what, from) in [("peer of the pool", &same), ("peer of another pool", &other)] {
            let own = from.addresses()[i];
            reaches(&from.ns, what, at, &|seen| seen == own)?;
        }
        let gateway = ["10.0.3.1", "fd00:5056:0:3::1"][i];
        reaches(&lab.web.ns, "itself", at, &|seen| seen.to_string() == gateway)?;
    }
    // The gateway's address is an address of the device too.
    reaches(&same.ns, "peer by the gateway", [10, 0, 3, 1].into(), &|seen| seen == IpAddr::from(same.v4))?;
    Ok(())
}

#[test]
fn a_program_sees_the_address_that_it_named() -> Result<()> {
    let lab = lab()?;
    for at in ["127.0.0.1:8080", "192.0.2.1:9005", "[::1]:8080"] {
        let at: SocketAddr = at.parse()?;
        let stream = echo::connect(&lab.device.ns, at)?;
        ensure!(stream.peer_addr()? == at, "TCP: {} instead of {at}", stream.peer_addr()?);
        // The socket is not connected: the answer must come from the address that was asked.
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = lab.device.ns.run(|| Ok(std::net::UdpSocket::bind((any, 0))?))?;
        socket.set_read_timeout(Some(echo::PATIENCE))?;
        socket.send_to(b"who", at)?;
        let (_, from) = socket.recv_from(&mut [0; 100])?;
        ensure!(from == at, "UDP: {from} instead of {at}");
    }
    Ok(())
}

#[test]
fn loopback_only_is_local() -> Result<()> {
    let mut device = Device::new(&config())?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["127.0.0.1:8080:80", "[::1]:8080:80"]}}))?;
    let peer = device.attach("peer", "internal")?;
    echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
    for at in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        echo::tcp(&device.ns, SocketAddr::new(at, 8080), b"local")?;
    }
    for at in device_addresses() {
        for (what, from) in [("outside", &outside), ("a peer", &peer.ns)] {
            let refused = from.run(|| {
                let at = SocketAddr::new(at, 8080);
                Ok(std::net::TcpStream::connect_timeout(&at, Duration::from_millis(500)).is_err())
            })?;
            ensure!(refused, "{what} reached a port of the loopback by {at}");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_published_is_not_reached() -> Result<()> {
    let lab = lab()?;
    lab.outside.ip("route add 10.0.3.0/24 via 192.0.2.1")?;
    lab.outside.ip("-6 route add fd00:5056:0:3::/64 via 2001:db8:1::1")?;
    for at in lab.web.addresses() {
        for port in [SINGLE.1, RANGED.1] {
            let at = SocketAddr::new(at, port);
            let refused = lab
                .outside
                .run(|| Ok(std::net::TcpStream::connect_timeout(&at, Duration::from_millis(300)).is_err()))?;
            ensure!(refused, "outside reached {at} directly");
        }
    }
    // Nobody listens there: the container's own kernel refuses, at once.
    let start = std::time::Instant::now();
    let refused = lab.outside.run(|| Ok(std::net::TcpStream::connect("192.0.2.1:9001").err()))?;
    ensure!(refused.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "port 9001");
    ensure!(start.elapsed() < AT_ONCE, "only after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_refused_with_its_owner() -> Result<()> {
    let lab = lab()?;
    let attach = |ports: Value| {
        let run = json!({"name": "late", "network": {"pool": "internal", "ports": ports}});
        lab.device.attach_run(&run).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let before = lab.device.json(&["leases"])?;
    for (ports, want) in [
        (json!(["8080:1"]), "container web publishes 8080:80/tcp"),
        (json!(["9010-9020:1-11/udp"]), "container web publishes 9001-9010:901-910/udp"),
        (json!(["127.0.0.1:9001:1"]), "container web publishes"),
    ] {
        let said = attach(ports.clone());
        ensure!(said.contains(want) && said.contains("network.ports[0]"), "{ports}: {said}");
    }
    for at in ["0.0.0.0:7777", "127.0.0.1:7778", "[::]:7779"] {
        let _held = lab.device.ns.run(|| Ok(TcpListener::bind(at)?))?;
        let port = at.rsplit(':').next().context("port")?;
        let said = attach(json!([format!("{port}:80")]));
        ensure!(said.contains("listens on") && said.contains(&std::process::id().to_string()), "{at}: {said}");
    }
    ensure!(lab.device.json(&["leases"])? == before, "a refused container has a lease");
    Ok(())
}

#[test]
fn a_mapping_that_goes_takes_its_flows_along() -> Result<()> {
    let lab = lab()?;
    let server = SocketAddr::new([192, 0, 2, 1].into(), SINGLE.0);
    let socket = lab.outside.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:5555")?;
        socket.connect(server)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(echo::PATIENCE))?;
    socket.send(b"one")?;
    socket.recv(&mut [0; 100])?;
    let view = lab.device.json(&["ports"])?;
    ensure!(view.as_array().is_some_and(|p| p.len() == 8), "{view}");
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(lab.device.json(&["ports"])? == json!([]), "ports stay");
    // Another container publishes the port: the old client's next datagram goes to that one.
    let next =
        lab.device.attach_run(&json!({"name": "next", "network": {"pool": "internal", "ports": ["8080:81/udp"]}}))?;
    echo::serve(&next.ns, Ipv6Addr::UNSPECIFIED.into(), 81)?;
    eventually(SOON, || {
        socket.send(b"two")?;
        let mut buffer = [0; 100];
        let n = socket.recv(&mut buffer)?;
        ensure!(buffer[..n].ends_with(b"two"), "another answer");
        Ok(())
    })
}

#[test]
fn a_stray_segment_gets_a_reset() -> Result<()> {
    use harness::{frame, raw::RawSocket};
    let lab = lab()?;
    lab.outside.ping("192.0.2.1", 1)?;
    let raw = RawSocket::open(&lab.outside, "eth0")?;
    let (me, device) = (lab.outside.mac("eth0")?, lab.device.ns.mac("up0")?);
    for (from, to) in ["192.0.2.9", "2001:db8:1::9"].into_iter().zip(device_addresses()) {
        let from: IpAddr = from.parse()?;
        let kind = if from.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        let segment = frame::tcp((from, 1234), (to, SINGLE.0), 0x10, b"late");
        raw.send(&frame::ethernet(me, device, kind, &segment))?;
        let l4 = if from.is_ipv4() { 34 } else { 54 };
        let reset = raw.receive(echo::PATIENCE, |f| {
            f[..6] == me && f[12..14] == kind.to_be_bytes() && f.len() >= l4 + 20 && f[l4 + 13] & 4 != 0
        })?;
        let reset = reset.with_context(|| format!("no reset from {to}"))?;
        ensure!(reset[l4 + 4..l4 + 8] == 2000u32.to_be_bytes(), "a sequence number that nobody accepts");
    }
    Ok(())
}

#[test]
fn published_ports_outlive_the_daemon() -> Result<()> {
    use nix::sys::signal::Signal;
    let mut lab = lab()?;
    let server = SocketAddr::new([192, 0, 2, 1].into(), SINGLE.0);
    lab.device.stop(Signal::SIGKILL)?;
    echo::tcp(&lab.outside, server, &[3; 100_000])?;
    echo::tcp(&lab.device.ns, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SINGLE.0), b"no daemon")?;
    lab.device.start()?;
    echo::tcp(&lab.outside, server, &[3; 100_000])?;
    echo::tcp(&lab.device.ns, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SINGLE.0), b"a new daemon")?;
    let said = lab.device.attach_run(&json!({"name": "late", "network": {"pool": "internal", "ports": ["8080:1"]}}));
    ensure!(said.is_err_and(|e| e.to_string().contains("container web")), "the port is not claimed any more");
    Ok(())
}
