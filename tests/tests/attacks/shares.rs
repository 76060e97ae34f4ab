//! A sender that opens many flows loses its own flows only: each container, and the outside, has a share of the
//! half-open table, and of the ports to one peer.

use super::lab::{Lab, lab};
use anyhow::{Context, Result, ensure};
use harness::configs::HOSTS;
use harness::raw::RawSocket;
use harness::{Container, echo, frame};
use pv_net_common::nat;
use serde_json::json;
use std::net::IpAddr;

/// More than three times the entries of the half-open table.
const FLOOD: u32 = 30_000;
/// Flows of `b` that wait for an answer during the flood.
const WAITING: u16 = 20;
/// A host without a stack: its neighbour entries are permanent, and the test writes its answers.
const SILENT: [&str; 2] = ["192.0.2.77", "2001:db8:1::77"];

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

/// The sockets and addresses of one family.
struct Wire<'a> {
    lab: &'a Lab,
    family: usize,
    silent: IpAddr,
    out: RawSocket,
    out_mac: [u8; 6],
    uplink_mac: [u8; 6],
    gateway_mac: [u8; 6],
}

impl<'a> Wire<'a> {
    fn new(lab: &'a Lab, family: usize) -> Result<Self> {
        let (out_mac, uplink_mac, gateway_mac) = (lab.out_mac()?, lab.uplink_mac()?, lab.gateway_mac()?);
        let mac = out_mac.map(|octet| format!("{octet:02x}")).join(":");
        lab.device.ns.ip(&format!("neigh replace {} lladdr {mac} dev up0 nud permanent", SILENT[family]))?;
        let out = RawSocket::open(&lab.out, "eth0")?;
        Ok(Self { lab, family, silent: SILENT[family].parse()?, out, out_mac, uplink_mac, gateway_mac })
    }

    fn kind(&self) -> u16 {
        [frame::IPV4, frame::IPV6][self.family]
    }

    fn l4(&self) -> usize {
        [34, 54][self.family]
    }

    /// A frame from a container to its gateway.
    fn inside(&self, from: &Container, packet: &[u8]) -> Result<Vec<u8>> {
        Ok(frame::ethernet(from.mac()?, self.gateway_mac, self.kind(), packet))
    }

    /// A frame from outside to the device.
    fn outside(&self, packet: &[u8]) -> Vec<u8> {
        frame::ethernet(self.out_mac, self.uplink_mac, self.kind(), packet)
    }

    /// Source port of a frame.
    fn source(&self, f: &[u8]) -> u16 {
        u16::from_be_bytes([f[self.l4()], f[self.l4() + 1]])
    }

    /// Opens `b`'s flows, and gives their outside ports: that of a SYN and of a datagram for each.
    fn open(&self) -> Result<Vec<[u16; 2]>> {
        let (b, own) = (&self.lab.b, self.lab.b.addresses()[self.family]);
        let socket = RawSocket::open(&b.ns, "eth0")?;
        let mut ports = Vec::new();
        for n in 0..WAITING {
            let mut pair = [0; 2];
            for (udp, port) in pair.iter_mut().enumerate() {
                let to = (self.silent, 8000 + n);
                let packet = match udp {
                    0 => frame::tcp((own, 30_000 + n), to, SYN, b""),
                    _ => frame::udp((own, 30_000 + n), to, b"question"),
                };
                socket.send(&self.inside(b, &packet)?)?;
                let proto = [6, 17][udp];
                let seen = self.out.receive(echo::PATIENCE, |f| self.is(f, proto, self.silent, 8000 + n))?;
                *port = self.source(&seen.with_context(|| format!("opening {n} of {proto}"))?);
            }
            ports.push(pair);
        }
        Ok(ports)
    }

    /// Whether a frame has protocol `proto` and goes to that port of `to`.
    fn is(&self, f: &[u8], proto: u8, to: IpAddr, port: u16) -> bool {
        let (l4, octets) = (
            self.l4(),
            match to {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            },
        );
        f.len() >= l4 + 8
            && f[12..14] == self.kind().to_be_bytes()
            && f[[23, 20][self.family]] == proto
            && f[l4 - octets.len()..l4] == octets
            && f[l4 + 2..l4 + 4] == port.to_be_bytes()
    }

    /// Answers all flows of `b`, and counts the answers that reach it.
    fn answered(&self, ports: &[[u16; 2]]) -> Result<usize> {
        let own = self.lab.b.addresses()[self.family];
        let device = HOSTS[self.family].1;
        let inside = RawSocket::open(&self.lab.b.ns, "eth0")?;
        let mut there = 0;
        for (n, pair) in (0..).zip(ports) {
            for (udp, port) in pair.iter().enumerate() {
                let from = (self.silent, 8000 + n);
                let packet = match udp {
                    0 => frame::tcp(from, (device, *port), SYN_ACK, b""),
                    _ => frame::udp(from, (device, *port), b"answer"),
                };
                self.out.send(&self.outside(&packet))?;
                let proto = [6, 17][udp];
                let arrives = |f: &[u8]| self.is(f, proto, own, 30_000 + n) && self.source(f) == 8000 + n;
                there += usize::from(inside.receive(std::time::Duration::from_millis(500), arrives)?.is_some());
            }
        }
        Ok(there)
    }

