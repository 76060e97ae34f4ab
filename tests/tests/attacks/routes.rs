//! Routes, uplinks and their addresses that change.

use super::lab::{Lab, lab};
use anyhow::{Context, Result, ensure};
use harness::configs::HOSTS;
use harness::{Namespace, SOON, eventually, frame, raw::RawSocket};
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

/// Addresses behind the gateway.
const FAR: [&str; 2] = ["203.0.113.1", "2001:db8:9::1"];
/// Gateways on the first uplink's link, which exist only as entries in the neighbour table.
const GATEWAYS: [[&str; 2]; 2] = [["192.0.2.71", "192.0.2.72"], ["2001:db8:1::71", "2001:db8:1::72"]];
const GATEWAY_MACS: [[u8; 6]; 2] = [[2, 0xaa, 0, 0, 0, 0x71], [2, 0xaa, 0, 0, 0, 0x72]];
const SECOND: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
const SECOND_GATEWAY: [&str; 2] = ["198.51.100.9", "2001:db8:2::9"];
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A lab with a second uplink, `up1`, and sockets that see what leaves by each uplink.
struct Wide {
    lab: Lab,
    second: Namespace,
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn wide() -> Result<Wide> {
    let lab = lab(|config| {
        config["network"]["uplinks"] = json!(["up0", "up1"]);
        // A fixed MTU: without it the pool follows its uplinks.
        config["network"]["pools"]["internal"]["mtu"] = json!(1500);
    })?;
    let ns = &lab.device.ns;
    let networks = |of: [&str; 2]| [format!("{}/24", of[0]), format!("{}/64", of[1])];
    let (here, there) = (networks(SECOND), networks(SECOND_GATEWAY));
    let second = lab.device.outside("up1", &[&here[0], &here[1]], &[&there[0], &there[1]])?;
    for (family, gateways) in GATEWAYS.iter().enumerate() {
        for (gateway, mac) in gateways.iter().zip(GATEWAY_MACS) {
            ns.ip(&format!("neigh replace {gateway} lladdr {} dev up0 nud permanent", text(mac)))?;
        }
        lead(ns, family, &format!("via {} dev up0", gateways[0]))?;
    }
    ns.settle()?;
    // Without addresses the container's own stack sends no resets.
    lab.a.ns.ip("addr flush dev eth0")?;
    // Waits until the daemon uses the second uplink.
    eventually(SOON, || {
        let status = lab.device.json(&["status"])?.to_string();
        ensure!(status.contains("up1"), "{status}");
        Ok(())
    })?;
    Ok(Wide { lab, second })
}

/// Sets the default route.
fn lead(ns: &Namespace, family: usize, way: &str) -> Result<()> {
    ns.ip(&format!("{} route replace default {way}", if family == 0 { "-4" } else { "-6" })).map(drop)
}

/// A flow of a container, and how its packets look outside.
struct Flow<'a> {
    lab: &'a Lab,
    family: usize,
    port: u16,
    tcp: bool,
}

/// The fields of a frame outside that these tests compare.
#[derive(Debug, PartialEq)]
struct Left {
    to: [u8; 6],
    from: IpAddr,
    port: u16,
}

