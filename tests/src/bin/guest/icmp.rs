//! Echo requests from a socket of this process; a guest has no `ping`.

use anyhow::{Context, Result, ensure};
use harness::{Namespace, patience};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an echo header.
const HEADER: usize = 8;

/// Fails unless each of `count` echo requests to `target` is answered with its own bytes.
pub fn ping(ns: &Namespace, target: IpAddr, count: u16) -> Result<()> {
    let socket = open(ns, target)?;
    for number in 0..count {
        echo(&socket, target, number).with_context(|| format!("echo {number} to {target}"))?;
    }
    Ok(())
}

/// Fails when an echo request to `target` is answered.
pub fn silent(ns: &Namespace, target: IpAddr) -> Result<()> {
    let socket = open(ns, target)?;
    // Not scaled by `patience`: even in the slowest machine an answer takes a few milliseconds only.
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure!(echo(&socket, target, 0).is_err(), "{target} answers");
    Ok(())
}

fn echo(socket: &UdpSocket, target: IpAddr, number: u16) -> Result<()> {
    let (request, reply) = if target.is_ipv4() { (8, 0) } else { (128, 129) };
    let [high, low] = number.to_be_bytes();
    let payload = [high ^ 0x5a; 56];
    // The kernel fills in checksum and identifier of an echo socket.
    let message = [&[request, 0, 0, 0, 0, 0, high, low], &payload[..]].concat();
    socket.send(&message).context("send")?;
    let mut buffer = [0u8; 256];
    let length = socket.recv(&mut buffer).context("no answer")?;
    let answer = buffer.get(..length).unwrap_or_default();
    ensure!(length == message.len() && answer[0] == reply && answer[6..] == message[6..], "answered by {answer:02x?}");
    ensure!(HEADER + payload.len() == length, "{length} bytes");
    Ok(())
}

/// An echo socket (icmp(7)), connected, so that ICMP errors are seen as its own.
fn open(ns: &Namespace, target: IpAddr) -> Result<UdpSocket> {
    ns.run(|| {
        // In a new namespace nobody may open an echo socket.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").context("ping_group_range")?;
        let (family, protocol) = if target.is_ipv4() {
            (AddressFamily::Inet, SockProtocol::Icmp)
        } else {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        };
        // An echo socket has the same calls as a UDP socket.
        let socket = UdpSocket::from(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?);
        socket.connect(SocketAddr::new(target, 0))?;
        socket.set_read_timeout(Some(patience(PATIENCE)))?;
        Ok(socket)
    })
}
