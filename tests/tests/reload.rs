//! A reload disturbs no flow that it does not concern.

use anyhow::{Context, Result, ensure};
use harness::{Container, Device, Namespace, SOON, configs, eventually};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const RELOADS: usize = 100;
/// The time between two datagrams, and between two writes.
const PACE: Duration = Duration::from_micros(500);

/// A configuration with another pool, other rules and other time-outs, none of which concerns `a` and `c`.
fn other() -> Value {
    let mut config = configs::open_pools();
    config["network"]["pools"]["guest"] = configs::pool(5);
    config["network"]["flow_timeouts"] = json!({"udp": 77});
    config["network"]["policies"] = json!([
        {"name": "elsewhere", "from": {"pool": "guest"}, "to": {"pool": "internal"}, "action": "deny"},
        {"name": "no-telnet", "from": {"pool": "internal"}, "to": {"pool": "management"}, "ports": ["tcp/23"], "action": "deny"},
    ]);
    config
}

/// Traffic that runs until it is stopped, and how much of it has arrived.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    what: String,
}

impl Load {
    fn udp(from: &Container, to: &Container, addr: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(addr, port);
        let sink = to.ns.run(|| Ok(UdpSocket::bind(at)?))?;
        let any: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let source = from.ns.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(at)?;
            Ok(socket)
        })?;
        enlarge(&sink)?;
        let load = Self::new(format!("UDP to {at}"), move |stop, sent| {
            while !stop.load(Ordering::Relaxed) {
                source.send(&[0; 64])?;
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PACE);
            }
            Ok(())
        });
        let received = load.received.clone();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 128];
            while sink.recv(&mut buffer).is_ok() {
                received.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(load)
    }

    fn tcp(from: &Container, to: &Container, addr: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(addr, port);
        let listener = to.ns.run(|| Ok(TcpListener::bind(at)?))?;
        let mut source = from.ns.run(|| Ok(TcpStream::connect(at)?))?;
        let (mut sink, _) = listener.accept()?;
        source.set_nodelay(true)?;
        let load = Self::new(format!("TCP to {at}"), move |stop, sent| {
            while !stop.load(Ordering::Relaxed) {
                source.write_all(&[0; 512])?;
                sent.fetch_add(512, Ordering::Relaxed);
                std::thread::sleep(PACE);
            }
            Ok(())
        });
        let received = load.received.clone();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 65_536];
            while let Ok(n @ 1..) = sink.read(&mut buffer) {
                received.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Ok(load)
    }

    fn new(what: String, send: impl FnOnce(&AtomicBool, &AtomicU64) -> Result<()> + Send + 'static) -> Self {
        let (stop, sent, received) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default(), Arc::default());
        let (ends, counts) = (stop.clone(), sent.clone());
        let sender = std::thread::spawn(move || send(&ends, &counts));
        Self { stop, sent, received, sender, what }
    }

    /// Fails unless all of it has arrived.
    fn lost_nothing(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?.with_context(|| self.what.clone())?;
        let sent = self.sent.load(Ordering::Relaxed);
        eventually(SOON, || {
            let received = self.received.load(Ordering::Relaxed);
            ensure!(received == sent, "{}: {received} of {sent} arrived", self.what);
            Ok(())
        })?;
        println!("{}: {sent} arrived", self.what);
        Ok(())
    }
}

/// Enlarges the receive buffer for the time in which the receiver does not run: such a loss would not be pv-net's.
fn enlarge(socket: &UdpSocket) -> Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?)
}

/// How many TCP segments arrived in a namespace behind a gap. A repeated segment proves no loss, since a sender also
/// repeats when the receiver does not run for a while.
fn behind_a_gap(ns: &Namespace) -> Result<u64> {
    let text = ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = both.find(|(name, _)| *name == "TCPOFOQueue").context("TCPOFOQueue")?;
    Ok(value.parse()?)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_hundred_reloads_lose_no_packet() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    let mut loads = Vec::new();
    for (to, port) in [(&b, 7100), (&c, 7200)] {
        for (addr, port) in to.addresses().into_iter().zip(port..) {
            loads.push(Load::udp(&a, to, addr, port)?);
            loads.push(Load::tcp(&a, to, addr, port)?);
        }
    }
    for n in 0..RELOADS {
        device.configure(&if n % 2 == 0 { other() } else { configs::open_pools() })?;
        device.cli(&["reload"]).ok().with_context(|| format!("reload {n}"))?;
    }
    loads.into_iter().try_for_each(Load::lost_nothing)?;
    for to in [&b, &c] {
        let gaps = behind_a_gap(&to.ns)?;
        ensure!(gaps == 0, "{gaps} TCP segments came behind a gap");
    }
    Ok(())
}

/// A pool on a borrowed bridge changes its networks: addresses that the bridge had before stay, and those that pv-net
/// added are removed.
#[test]
fn an_address_that_the_admin_gave_to_a_bridge_stays() -> Result<()> {
    let pool = |net: u8, host: u8| {
        json!({"bridge": "br-lan", "subnet": format!("192.168.{net}.0/24"), "gateway": format!("192.168.{net}.{host}"),
            "subnet6": format!("fd00:{net}::/64"), "gateway6": format!("fd00:{net}::{host}")})
    };
    let config = |net, host| json!({"network": {"pools": {"lan": pool(net, host)}}});
    let mut device = Device::new(&config(10, 1))?;
    device.ns.ip("link add br-lan type bridge")?;
    for address in ["192.168.10.1/24", "fd00:10::1/64"] {
        device.ns.ip(&format!("addr add {address} dev br-lan"))?;
    }
    device.start()?;
    let shown = || device.ns.ip("-o addr show br-lan");
    for (net, host) in [(20, 1), (30, 1), (10, 1)] {
        device.configure(&config(net, host))?;
        device.cli(&["reload"]).ok()?;
        let shown = shown()?;
        for (own, is_there) in [(10, true), (20, net == 20), (30, net == 30)] {
            for address in [format!("192.168.{own}.1/24"), format!("fd00:{own}::1/64")] {
                ensure!(shown.contains(&address) == is_there, "{address} with pool {net}: {shown}");
            }
        }
    }
    Ok(())
}