impl Flow<'_> {
    fn ends(&self) -> Result<((IpAddr, u16), (IpAddr, u16))> {
        Ok(((self.lab.a.addresses()[self.family], self.port), (FAR[self.family].parse()?, 80)))
    }

    fn packet(&self, flags: u8, mark: &[u8]) -> Result<Vec<u8>> {
        let (own, far) = self.ends()?;
        Ok(if self.tcp { frame::tcp(own, far, flags, mark) } else { frame::udp(own, far, mark) })
    }

    fn send(&self, flags: u8, mark: &[u8]) -> Result<()> {
        let packet = self.packet(flags, mark)?;
        let kind = if self.family == 0 { frame::IPV4 } else { frame::IPV6 };
        let frame = frame::ethernet(self.lab.a.mac()?, self.lab.gateway_mac()?, kind, &packet);
        RawSocket::open(&self.lab.a.ns, "eth0")?.send(&frame)
    }

    /// Sends a packet with a mark, and gives the fields of the frame on `wire`.
    fn leaves(&self, wire: &RawSocket, flags: u8, mark: &[u8], patience: Duration) -> Result<Left> {
        self.send(flags, mark)?;
        let seen = wire.receive(patience, |f| f.ends_with(mark))?.context("it did not leave")?;
        let at = if self.family == 0 { 34 } else { 54 };
        let from = match self.family {
            0 => <[u8; 4]>::try_from(&seen[26..30])?.into(),
            _ => <[u8; 16]>::try_from(&seen[22..38])?.into(),
        };
        Ok(Left { to: seen[..6].try_into()?, from, port: u16::from_be_bytes([seen[at], seen[at + 1]]) })
    }

    /// Sends the packets that open the flow; later packets belong to a known flow.
    fn open(&self, wire: &RawSocket) -> Result<Left> {
        let first = self.leaves(wire, SYN, format!("first of {}", self.port).as_bytes(), SOON)?;
        let (_, far) = self.ends()?;
        let to = (first.from, first.port);
        let answer = if self.tcp { frame::tcp(far, to, SYN | ACK, b"yes") } else { frame::udp(far, to, b"yes") };
        let kind = if self.family == 0 { frame::IPV4 } else { frame::IPV6 };
        let link = RawSocket::open(&self.lab.a.ns, "eth0")?;
        let frame = frame::ethernet(self.lab.out_mac()?, self.lab.uplink_mac()?, kind, &answer);
        RawSocket::open(&self.lab.out, "eth0")?.send(&frame)?;
        link.receive(SOON, |f| f.ends_with(b"yes"))?.context("no answer")?;
        let second = self.leaves(wire, ACK, format!("second of {}", self.port).as_bytes(), SOON)?;
        ensure!(first == second && first.to == GATEWAY_MACS[0], "{first:02x?}, then {second:02x?}");
        Ok(first)
    }
}

/// A flow for each family and protocol, each with its own port.
fn flows(lab: &Lab) -> impl Iterator<Item = Flow<'_>> {
    (0..2usize).flat_map(|family| [false, true].map(|tcp| (family, tcp))).map(|(family, tcp)| Flow {
        lab,
        family,
        port: 5000 + 10 * family as u16 + u16::from(tcp),
        tcp,
    })
}

/// RFC 1812 section 5.2: packets are forwarded along the current routes, also those of older flows.
#[test]
fn a_flow_goes_to_the_new_gateway() -> Result<()> {
    let wide = wide()?;
    let wire = RawSocket::open(&wide.lab.out, "eth0")?;
    let before: Vec<Left> = flows(&wide.lab).map(|flow| flow.open(&wire)).collect::<Result<_>>()?;
    for (family, gateways) in GATEWAYS.iter().enumerate() {
        lead(&wide.lab.device.ns, family, &format!("via {} dev up0", gateways[1]))?;
    }
    for (flow, before) in flows(&wide.lab).zip(before) {
        eventually(SOON, || {
            let now = flow.leaves(&wire, ACK, format!("after of {}", flow.port).as_bytes(), SOON)?;
            // The far end sees the same address and port.
            ensure!((now.from, now.port) == (before.from, before.port), "{before:?} became {now:?}");
            ensure!(now.to == GATEWAY_MACS[1], "{:?}: to {:02x?}", flow.ends()?, now.to);
            Ok(())
        })?;
    }
    Ok(())
}

/// By another uplink the far end would see another address. So a TCP connection ends at once and its container is told,
/// and a datagram leaves with the new address.
#[test]
fn a_flow_leaves_by_the_other_uplink() -> Result<()> {
    let wide = wide()?;
    let wire = RawSocket::open(&wide.lab.out, "eth0")?;
    for flow in flows(&wide.lab) {
        flow.open(&wire)?;
    }
    for (family, gateway) in SECOND_GATEWAY.iter().enumerate() {
        lead(&wide.lab.device.ns, family, &format!("via {gateway} dev up1"))?;
    }
    follows_to_the_second(&wide)
}

/// An uplink loses its carrier, and the kernel no longer uses its routes (`ignore_routes_with_linkdown`).
#[test]
fn a_flow_leaves_an_uplink_without_a_carrier() -> Result<()> {
    let wide = wide()?;
    let ns = &wide.lab.device.ns;
    for family in ["ipv4", "ipv6"] {
        for link in ["all", "up0"] {
            ns.sh(&format!("sysctl -qw net.{family}.conf.{link}.ignore_routes_with_linkdown=1"))?;
        }
    }
    for (family, gateway) in SECOND_GATEWAY.iter().enumerate() {
        let ip = if family == 0 { "-4" } else { "-6" };
        ns.ip(&format!("{ip} route add default via {gateway} dev up1 metric 4096"))?;
    }
    let wire = RawSocket::open(&wide.lab.out, "eth0")?;
    for flow in flows(&wide.lab) {
        flow.open(&wire)?;
    }
    wide.lab.out.ip("link set eth0 down")?;
    follows_to_the_second(&wide)
}

