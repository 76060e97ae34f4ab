//! Broadcast, multicast, and frames to another's MAC.

use crate::lab::{self, PORT, Sender, both, gateway, host, link_local, uplink};
use crate::trial::{Proto, Trial};
use anyhow::Result;
use harness::ear::Ear;
use harness::{groups, wrap};
use serde_json::json;
use std::net::{IpAddr, Ipv6Addr};

/// Multicast groups of a link, each with a well-known protocol.
fn groups_of_the_pool() -> Vec<IpAddr> {
    let all = [
        "255.255.255.255",
        "10.0.3.255",
        "224.0.0.1",
        "224.0.0.251",
        "239.255.255.250",
        "ff02::1",
        "ff02::fb",
        "ff02::c",
        "ff05::c",
        "ff02::1:ff00:3",
    ];
    all.map(|a| a.parse().expect("an address")).into()
}

fn mac(to: IpAddr) -> [u8; 6] {
    if to == IpAddr::from([10, 0, 3, 255]) { groups::BROADCAST } else { groups::mac(to) }
}

/// Rules: `a` may not reach `b`, and of `some` not one port.
fn rules() -> serde_json::Value {
    json!([
        {"from": {"container": "a"}, "to": {"container": "b"}, "action": "deny"},
        {"from": {"container": "a"}, "to": {"container": "some"}, "ports": ["udp/5353"], "action": "deny"},
    ])
}

/// A rule between two containers holds for every destination by which one reaches the other, groups included.
#[test]
fn groups_do_not_carry_what_a_rule_denies() -> Result<()> {
    let lab = lab::lab(|config| config["network"]["policies"] = rules())?;
    let (peer, some) = (lab.device.attach("peer", "internal")?, lab.device.attach("some", "internal")?);
    let (a, d) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&peer.ns, "pvbr3")?);
    let mut b_hears = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]);
    let mut some_hears = Trial::new(&lab.device, vec![Ear::link(&some.ns, "eth0")?]);
    let mut d_hears = Trial::new(&lab.device, vec![Ear::link(&peer.ns, "eth0")?]);
    let (mut port, mut id) = (10_000, 1);
    for to in groups_of_the_pool() {
        let family = usize::from(to.is_ipv6());
        let sources = |from: &Sender, addresses: [IpAddr; 2]| {
            let own = [addresses[family], link_local(from.mac).into()];
            own[..=family].to_vec()
        };
        let (of_a, of_d) = (sources(&a, lab.a.addresses()), sources(&d, peer.addresses()));
        for (a_src, d_src) in of_a.into_iter().zip(of_d) {
            for proto in Proto::ALL {
                (port, id) = (port + 1, id + 1);
                let what = format!("{proto:?} from {a_src} to {to}");
                let packet = |src, mark: &[u8]| proto.packet((src, port), (to, 5353), mark);
                b_hears.refused(&what, &["policy-denied"], |twin, mark| {
                    let (from, src) = (twin.pick(&a, &d), twin.pick(a_src, d_src));
                    from.send_to(mac(to), &packet(src, mark))
                })?;
                d_hears.passes(&what, |mark| a.send_to(mac(to), &packet(a_src, mark)))?;
                if proto == Proto::Udp {
                    some_hears.refused(format!("{what}, port 5353"), &["policy-denied"], |twin, mark| {
                        let dport = twin.pick(5353, 5354);
                        a.send_to(mac(to), &proto.packet((a_src, port), (to, dport), mark))
                    })?;
                    b_hears.refused(format!("{what}, in pieces"), &["policy-denied"], |twin, mark| {
                        let (from, src) = (twin.pick(&a, &d), twin.pick(a_src, d_src));
                        let packet = packet(src, &[&[5; 40][..], mark].concat());
                        let pieces = wrap::fragments(&packet, id, &[0, 24]);
                        pieces.iter().try_for_each(|piece| from.send_to(mac(to), piece))
                    })?;
                }
            }
        }
    }
    b_hears.finish()?;
    some_hears.finish()?;
    d_hears.finish()
}

