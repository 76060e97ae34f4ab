//! An uplink changes or loses its address, or is deleted: connections by it end at once for the container, also for a
//! program that only waits.

use anyhow::{Context, Result, bail, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Container, Device, Namespace, echo, eventually, frame, patience, raw::RawSocket};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const NEXT: [&str; 2] = ["192.0.2.2/24", "2001:db8:1::2/64"];
const PORT: u16 = 7000;
/// The time from the change of the address to the error in the program.
const AT_ONCE: Duration = Duration::from_secs(1);

struct Lab {
    device: Device,
    outside: Namespace,
    a: Container,
}

fn lab() -> Result<Lab> {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["up0", "up1"]);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    let mut device = Device::new(&config)?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let a = device.attach_run(&json!({"name": "a", "network": {"pool": "internal", "ports": ["8080:80/tcp"]}}))?;
    echo::serve(&outside, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    Ok(Lab { device, outside, a })
}

fn address(network: &str) -> Result<IpAddr> {
    Ok(network.split('/').next().context("address")?.parse()?)
}

fn connected(ns: &Namespace, at: SocketAddr) -> Result<TcpStream> {
    let mut stream = echo::connect(ns, at)?;
    let mut byte = [0u8];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    stream.set_read_timeout(Some(patience(Duration::from_secs(20))))?;
    Ok(stream)
}

type Ended = (ErrorKind, Instant);

/// Waits in `recv`, or sends all the time; gives the error that ended it, and when it came.
fn ends(mut stream: TcpStream, sends: bool) -> JoinHandle<Result<Ended>> {
    std::thread::spawn(move || {
        let mut buffer = [0; 1000];
        loop {
            if sends {
                std::thread::sleep(Duration::from_millis(10));
                if let Err(why) = stream.write_all(b"and so on") {
                    return Ok((why.kind(), Instant::now()));
                }
            }
            match stream.read(&mut buffer) {
                Ok(0) => bail!("the connection ended as if all was well"),
                Ok(_) if sends => {}
                Ok(n) => bail!("{n} bytes of nobody"),
                Err(why) => return Ok((why.kind(), Instant::now())),
            }
        }
    })
}

fn told(what: &str, clients: Vec<JoinHandle<Result<Ended>>>, since: Instant) -> Result<()> {
    for (client, who) in clients.into_iter().zip(["one that waits", "one that sends"]) {
        let (error, at) = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        let after = at.duration_since(since);
        println!("{what}: {who}: {error} after {after:?}");
        ensure!(error == ErrorKind::ConnectionReset, "{what}: {who}: {error}");
        ensure!(after < patience(AT_ONCE), "{what}: {who} was told after {after:?}");
    }
    Ok(())
}

#[test]
fn a_connection_ends_with_its_address() -> Result<()> {
    let lab = lab()?;
    for family in 0..2 {
        let far = SocketAddr::new(address(HOST[family])?, PORT);
        let ip = |verb: &str, address: &str| {
            let nodad = if verb == "add" && family == 1 { "nodad" } else { "" };
            lab.device.ns.ip(&format!("addr {verb} {address} dev up0 {nodad}"))
        };
        for (what, next) in [("changed", Some(NEXT[family])), ("lost", None)] {
            let what = format!("{far}, address {what}");
            let clients = vec![ends(connected(&lab.a.ns, far)?, false), ends(connected(&lab.a.ns, far)?, true)];
            // A connection by an address that stays.
            let inside = connected(&lab.outside, SocketAddr::new(address(DEVICE[family])?, PORT)).is_err();
            ensure!(inside, "the device has an echo server");
            std::thread::sleep(Duration::from_millis(100));
            let since = Instant::now();
            ip("del", DEVICE[family])?;
            if let Some(next) = next {
                ip("add", next)?;
            }
            told(&what, clients, since)?;
            if let Some(next) = next {
                let seen = eventually(Duration::from_secs(10), || echo::tcp(&lab.a.ns, far, b"again"))?;
                ensure!(seen.ip() == address(next)?, "{what}: from {seen}");
                ip("del", next)?;
            }
            ip("add", DEVICE[family])?;
            eventually(Duration::from_secs(10), || echo::tcp(&lab.a.ns, far, b"again"))?;
        }
    }
    Ok(())
}

#[test]
fn a_connection_ends_with_its_link() -> Result<()> {
    let lab = lab()?;
    let mut clients = Vec::new();
    for host in HOST {
        let far = SocketAddr::new(address(host)?, PORT);
        clients.push(vec![ends(connected(&lab.a.ns, far)?, false), ends(connected(&lab.a.ns, far)?, true)]);
    }
    std::thread::sleep(Duration::from_millis(100));
    let since = Instant::now();
    lab.device.ns.ip("link del up0")?;
    for clients in clients {
        told("link gone", clients, since)?;
    }
    Ok(())
}