fn follows_to_the_second(wide: &Wide) -> Result<()> {
    let (wire, link) = (RawSocket::open(&wide.second, "eth0")?, RawSocket::open(&wide.lab.a.ns, "eth0")?);
    for flow in flows(&wide.lab) {
        let mark = format!("elsewhere of {}", flow.port);
        eventually(SOON, || {
            if flow.tcp {
                flow.send(ACK, mark.as_bytes())?;
                let at = if flow.family == 0 { 34 } else { 54 };
                let is_reset = |f: &[u8]| {
                    f.len() > at + 13 && f[at + 2..at + 4] == flow.port.to_be_bytes() && f[at + 13] & RST != 0
                };
                let told = link.receive(Duration::from_secs(1), is_reset)?;
                ensure!(told.is_some(), "{}: nobody told the container", FAR[flow.family]);
                return Ok(());
            }
            let left = flow.leaves(&wire, ACK, mark.as_bytes(), Duration::from_secs(1))?;
            ensure!(left.from == SECOND[flow.family].parse::<IpAddr>()?, "{left:?}");
            Ok(())
        })
        .with_context(|| mark.clone())?;
    }
    Ok(())
}

/// RFC 1191: a packet that no longer fits is answered at once; and frames have the uplink's new MAC.
#[test]
fn a_flow_has_its_uplinks_new_mtu_and_mac() -> Result<()> {
    let wide = wide()?;
    let (ns, lab) = (&wide.lab.device.ns, &wide.lab);
    let server =
        lab.device.attach_run(&json!({"name": "s", "network": {"pool": "internal", "ports": ["8080:80/udp"]}}))?;
    server.ns.ip("addr flush dev eth0")?;
    let (wire, inside) = (RawSocket::open(&lab.out, "eth0")?, RawSocket::open(&server.ns, "eth0")?);
    for flow in flows(lab) {
        flow.open(&wire)?;
    }
    let kind = |family: usize| if family == 0 { frame::IPV4 } else { frame::IPV6 };
    let asks = |family: usize| -> Result<()> {
        let (host, own) = HOSTS[family];
        let question = frame::udp((host, 4000), (own, 8080), b"question");
        wire.send(&frame::ethernet(lab.out_mac()?, lab.uplink_mac()?, kind(family), &question))?;
        inside.receive(SOON, |f| f.ends_with(b"question"))?.context("it did not arrive").map(drop)
    };
    let answers = |family: usize, mark: &[u8]| -> Result<Vec<u8>> {
        let answer = frame::udp((server.addresses()[family], 80), (HOSTS[family].0, 4000), mark);
        inside.send(&frame::ethernet(server.mac()?, lab.gateway_mac()?, kind(family), &answer))?;
        wire.receive(SOON, |f| f.ends_with(mark))?.context("no answer left")
    };
    for family in 0..2 {
        asks(family)?;
        answers(family, b"with the old MAC")?;
    }
    let next = [2, 0xaa, 0, 0, 0, 0x99];
    ns.ip(&format!("link set up0 address {}", text(next)))?;
    for family in 0..2 {
        eventually(SOON, || {
            let left = answers(family, b"with the new MAC")?;
            ensure!(left[6..12] == next, "from {:02x?}", &left[6..12]);
            Ok(())
        })?;
    }
    ns.ip("link set up0 mtu 1300")?;
    let link = RawSocket::open(&lab.a.ns, "eth0")?;
    for flow in flows(lab) {
        eventually(SOON, || {
            flow.send(ACK, &[0x55; 1300])?;
            // "Fragmentation needed" or "packet too big", from the gateway, with the new MTU.
            let is_said = |f: &[u8]| match flow.family {
                0 => f.len() > 42 && f[23] == 1 && f[34..36] == [3, 4] && f[40..42] == 1300u16.to_be_bytes(),
                _ => f.len() > 62 && f[20] == 58 && f[54] == 2 && f[60..62] == 1300u16.to_be_bytes(),
            };
            ensure!(link.receive(Duration::from_secs(1), is_said)?.is_some(), "{}: nothing said", FAR[flow.family]);
            Ok(())
        })?;
    }
    Ok(())
}