/// RFC 1122 section 3.3.6 and RFC 4541: the bridge forwards by MAC, while rules go by address.
#[test]
fn a_frame_to_ones_mac_with_anothers_address_is_not_delivered() -> Result<()> {
    let lab = lab::lab(|config| {
        config["network"]["policies"] = rules();
        config["network"]["pools"]["internal"]["host_access"] = json!("all");
    })?;
    let peer = lab.device.attach("peer", "internal")?;
    let (a, d) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&peer.ns, "pvbr3")?);
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]);
    let others = [
        ("another container", peer.addresses()),
        ("the gateway", gateway(3)),
        ("the device", uplink()),
        ("nobody in the pool", both("10.0.3.77", "fd00:5056:0:3::77")),
        ("a container of another pool", lab.c.addresses()),
        ("a host outside", host()),
        ("nobody outside", both("203.0.113.5", "2001:db8:55::5")),
    ];
    let link_locals: [Ipv6Addr; 2] = [link_local(lab.a.mac()?), "fe80::77".parse()?];
    let to = lab.b.mac()?;
    let everybody = [groups::BROADCAST, groups::mac([224, 0, 0, 1].into()), groups::mac("ff02::1".parse::<IpAddr>()?)];
    let mut port = 10_000;
    let targets = others.into_iter().flat_map(|(what, pair)| pair.map(|addr| (what, addr)));
    let targets = targets.chain(["another container", "a link-local"].into_iter().zip(link_locals.map(IpAddr::from)));
    for (what, addr) in targets {
        let family = usize::from(addr.is_ipv6());
        for proto in Proto::ALL {
            port += 1;
            let honest = |mark: &[u8]| {
                d.send_to(to, &proto.packet((peer.addresses()[family], port), (lab.b.addresses()[family], PORT), mark))
            };
            // From a sender that may reach it and from one that may not; to its MAC, and to the broadcast MAC.
            if what != "another container" {
                // The routes or the data plane send the packet elsewhere, whatever its MAC.
                let elsewhere = what.contains("outside") || what.contains("another pool");
                let reasons: &[&str] = if elsewhere { &[] } else { &["not-addressed"] };
                trial.refused(format!("{proto:?} to {what} ({addr})"), reasons, |twin, mark| {
                    let own = peer.addresses()[family];
                    if !twin.is_forged() {
                        return honest(mark);
                    }
                    d.send_to(to, &proto.packet((own, port), (addr, PORT), mark))
                })?;
            }
            for mac in [to].iter().chain(&everybody) {
                trial.refused(format!("{proto:?} of a to {what} ({addr}) by {mac:02x?}"), &[], |twin, mark| {
                    if !twin.is_forged() {
                        return honest(mark);
                    }
                    a.send_to(*mac, &proto.packet((lab.a.addresses()[family], port), (addr, PORT), mark))
                })?;
            }
        }
    }
    // To `b`'s address, with a MAC that everybody receives.
    for (family, addr) in lab.b.addresses().into_iter().enumerate() {
        for mac in everybody {
            port += 1;
            trial.refused(format!("of a to b by {mac:02x?}"), &["policy-denied"], |twin, mark| {
                let packet = |src| Proto::Udp.packet((src, port), (addr, PORT), mark);
                if !twin.is_forged() {
                    return d.send_to(to, &packet(peer.addresses()[family]));
                }
                a.send_to(mac, &packet(lab.a.addresses()[family]))
            })?;
        }
    }
    trial.finish()
}

/// Only containers of the same pool receive what a container sends to a group.
#[test]
fn groups_end_at_the_pools_bridge() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.c.ns, "eth0")?, Ear::link(&lab.out, "eth0")?]);
    let mut inside = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]);
    for to in groups_of_the_pool() {
        let family = usize::from(to.is_ipv6());
        for hops in [mac(to), a.router] {
            trial.dropped(format!("to {to} by {hops:02x?}"), &[], |mark| {
                a.send_to(hops, &Proto::Udp.packet((lab.a.addresses()[family], 9), (to, PORT), mark))
            })?;
        }
        inside.passes(format!("to {to}"), |mark| {
            a.send_to(mac(to), &Proto::Udp.packet((lab.a.addresses()[family], 9), (to, PORT), mark))
        })?;
    }
    trial.finish()?;
    inside.finish()
}