/// IPv4 addresses stay on a link that is set down, so only the link's state tells.
#[test]
fn a_connection_ends_when_its_link_is_set_down() -> Result<()> {
    let lab = lab()?;
    let other = lab.device.outside(
        "up1",
        &["198.51.100.1/24", "2001:db8:2::1/64"],
        &["198.51.100.9/24", "2001:db8:2::9/64"],
    )?;
    echo::serve(&other, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    eventually(Duration::from_secs(10), || {
        for at in ["198.51.100.9", "2001:db8:2::9"] {
            echo::tcp(&lab.a.ns, SocketAddr::new(at.parse()?, PORT), b"behind the other uplink")?;
        }
        Ok(())
    })?;
    let listener = lab.a.ns.run(|| Ok(std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?))?;
    let (mut clients, mut remain, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    for family in 0..2 {
        let far = SocketAddr::new(address(HOST[family])?, PORT);
        clients.push(vec![ends(connected(&lab.a.ns, far)?, false), ends(connected(&lab.a.ns, far)?, true)]);
        peers.push(echo::connect(&lab.outside, SocketAddr::new(address(DEVICE[family])?, 8080))?);
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(patience(Duration::from_secs(20))))?;
        clients.push(vec![ends(server, false)]);
    }
    for at in ["198.51.100.9", "2001:db8:2::9"] {
        remain.push(connected(&lab.a.ns, SocketAddr::new(at.parse()?, PORT))?);
    }
    std::thread::sleep(Duration::from_millis(100));
    let since = Instant::now();
    lab.device.ns.ip("link set up0 down")?;
    for clients in clients {
        told("link set down", clients, since)?;
    }
    // Only the connections by that uplink end.
    for stream in &mut remain {
        let mut back = [0; 5];
        stream.write_all(b"still")?;
        stream.read_exact(&mut back).context("a connection by another uplink")?;
        ensure!(&back == b"still", "{back:?}");
    }
    // The kernel has removed the IPv6 addresses of the link that was set down, and kept those of IPv4.
    lab.device.ns.ip("link set up0 up")?;
    lab.device.ns.ip(&format!("addr add {} dev up0 nodad", DEVICE[1]))?;
    for host in HOST {
        let far = SocketAddr::new(address(host)?, PORT);
        eventually(Duration::from_secs(20), || echo::tcp(&lab.a.ns, far, b"again"))?;
    }
    Ok(())
}

#[test]
fn a_server_learns_that_its_client_is_gone() -> Result<()> {
    let lab = lab()?;
    let listener = lab.a.ns.run(|| Ok(std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?))?;
    for device in DEVICE {
        let client = echo::connect(&lab.outside, SocketAddr::new(address(device)?, 8080))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(patience(Duration::from_secs(20))))?;
        let server = ends(server, false);
        std::thread::sleep(Duration::from_millis(100));
        let since = Instant::now();
        lab.device.ns.ip(&format!("addr del {device} dev up0"))?;
        told(&format!("server behind {device}"), vec![server], since)?;
        drop(client);
    }
    Ok(())
}

/// Without a flow, a segment in the middle of a connection would leave with a newly chosen address and port.
#[test]
fn a_segment_of_no_connection_does_not_leave() -> Result<()> {
    let lab = lab()?;
    let said = lab.device.ns.ip("-br link show pvbr3")?;
    let gateway = frame::parse_mac(said.split_whitespace().nth(2).context("MAC")?)?;
    let (inside, wire) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.outside, "eth0")?);
    for (family, host) in HOST.iter().enumerate() {
        let (own, far) = ((lab.a.addresses()[family], 4321), (address(host)?, PORT));
        let kind = if family == 0 { frame::IPV4 } else { frame::IPV6 };
        let at = if family == 0 { 34 } else { 54 };
        let grown = lab.device.counted(|| {
            for flags in [0x10, 0x18, 0x11] {
                inside.send(&frame::ethernet(lab.a.mac()?, gateway, kind, &frame::tcp(own, far, flags, b"late")))?;
                let to_us = |f: &[u8]| f.len() > at + 13 && f[at..at + 4] == [0x1b, 0x58, 0x10, 0xe1];
                let reset = inside.receive(Duration::from_secs(5), to_us)?.context("no answer")?;
                ensure!(reset[at + 13] & 4 != 0, "flags {:#x}", reset[at + 13]);
            }
            // A reset without a flow is not answered, and does not leave either.
            inside.send(&frame::ethernet(lab.a.mac()?, gateway, kind, &frame::tcp(own, far, 4, b"")))?;
            Ok(())
        })?;
        ensure!(grown["no-flow"] >= 3 && grown["answered"] >= 3, "{grown:?}");
        let leaked =
            wire.receive(Duration::from_millis(500), |f| f.len() > at + 4 && f[at + 2..at + 4] == [0x1b, 0x58])?;
        ensure!(leaked.is_none(), "{leaked:02x?}");
        ensure!(lab.device.json(&["flows"])?.as_array().is_some_and(Vec::is_empty), "it became a flow");
    }
    Ok(())
}
