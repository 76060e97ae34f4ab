//! Sends traffic of one flow, and tells what happened to it.

use anyhow::{Context, Result, bail, ensure};
use harness::{AT_ONCE, Namespace, patience};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The right server has answered.
    Passed,
    /// An ICMP error or a reset came.
    Refused,
    /// Nothing came back.
    Silent,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Tcp(u16),
    Udp(u16),
    Ping,
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Ping => f.write_str("icmp"),
        }
    }
}

/// How long to wait for an answer: long when one is expected, since tests run beside each other.
fn wait(due: bool) -> Duration {
    patience(Duration::from_millis(if due { 4000 } else { 400 }))
}

/// Whether an error of a socket comes from an ICMP error or a reset.
pub fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
    )
}

/// What the result of a socket call tells about the flow.
pub fn seen<T>(done: std::io::Result<T>, what: &str) -> Result<Seen> {
    match done.map_err(|e| e.kind()) {
        Ok(_) => Ok(Seen::Passed),
        Err(kind) if is_refusal(kind) => Ok(Seen::Refused),
        Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(Seen::Silent),
        Err(kind) => bail!("{what}: {kind}"),
    }
}

/// Sends `traffic` from `ns` to `to`. `due` says whether an answer is expected, and only changes how long to wait.
pub fn send(ns: &Namespace, to: IpAddr, traffic: Traffic, due: bool) -> Result<Seen> {
    match traffic {
        Traffic::Tcp(port) => tcp(ns, SocketAddr::new(to, port), wait(due)),
        Traffic::Udp(port) => udp(ns, SocketAddr::new(to, port), wait(due)),
        Traffic::Ping => ping(ns, to, due),
    }
}

fn tcp(ns: &Namespace, to: SocketAddr, wait: Duration) -> Result<Seen> {
    let connected = ns.run(|| Ok(TcpStream::connect_timeout(&to, wait)))?;
    let answer = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(wait))?;
        stream.read_exact(&mut [0])
    });
    seen(answer, "TCP")
}

/// A socket in `ns` that is connected to `to`.
pub fn udp_socket(ns: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    ns.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })
}

fn udp(ns: &Namespace, to: SocketAddr, wait: Duration) -> Result<Seen> {
    let socket = udp_socket(ns, to)?;
    socket.set_read_timeout(Some(wait))?;
    // When the device itself does not let a datagram out, `send` gives the error.
    if let Err(e) = socket.send(b"pv") {
        ensure!(matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EPERM)), "UDP: {e}");
        return Ok(Seen::Refused);
    }
    seen(socket.recv(&mut [0; 100]), "UDP")
}

fn ping(ns: &Namespace, to: IpAddr, due: bool) -> Result<Seen> {
    let wait = if due { "4" } else { "0.4" };
    let done = ns.command("ping").args(["-n", "-c1", "-W", wait, &to.to_string()]).output().context("ping")?;
    let said = String::from_utf8_lossy(&done.stdout);
    match () {
        () if done.status.success() => Ok(Seen::Passed),
        () if said.contains("From ") => Ok(Seen::Refused),
        () => Ok(Seen::Silent),
    }
}

/// Fails unless `traffic` passes or does not pass, as `may` says. A refused container must be told at once; on a busy
/// machine one of several tries is enough.
pub fn check(ns: &Namespace, to: IpAddr, traffic: Traffic, may: bool, is_container: bool) -> Result<()> {
    // The start of a program takes some time.
    let at_once = if matches!(traffic, Traffic::Ping) { Duration::from_secs(3) } else { AT_ONCE };
    let mut late = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let seen = send(ns, to, traffic, may || is_container)?;
        let (passed, took) = (seen == Seen::Passed, start.elapsed());
        ensure!(passed == may, "{traffic} to {to}: {seen:?}, and should {}", if may { "pass" } else { "not pass" });
        ensure!(may || !is_container || seen == Seen::Refused, "{traffic} to {to}: refused without an answer");
        if may || !is_container || took < patience(at_once) {
            return Ok(());
        }
        late.push(took);
    }
    anyhow::bail!("{traffic} to {to}: refused only after {late:?}")
}
