//! Flows of each kind are removed after their time-out and not before, and their masquerade ports become free.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::{Container, Device, Namespace, echo, frame, raw::RawSocket};
use nix::sys::socket::{setsockopt, sockopt};
use pv_net_common::nat;
use serde_json::{Value, json};
use std::any::Any;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Addresses behind the host. The host forwards nothing there, and sends no error.
const SILENT: [&str; 2] = ["198.51.100.1", "2001:db8:9::1"];
const PORT: u16 = 7000;
/// The port of a server that accepts connections and sends nothing.
const IDLE_PORT: u16 = 7001;
/// The time between two sweeps of the daemon, and a margin for a busy machine.
const LATE: Duration = Duration::from_secs(9);

struct Lab {
    device: Device,
    outside: Namespace,
    a: Container,
    b: Container,
    gateway_mac: [u8; 6],
    // Sockets that are kept so that they stay open.
    held: Vec<Box<dyn Any>>,
}

fn timeouts() -> BTreeMap<&'static str, u64> {
    [
        ("tcp_opening", 8),
        ("tcp", 20),
        ("tcp_half_closed", 14),
        ("tcp_closed", 10),
        ("udp_opening", 6),
        ("udp", 16),
        ("other", 12),
    ]
    .into()
}

fn lab() -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["flow_timeouts"] = json!(timeouts());
    let mut device = Device::new(&config)?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.ns.ip("route add default via 192.0.2.9")?;
    device.ns.ip("-6 route add default via 2001:db8:1::9")?;
    device.start()?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    echo::serve(&outside, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    let listener = outside.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, IDLE_PORT))?))?;
    let said = device.ns.ip("-br link show pvbr3")?;
    let gateway_mac = frame::parse_mac(said.split_whitespace().nth(2).context("MAC")?)?;
    Ok(Lab { device, outside, a, b, gateway_mac, held: vec![Box::new(listener)] })
}

impl Lab {
    fn send(&self, from: &Container, packet: &[u8]) -> Result<()> {
        let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
        RawSocket::open(&from.ns, "eth0")?.send(&frame::ethernet(from.mac()?, self.gateway_mac, kind, packet))
    }

    fn udp(&mut self, port: u16, at: SocketAddr, answered: bool) -> Result<u16> {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = self.a.ns.run(|| Ok(UdpSocket::bind((any, port))?))?;
        socket.set_read_timeout(Some(echo::PATIENCE))?;
        socket.send_to(b"once", at)?;
        if answered {
            socket.recv(&mut [0; 200])?;
        }
        self.held.push(Box::new(socket));
        Ok(port)
    }

    fn connected(&self, at: SocketAddr) -> Result<(TcpStream, u16)> {
        let mut stream = echo::connect(&self.a.ns, at)?;
        if at.port() == PORT {
            let mut byte = [0u8];
            while byte != *b"\n" {
                stream.read_exact(&mut byte)?;
            }
        }
        let port = stream.local_addr()?.port();
        Ok((stream, port))
    }

