//! Packets with loopback addresses on a link.

use crate::identity::{ears, host_may, of};
use crate::lab::{self, PORT, PUBLISHED, WEB, gateway, host, uplink};
use crate::strangers::{LAN, lan};
use crate::trial::{Proto, Trial};
use anyhow::Result;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Ports of `a`: one server listens on loopback only, one on all addresses.
const LOCAL: u16 = 8081;
const PORTS: [&str; 6] = [
    "127.0.0.1:8081:80/tcp",
    "127.0.0.1:8081:80/udp",
    "[::1]:8081:80/tcp",
    "[::1]:8081:80/udp",
    "8080:80/tcp",
    "8080:80/udp",
];

fn loopbacks() -> Vec<IpAddr> {
    ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"].map(|a| a.parse().expect("an address")).into()
}

/// RFC 1122 section 3.2.1.3 (g) and RFC 4291 section 2.5.3: no packet on a link may have a loopback address.
#[test]
fn loopback_on_the_wire_reaches_no_port() -> Result<()> {
    let host_and_lan = |config: &mut Value| config["network"]["policies"] = host_may();
    let (lab, lan) = lab::prepared(host_and_lan, lan, &PORTS)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let senders = [
        ("outside", lab.outsider()?, host()),
        ("a container", lab.sender(&lab.b.ns, "pvbr3")?, lab.b.addresses()),
        ("a LAN port", lab.sender(&lan, "pvbr3")?, LAN),
    ];
    let mut port = 10_000;
    for (who, sender, own) in &senders {
        for loopback in loopbacks() {
            for proto in Proto::ALL {
                for dport in [LOCAL, PUBLISHED, PORT] {
                    port += 1;
                    let src = (of(*own, loopback), port);
                    let what = format!("{proto:?} from {who} to {loopback}, port {dport}");
                    trial.dropped(&what, &["martian", "not-addressed", "malformed"], |mark| {
                        sender.send(&proto.packet(src, (loopback, dport), mark))
                    })?;
                }
            }
        }
        // The same frames to another address of the device do arrive.
        for (own, to) in own.iter().zip(uplink()) {
            for proto in [Proto::Syn, Proto::Udp] {
                port += 1;
                if *who != "a LAN port" {
                    trial.passes(format!("{proto:?} from {who} to {to}"), |mark| {
                        sender.send(&proto.packet((*own, port), (to, PUBLISHED), mark))
                    })?;
                }
            }
        }
    }
    // In a frame to the container's own MAC, which does not pass the device's stack.
    let (_, from_lan, own) = &senders[2];
    for loopback in loopbacks() {
        trial.dropped(
            format!("to {loopback} at the container"),
            &["martian", "not-addressed", "malformed"],
            |mark| {
                let packet = Proto::Udp.packet((of(*own, loopback), 9), (loopback, WEB), mark);
                from_lan.send_to(lab.a.mac()?, &packet)
            },
        )?;
    }
    trial.finish()
}

/// Loopback addresses as sources, to a container's unpublished port and to the device itself.
#[test]
fn a_source_of_loopback_reaches_no_port() -> Result<()> {
    let rules = json!([{"from": {"container": "b"}, "to": {"container": "a"}, "action": "allow"}]);
    let (lab, lan) = lab::prepared(|config| config["network"]["policies"] = rules, lan, &PORTS)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let (b, lan) = (lab.sender(&lab.b.ns, "pvbr3")?, lab.sender(&lan, "pvbr3")?);
    let reasons = &["martian", "spoofed-ipv4", "spoofed-ipv6", "malformed"];
    let mut port = 10_000;
    for loopback in loopbacks() {
        for (who, sender, own) in [("a container", &b, lab.b.addresses()), ("a LAN port", &lan, LAN)] {
            for proto in Proto::ALL {
                port += 1;
                trial.refused(format!("{proto:?} from {who} as {loopback}"), reasons, |twin, mark| {
                    let src = twin.pick(loopback, of(own, loopback));
                    let to = of(lab.a.addresses(), loopback);
                    sender.send_to(lab.a.mac()?, &proto.packet((src, port), (to, WEB), mark))
                })?;
                trial.dropped(format!("{proto:?} from {who} as {loopback} to the device"), reasons, |mark| {
                    sender.send(&proto.packet((loopback, port), (of(gateway(3), loopback), PORT), mark))
                })?;
            }
        }
    }
    trial.finish()
}
