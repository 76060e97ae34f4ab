//! Containers and a host beyond an uplink: masquerade, ICMP errors of masqueraded flows, published ports.

use super::life::{exchange, greeted};
use crate::lab::{HOSTS, Lab, kernel};
use crate::{console, icmp};
use anyhow::{Context, Result, ensure};
use harness::{Container, Namespace, echo, patience};
use nix::sys::signal::Signal;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// A port that nobody listens on.
const CLOSED: u16 = 9;
/// The published port, and the container's port behind it.
const PUBLISHED: (u16, u16) = (8080, 80);

fn blob(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 11) >> 3) as u8).collect()
}

/// TCP, UDP and echo out of `from` to the host on the lab's uplink.
fn hidden(lab: &Lab, from: &Container, port: u16) -> Result<()> {
    hidden_from(&lab.outside, HOSTS, from, port)
}

/// TCP, UDP and echo from `from` to `outside`, which sees the uplink's address. `pairs` are the addresses of both.
pub fn hidden_from(outside: &Namespace, pairs: [(IpAddr, IpAddr); 2], from: &Container, port: u16) -> Result<()> {
    let blob = blob(100_000);
    for (host, device) in pairs {
        echo::serve(outside, host, port)?;
        let server = SocketAddr::new(host, port);
        icmp::ping(&from.ns, host, 5)?;
        let seen = echo::tcp(&from.ns, server, &blob).with_context(|| format!("TCP to {server}"))?;
        ensure!(seen.ip() == device, "TCP to {server}: it saw {seen}");
        for size in [1, 1200, 9000] {
            let seen = echo::udp(&from.ns, server, &blob[..size]).with_context(|| format!("UDP to {server}"))?;
            ensure!(seen.ip() == device, "UDP of {size} bytes to {server}: it saw {seen}");
        }
    }
    Ok(())
}

/// The pool is hidden behind the uplink's address.
pub fn masquerade(lab: &mut Lab) -> Result<()> {
    let grown = lab.counted(|| hidden(lab, &lab.a, 7400))?;
    ensure!(grown["fast-path"] > 20, "{grown:?}");
    Ok(())
}

/// Whether a connection, and a datagram, are refused.
fn refused(from: &Namespace, at: SocketAddr) -> Result<()> {
    let tcp = from.run(|| Ok(TcpStream::connect_timeout(&at, patience(echo::PATIENCE)).err()))?;
    ensure!(tcp.as_ref().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused), "TCP to {at}: {tcp:?}");
    let udp = || -> Result<Option<std::io::Error>> {
        let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(patience(Duration::from_secs(2))))?;
        socket.send(b"anyone?")?;
        Ok(socket.recv(&mut [0; 16]).err())
    };
    let udp = from.run(udp)?;
    ensure!(udp.as_ref().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused), "UDP to {at}: {udp:?}");
    Ok(())
}

/// ICMP errors "port unreachable" and TCP resets for masqueraded flows reach the container.
pub fn closed_port(lab: &mut Lab) -> Result<()> {
    HOSTS.iter().try_for_each(|(host, _)| refused(&lab.a.ns, SocketAddr::new(*host, CLOSED)))
}

/// A published port, reached from the host: the container sees the host's address.
pub fn published(lab: &mut Lab) -> Result<()> {
    // One socket on `::` serves both families.
    echo::serve(&lab.web.ns, Ipv6Addr::UNSPECIFIED.into(), PUBLISHED.1)?;
    published_to(&lab.outside, HOSTS)?;
    for (_, device) in HOSTS {
        let at = SocketAddr::new(device, PUBLISHED.0);
        // Another container reaches the port by the device's address.
        echo::tcp(&lab.a.ns, at, &blob(100_000)).with_context(|| format!("TCP to {at} from a peer"))?;
        ensure!(refused(&lab.outside, SocketAddr::new(device, CLOSED)).is_ok(), "{device}: {CLOSED} answers");
    }
    Ok(())
}

/// A published port, reached from `outside` by the device's address in each pair: the container sees the other address.
pub fn published_to(outside: &Namespace, pairs: [(IpAddr, IpAddr); 2]) -> Result<()> {
    let blob = blob(100_000);
    for (host, device) in pairs {
        let at = SocketAddr::new(device, PUBLISHED.0);
        let seen = echo::tcp(outside, at, &blob).with_context(|| format!("TCP to {at}"))?;
        ensure!(seen.ip() == host, "TCP to {at}: the container saw {seen}");
        for size in [1200, 9000] {
            let seen = echo::udp(outside, at, &blob[..size]).with_context(|| format!("UDP of {size} bytes to {at}"))?;
            ensure!(seen.ip() == host, "UDP to {at}: the container saw {seen}");
        }
    }
    Ok(())
}

/// A published port, reached from the device itself, by loopback and by the uplink's address.
pub fn published_here(lab: &mut Lab) -> Result<()> {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let all = loopback.into_iter().chain(HOSTS.map(|(_, device)| device));
    let blob = blob(50_000);
    for at in all.map(|addr| SocketAddr::new(addr, PUBLISHED.0)) {
        if kernel()? < (5, 14) {
            // SO_NETNS_COOKIE came with kernel 5.14. Without it the programs cannot tell the namespace of a socket and
            // are not attached. `status` has a condition about it, and nothing answers on the port.
            refused(&lab.device.ns, at)?;
            console::fact(&format!("{at} is not led to a container from the device itself"));
            continue;
        }
        echo::tcp(&lab.device.ns, at, &blob).with_context(|| format!("TCP to {at}"))?;
        echo::udp(&lab.device.ns, at, &blob[..1200]).with_context(|| format!("UDP to {at}"))?;
        let stream = echo::connect(&lab.device.ns, at)?;
        ensure!(stream.peer_addr()? == at, "the program sees {} instead of {at}", stream.peer_addr()?);
    }
    Ok(())
}

/// A masqueraded connection goes on while the daemon is killed, absent, and started again.
pub fn masquerade_survives(lab: &mut Lab) -> Result<()> {
    let port = 7410;
    let mut streams = Vec::new();
    for (host, _) in HOSTS {
        echo::serve(&lab.outside, host, port)?;
        streams.push(greeted(&lab.a.ns, SocketAddr::new(host, port))?);
    }
    let mut speak = |words: &[u8]| streams.iter_mut().try_for_each(|stream| exchange(stream, words));
    lab.device.stop(Signal::SIGKILL)?;
    speak(b"without a daemon").context("while there was no daemon")?;
    // New flows, and a connection by the published port.
    hidden(lab, &lab.b, 7411).context("while there was no daemon")?;
    let (_, device) = HOSTS[0];
    echo::tcp(&lab.outside, SocketAddr::new(device, PUBLISHED.0), b"in").context("while there was no daemon")?;
    lab.device.start()?;
    speak(b"with a new one").context("with a new daemon")?;
    hidden(lab, &lab.a, 7412).context("with a new daemon")
}
