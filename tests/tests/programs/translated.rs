//! How a published port changes a packet, byte by byte: addresses, ports, MACs, hops and every checksum.

use super::lab::{FAMILIES, Family, Host, Lab, REDIRECT, TCP, UDP, between, fix_ipv4, lab};
use anyhow::{Result, ensure};
use harness::frame;
use pv_net::plan::Entry;
use pv_net_common::{Ip, PortMapKey, PortMapTarget, endpoint::PORT_MAP_PREFIX};
use std::net::IpAddr;

const PUBLISHED: u16 = 8080;
const PORT: u16 = 80;

/// Publishes ports of the gateway's addresses that lead to `to`.
fn publish(lab: &mut Lab, gateway: &Host, to: &Host) -> Result<()> {
    for family in FAMILIES {
        for proto in [TCP, UDP] {
            let addr = Ip::from(gateway.gateway(family));
            let key = PortMapKey { addr, proto_be: u16::from(proto).to_be(), port_be: PUBLISHED.to_be() };
            let target = PortMapTarget {
                addr: to.ip(family).into(),
                first_port: PUBLISHED,
                target_port: PORT,
                identity: to.ifindex,
            };
            lab.plane.set_entry(&Entry::Port { prefix: (PORT_MAP_PREFIX + 16, key), target })?;
        }
    }
    Ok(())
}

/// The kind of packet, besides its addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Tcp(u8),
    Udp,
    /// Without a checksum, as IPv4 allows it (RFC 768).
    UdpUnchecked,
}

impl Shape {
    fn packet(self, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
        match self {
            Self::Tcp(flags) => frame::tcp(src, dst, flags, b"payload"),
            Self::Udp => frame::udp(src, dst, b"payload"),
            Self::UdpUnchecked => {
                let mut packet = frame::udp(src, dst, b"payload");
                packet[26..28].copy_from_slice(&[0, 0]);
                packet
            }
        }
    }
}

/// The frame as the gateway sends it to its receiver: one hop less, and other MACs.
fn routed(mut frame: Vec<u8>, to: &Host, family: Family) -> Vec<u8> {
    frame[..6].copy_from_slice(&to.mac);
    frame[6..12].copy_from_slice(&to.gateway_mac);
    match family {
        Family::V4 => {
            frame[22] -= 1;
            fix_ipv4(&mut frame);
        }
        Family::V6 => frame[21] -= 1,
    }
    frame
}

#[test]
fn a_published_port_changes_what_it_says_and_every_checksum() -> Result<()> {
    lab(|lab| {
        let (d, e) = (lab.d, lab.e);
        publish(lab, &d, &e)?;
        let shapes = [Shape::Udp, Shape::UdpUnchecked, Shape::Tcp(0x02), Shape::Tcp(0x10)];
        let mut client_port = 4000;
        for (family, options) in [(Family::V4, false), (Family::V4, true), (Family::V6, false)] {
            // The second packet of each flow uses the flow table; the TCP segments belong to one connection.
            client_port += 1;
            for (shape, round) in shapes.iter().flat_map(|s| [(*s, 1), (*s, 2)]) {
                if shape == Shape::UdpUnchecked && family == Family::V6 {
                    continue;
                }
                let (client, server) = ((d.ip(family), client_port), (e.ip(family), PORT));
                let named = (d.gateway(family), PUBLISHED);
                let wrap = |packet: Vec<u8>, from: &Host| {
                    let packet = if options { frame::with_options(&packet) } else { packet };
                    between(from, from.gateway_mac, &packet)
                };
                let back = if let Shape::Tcp(0x02) = shape { Shape::Tcp(0x12) } else { shape };
                for (what, from, to, sent, arrives) in [
                    ("there", &d, &e, shape.packet(client, named), shape.packet(client, server)),
                    ("back", &e, &d, back.packet(server, client), back.packet(named, client)),
                ] {
                    let (ran, grown) = lab.counted(from, &wrap(sent, from))?;
                    let want = routed(wrap(arrives, from), to, family);
                    ensure!(
                        ran.verdict == REDIRECT && ran.frame == want,
                        "{family:?}, options {options}, {shape:?}, round {round}, {what}: {} {grown:?}\n{:02x?}\n{want:02x?}",
                        ran.verdict,
                        ran.frame
                    );
                }
            }
        }
        Ok(())
    })
}