    fn all_answered(&self, ports: &[[u16; 2]], what: &str) -> Result<()> {
        let there = self.answered(ports)?;
        ensure!(there == 2 * ports.len(), "{what}: {there} of {} answers arrive", 2 * ports.len());
        Ok(())
    }
}

/// A number that looks random, but is the same in every run.
fn scatter(n: u32) -> u32 {
    let h = (n ^ n >> 16).wrapping_mul(0x85eb_ca6b);
    let h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

/// `a` opens very many flows: SYNs, datagrams and echoes to a silent host, and datagrams to the device itself.
#[test]
fn a_flood_of_new_flows_leaves_others_their_half_open_ones() -> Result<()> {
    for family in [0, 1] {
        let lab = lab(|config| config["network"]["pools"]["internal"]["host_access"] = json!("all"))?;
        let wire = Wire::new(&lab, family)?;
        let socket = RawSocket::open(&lab.a.ns, "eth0")?;
        let (own, device) = (lab.a.addresses()[family], HOSTS[family].1);
        let waiting = wire.open()?;
        for n in 0..FLOOD {
            let (from, to) = ((own, scatter(n) as u16 | 1024), (wire.silent, scatter(!n) as u16 | 1024));
            let packet = match n % 4 {
                0 => frame::udp(from, to, b"x"),
                1 => frame::udp(from, (device, to.1), b"x"),
                2 => frame::echo(own, wire.silent, from.1, 1),
                _ => frame::tcp(from, to, SYN, b""),
            };
            socket.send(&wire.inside(&lab.a, &packet)?)?;
        }
        wire.all_answered(&waiting, HOSTS[family].1.to_string().as_str())?;
    }
    Ok(())
}

/// A SYN flood from outside to a published port (RFC 4987).
#[test]
fn a_flood_of_syns_leaves_containers_their_half_open_flows() -> Result<()> {
    for family in [0, 1] {
        let lab = lab(|_| {})?;
        let web =
            lab.device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80"]}}))?;
        // With the link down nothing answers, so the flows stay half-open.
        web.ns.ip("link set eth0 down")?;
        let wire = Wire::new(&lab, family)?;
        let waiting = wire.open()?;
        for n in 0..FLOOD {
            let [a, b, c, d] = scatter(n).to_be_bytes();
            let from: IpAddr = match family {
                0 => [198, 18 | (a & 1), b, c.max(1)].into(),
                _ => [0x2001, 0xdb8, 9, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])].into(),
            };
            let segment = frame::tcp((from, scatter(!n) as u16 | 1024), (HOSTS[family].1, 8080), SYN, b"");
            wire.out.send(&wire.outside(&segment))?;
        }
        wire.all_answered(&waiting, HOSTS[family].1.to_string().as_str())?;
    }
    Ok(())
}

/// `a` asks one resolver from every port. `b`'s questions still get a port, and their answers.
#[test]
fn taking_all_ports_to_a_resolver_drops_nobody_elses_questions() -> Result<()> {
    for family in [0, 1] {
        let lab = lab(|_| {})?;
        let wire = Wire::new(&lab, family)?;
        let (a, b) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.b.ns, "eth0")?);
        let own = lab.a.addresses()[family];
        // All ports of masquerade, and those from which `b` will ask.
        for port in (nat::FIRST_PORT..nat::FIRST_PORT + nat::PORTS).chain(40_000..40_000 + WAITING) {
            let question = frame::udp((own, port), (wire.silent, 53), b"x");
            a.send(&wire.inside(&lab.a, &question)?)?;
        }
        let own = lab.b.addresses()[family];
        let out = RawSocket::open(&lab.out, "eth0")?;
        for n in 0..WAITING {
            let mark = format!("question {n} of b");
            let question = frame::udp((own, 40_000 + n), (wire.silent, 53), mark.as_bytes());
            b.send(&wire.inside(&lab.b, &question)?)?;
            let seen = out.receive(echo::PATIENCE, |f| f.ends_with(mark.as_bytes()))?;
            let port = wire.source(&seen.with_context(|| format!("{mark} is dropped"))?);
            let answer = frame::udp((wire.silent, 53), (HOSTS[family].1, port), mark.as_bytes());
            wire.out.send(&wire.outside(&answer))?;
            let back =
                b.receive(echo::PATIENCE, |f| f.ends_with(mark.as_bytes()) && wire.is(f, 17, own, 40_000 + n))?;
            ensure!(back.is_some(), "the answer to {mark} is lost");
        }
        ensure!(lab.device.counters()?["nat-exhausted"] == 0, "ports ran out");
    }
    Ok(())
}
