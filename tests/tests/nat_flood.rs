//! Floods of new flows: established flows go on, and other containers can still open flows.

use anyhow::{Context, Result, ensure};
use harness::{
    Container, Device, Namespace,
    configs::{self, DEVICE, HOST},
    echo, frame,
    raw::RawSocket,
};
use pv_net_common::nat;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};

const PORT: u16 = 7000;
/// Five times the entries of the half-open table.
const FLOOD: u32 = 40_000;

struct Lab {
    device: Device,
    outside: Namespace,
    web: Container,
    peer: Container,
}

fn lab(flow_table: u32) -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["flow_table"] = json!(flow_table);
    let mut device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.ns.ip("route add default via 192.0.2.9")?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp"]}}))?;
    let peer = device.attach("peer", "internal")?;
    for (ns, port) in [(&web.ns, 80), (&outside, PORT)] {
        echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
    }
    Ok(Lab { device, outside, web, peer })
}

/// A connection from before the flood.
struct Held(TcpStream);

impl Held {
    fn open(ns: &Namespace, at: SocketAddr) -> Result<Self> {
        let mut held = Self(echo::connect(ns, at)?);
        let mut byte = [0u8];
        while byte != *b"\n" {
            held.0.read_exact(&mut byte)?;
        }
        held.lives()?;
        Ok(held)
    }

    fn lives(&mut self) -> Result<()> {
        self.0.write_all(b"still here")?;
        let mut back = [0; 10];
        self.0.read_exact(&mut back).context("an established connection is gone")?;
        ensure!(&back == b"still here", "{back:?}");
        Ok(())
    }
}

/// A number that looks random, but is the same in every run.
fn scatter(n: u32) -> u32 {
    let h = (n ^ n >> 16).wrapping_mul(0x85eb_ca6b);
    let h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

/// Sends the flood. Meanwhile and at its end the held connections must answer, and others must get new ones.
fn flood(lab: &Lab, socket: &RawSocket, opening: impl Fn(u32) -> Vec<u8>) -> Result<()> {
    let (published, far) = ("192.0.2.1:8080".parse()?, "192.0.2.9:7000".parse()?);
    let mut held = [Held::open(&lab.outside, published)?, Held::open(&lab.peer.ns, far)?];
    let start = lab.device.counters()?;
    for n in 0..FLOOD {
        socket.send(&opening(n))?;
        if n % (FLOOD / 4) == FLOOD / 4 - 1 {
            for connection in &mut held {
                connection.lives().with_context(|| format!("after {n}"))?;
            }
            echo::tcp(&lab.peer.ns, far, &[7; 10_000]).with_context(|| format!("another container, after {n}"))?;
            echo::udp(&lab.peer.ns, far, b"datagram").with_context(|| format!("another container, after {n}"))?;
        }
    }
    let slow = lab.device.counters()?["slow-path"] - start["slow-path"];
    ensure!(slow > u64::from(FLOOD) / 2, "the flood did not arrive: {slow} packets");
    Ok(())
}

#[test]
fn a_flood_from_outside_harms_nobody() -> Result<()> {
    let lab = lab(4096)?;
    let socket = RawSocket::open(&lab.outside, "eth0")?;
    let (me, device) = (lab.outside.mac("eth0")?, lab.device.ns.mac("up0")?);
    flood(&lab, &socket, |n| {
        let [a, b, c, _] = scatter(n).to_be_bytes();
        let from: IpAddr = [198, 18 | (a & 1), b, c.max(1)].into();
        let segment = frame::tcp((from, scatter(!n) as u16 | 1024), ([192, 0, 2, 1].into(), 8080), 2, b"");
        frame::ethernet(me, device, frame::IPV4, &segment)
    })
}

#[test]
fn a_flood_from_a_container_harms_nobody_else() -> Result<()> {
    let lab = lab(4096)?;
    let socket = RawSocket::open(&lab.web.ns, "eth0")?;
    let (me, gateway, own) = (lab.web.mac()?, lab.device.ns.mac("pvbr3")?, lab.web.v4.into());
    flood(&lab, &socket, |n| {
        let [a, b, c, _] = scatter(n).to_be_bytes();
        let to: IpAddr = [198, 18 | (a & 1), b, c.max(1)].into();
        let segment = frame::tcp((own, scatter(!n) as u16 | 1024), (to, 80), 2, b"");
        frame::ethernet(me, gateway, frame::IPV4, &segment)
    })
}

#[test]
fn who_takes_all_ports_to_a_peer_makes_room() -> Result<()> {
    let lab = lab(262_144)?;
    let gateway = lab.device.ns.mac("pvbr3")?;
    let to: SocketAddr = "192.0.2.9:7000".parse()?;
    // Sends a datagram, and gives its source port as the host sees it.
    let sends = |from: &Container, port: u16, to: SocketAddr, mark: &[u8]| -> Result<u16> {
        let (socket, outside) = (RawSocket::open(&from.ns, "eth0")?, RawSocket::open(&lab.outside, "eth0")?);
        let datagram = frame::udp((from.v4.into(), port), (to.ip(), to.port()), mark);
        socket.send(&frame::ethernet(from.mac()?, gateway, frame::IPV4, &datagram))?;
        let seen = outside.receive(echo::PATIENCE, |f| f.ends_with(mark))?.context("it did not arrive")?;
        Ok(u16::from_be_bytes([seen[34], seen[35]]))
    };
    let (socket, me) = (RawSocket::open(&lab.web.ns, "eth0")?, lab.web.mac()?);
    // Takes every port of masquerade's range to this one destination.
    let all = nat::FIRST_PORT..=nat::FIRST_PORT + (nat::PORTS - 1);
    for port in all.clone() {
        let datagram = frame::udp((lab.web.v4.into(), port), (to.ip(), to.port()), b"x");
        socket.send(&frame::ethernet(me, gateway, frame::IPV4, &datagram))?;
    }
    let grown = lab.device.counted(|| {
        for port in 5000..5020 {
            let mark = format!("of peer {port}");
            let seen = sends(&lab.peer, port, to, mark.as_bytes())?;
            ensure!(all.contains(&seen), "{seen}");
        }
        sends(&lab.peer, nat::FIRST_PORT, "192.0.2.9:7001".parse()?, b"elsewhere").map(drop)
    })?;
    ensure!(grown["nat-exhausted"] == 0, "{grown:?}");
    Ok(())
}