    /// Opens a flow of each kind; gives its own port, and the setting with its time-out.
    fn open_all(&mut self, family: usize) -> Result<Vec<(&'static str, u16, &'static str)>> {
        let (host, silent): (IpAddr, IpAddr) = (HOSTS[family].0, SILENT[family].parse()?);
        let own = self.a.addresses()[family];
        let base = 5100 + 100 * family as u16;
        let mut all = Vec::new();
        self.send(&self.a, &frame::tcp((own, base + 1), (silent, 80), 2, b""))?;
        all.push(("unanswered SYN", base + 1, "tcp_opening"));
        all.push(("unanswered datagram", self.udp(base + 2, SocketAddr::new(silent, 80), false)?, "udp_opening"));
        all.push(("answered datagram", self.udp(base + 3, SocketAddr::new(host, PORT), true)?, "udp"));
        self.send(&self.a, &frame::echo(own, host, base + 4, 1))?;
        all.push(("echo", base + 4, "other"));
        self.send(&self.a, &frame::echo(own, silent, base + 5, 1))?;
        all.push(("unanswered echo", base + 5, "other"));
        let (idle, port) = self.connected(SocketAddr::new(host, PORT))?;
        self.held.push(Box::new(idle));
        all.push(("idle connection", port, "tcp"));
        let (half, port) = self.connected(SocketAddr::new(host, IDLE_PORT))?;
        half.shutdown(Shutdown::Write)?;
        self.held.push(Box::new(half));
        all.push(("half closed", port, "tcp_half_closed"));
        let (mut closed, port) = self.connected(SocketAddr::new(host, PORT))?;
        closed.shutdown(Shutdown::Write)?;
        closed.read_to_end(&mut Vec::new())?;
        all.push(("closed", port, "tcp_closed"));
        let (reset, port) = self.connected(SocketAddr::new(host, PORT))?;
        setsockopt(&reset, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        all.push(("reset", port, "tcp_closed"));
        Ok(all)
    }

    /// The own ports of the container's flows.
    fn ports(&self) -> Result<Vec<u16>> {
        let all = self.device.json(&["flows"])?;
        let own = self.a.addresses().map(|a| json!(a.to_string()));
        let port = |f: &Value| own.contains(&f["src"]).then(|| f["sport"].as_u64().and_then(|p| p.try_into().ok()));
        Ok(all.as_array().context("a list")?.iter().filter_map(port).flatten().collect())
    }

    /// The source port outside of a datagram from `from`.
    fn masqueraded(&self, from: &Container, port: u16, to: IpAddr) -> Result<u16> {
        let socket = RawSocket::open(&self.outside, "eth0")?;
        let own = from.addresses()[usize::from(to.is_ipv6())];
        self.send(from, &frame::udp((own, port), (to, 80), b"who am I"))?;
        let at = if to.is_ipv6() { 54 } else { 34 };
        let ours = |f: &[u8]| f.ends_with(b"who am I");
        let seen = socket.receive(Duration::from_secs(5), ours)?.context("it did not arrive")?;
        Ok(u16::from_be_bytes([seen[at], seen[at + 1]]))
    }
}

#[test]
fn each_flow_has_its_time() -> Result<()> {
    let mut lab = lab()?;
    let opening = Instant::now();
    let mut open: Vec<_> = (0..2).map(|family| lab.open_all(family)).collect::<Result<Vec<_>>>()?.concat();
    let start = Instant::now();
    let ports = lab.ports()?;
    for (what, port, _) in &open {
        ensure!(ports.contains(port), "{what} {port} is no flow: {ports:?}");
    }
    // The outside port of an unanswered datagram is held as long as the flow exists.
    for (family, silent) in SILENT.iter().enumerate() {
        let own = nat::FIRST_PORT + 102 + 100 * family as u16;
        let ports = [&lab.a, &lab.b].map(|from| lab.masqueraded(from, own, silent.parse()?));
        let [first, second] = ports;
        let (first, second) = (first?, second?);
        ensure!(
            first == own && second != own && nat::offset_of(nat::FIRST_PORT, second).is_some(),
            "{own} is {first} and {second} outside"
        );
    }
    let timeouts = timeouts();
    while !open.is_empty() {
        let before = start.elapsed();
        let ports = lab.ports()?;
        let (there, gone): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, port, _)| ports.contains(port));
        for (what, port, setting) in gone {
            let time = Duration::from_secs(timeouts[setting]);
            println!("{what} {port}: gone after {:?}, {setting} is {time:?}", start.elapsed());
            // The kernel's tick counter is coarse.
            let silent = opening.elapsed();
            ensure!(silent + Duration::from_millis(500) > time, "{what} went after {silent:?}");
        }
        for (what, port, setting) in &there {
            let time = Duration::from_secs(timeouts[setting]);
            ensure!(before < time + harness::patience(LATE), "{what} {port} is there after {before:?}: {time:?}");
        }
        open = there;
        std::thread::sleep(Duration::from_millis(200));
    }
    for (family, silent) in SILENT.iter().enumerate() {
        let own = nat::FIRST_PORT + 102 + 100 * family as u16;
        let port = lab.masqueraded(&lab.a, own, silent.parse()?)?;
        ensure!(port == own, "{own} is not free again: it became {port}");
    }
    Ok(())
}
