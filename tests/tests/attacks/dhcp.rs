//! DHCP and router advertisements: who may ask whom, and who may answer.

use crate::lab::{self, Lab, PORT, both, gateway, host, link_local, uplink};
use crate::trial::{Proto, Trial};
use anyhow::Result;
use harness::dhcp::{self, CLIENT, CLIENT6, SERVER, SERVER6};
use harness::ear::Ear;
use harness::wrap::Extension::{AtomicFragment, Authentication, Destination, HopByHop, RouterAlert, Routing};
use harness::wrap::{Extension, extended, fragments};
use harness::{Device, Namespace, frame, groups};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

const NOBODY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const LAN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 3, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 0xc8))];

fn lan(device: &Device) -> Result<Namespace> {
    lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"])
}

fn everybody(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![
        Ear::stack(&lab.device.ns)?,
        Ear::link(&lab.out, "eth0")?,
        Ear::link(&lab.b.ns, "eth0")?,
        Ear::link(&lab.c.ns, "eth0")?,
    ])
}

/// RFC 2131 section 4.1: a client without an address asks on its own link only. Otherwise packets from `0.0.0.0:68`
/// would pass every rule, and so would the answers.
#[test]
fn bootstrapping_is_no_way_out() -> Result<()> {
    for rules in [json!([]), json!([{"from": {"container": "a"}, "to": "world", "action": "deny"}])] {
        let closed = rules != json!([]);
        let lab = lab::lab(|config| config["network"]["policies"] = rules)?;
        let a = lab.sender(&lab.a.ns, "pvbr3")?;
        let mut trial = Trial::new(&lab.device, everybody(&lab)?);
        let reasons = &["spoofed-ipv4", "spoofed-ipv6", "rogue-dhcp", "martian"];
        let by_router = [
            ("a host outside", host(), !closed),
            ("the uplink's address", uplink(), false),
            ("another pool's gateway", gateway(4), false),
            ("nobody outside", both("203.0.113.5", "2001:db8:55::5"), false),
            ("a container of another pool", lab.c.addresses(), false),
            ("nobody in the pool", both("10.0.3.77", "fd00:5056:0:3::77"), false),
        ];
        let targets = by_router.map(|(what, to, honest)| (what, to, a.router, honest));
        let direct = [("another container", lab.b.addresses(), lab.b.mac()?, true)];
        for (what, to, mac, honest) in targets.into_iter().chain(direct) {
            for family in [0, 1] {
                let (sport, dport) = [(CLIENT, SERVER), (CLIENT6, SERVER6)][family];
                let send = |src: IpAddr, mark: &[u8]| {
                    let request = dhcp::request(dhcp::DISCOVER, a.mac, mark);
                    a.send_to(mac, &frame::udp((src, sport), (to[family], dport), &request))
                };
                let what = format!("to {what} ({})", to[family]);
                if honest {
                    let own = lab.a.addresses()[family];
                    trial.refused(&what, reasons, |twin, mark| send(twin.pick(NOBODY[family], own), mark))?;
                } else {
                    trial.dropped(&what, reasons, |mark| send(NOBODY[family], mark))?;
                }
            }
        }
        // An honest request on the link arrives.
        for mac in [groups::BROADCAST, a.router] {
            trial.passes(format!("to all by {mac:02x?}"), |mark| {
                let request = dhcp::request(dhcp::DISCOVER, a.mac, mark);
                a.send_to(mac, &frame::udp((NOBODY[0], CLIENT), ([255; 4].into(), SERVER), &request))
            })?;
        }
        trial.finish()?;
    }
    Ok(())
}

/// A DHCP server's answer, or a datagram that only has its ports.
fn answer(family: usize, to: [u8; 6], mark: &[u8]) -> Vec<u8> {
    match family {
        0 => dhcp::answer(dhcp::OFFER, to, *b"pvnt", [10, 0, 3, 99].into(), [10, 0, 3, 2].into(), mark),
        _ => [&[2, 1, 2, 3][..], mark].concat(),
    }
}

/// The client's port, and a port that DHCP does not use.
fn ports(family: usize) -> (u16, u16) {
    if family == 0 { (CLIENT, 69) } else { (CLIENT6, 548) }
}

/// RFC 2131 section 4.1, RFC 8415 section 7.2: clients accept answers by the destination port, whatever the source port
/// is.
#[test]
fn a_container_answers_no_dhcp_client_from_any_port() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]);
    let b_link: IpAddr = link_local(lab.b.mac()?).into();
    let targets: [&[IpAddr]; 2] =
        [&[lab.b.v4.into(), [255; 4].into(), [10, 0, 3, 255].into()], &[lab.b.v6.into(), b_link, "ff02::1".parse()?]];
    let mut id = 1;
    for family in [0, 1] {
        let sports: &[u16] = if family == 0 { &[67, 1067, 68, 53, 4011] } else { &[547, 1547, 546, 53] };
        let sources: &[IpAddr] = &[lab.a.addresses()[family], link_local(a.mac).into()];
        for to in targets[family] {
            let mac = if to.is_multicast() {
                groups::mac(*to)
            } else if to.to_string().ends_with("255") {
                groups::BROADCAST
            } else {
                lab.b.mac()?
            };
            for src in &sources[..=family] {
                for sport in sports {
                    id += 2;
                    let (client, other) = ports(family);
                    let packet = |forged: bool, mark: &[u8]| {
                        let (sport, dport) = if forged { (*sport, client) } else { (1067, other) };
                        frame::udp((*src, sport), (*to, dport), &answer(family, mac, mark))
                    };
                    let what = format!("from {src} port {sport} to {to}");
                    trial.refused(&what, &["rogue-dhcp"], |twin, mark| {
                        a.send_to(mac, &packet(twin.is_forged(), mark))
                    })?;
                    trial.refused(format!("{what}, in pieces"), &["rogue-dhcp"], |twin, mark| {
                        let pieces = fragments(&packet(twin.is_forged(), mark), id, &[0, 8]);
                        pieces.iter().try_for_each(|piece| a.send_to(mac, piece))
                    })?;
                    let wraps: &[&[Extension]] =
                        if family == 0 { &[] } else { &[&[HopByHop], &[Destination, Routing], &[AtomicFragment]] };
                    for wrap in wraps {
                        trial.refused(format!("{what}, in {wrap:?}"), &["rogue-dhcp"], |twin, mark| {
                            a.send_to(mac, &extended(&packet(twin.is_forged(), mark), wrap))
                        })?;
                    }
                    if family == 0 {
                        trial.refused(format!("{what}, with options"), &["rogue-dhcp"], |twin, mark| {
                            a.send_to(mac, &frame::with_options(&packet(twin.is_forged(), mark)))
                        })?;
                    }
                }
            }
        }
    }
    trial.finish()
}

/// A server at a LAN port of the bridge, or outside, must not answer a pool's clients.
#[test]
fn a_stranger_answers_no_dhcp_client() -> Result<()> {
    let rules = json!([
        {"from": {"cidr": "192.0.2.9/32"}, "to": {"pool": "management"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:1::9/128"}, "to": {"pool": "management"}, "action": "allow"},
    ]);
    let (lab, host_ns) = lab::prepared(|config| config["network"]["policies"] = rules, lan, &[])?;
    let (lan, out) = (lab.sender(&host_ns, "pvbr3")?, lab.outsider()?);
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.a.ns, "eth0")?, Ear::link(&lab.c.ns, "eth0")?]);
    for family in [0, 1] {
        let (client, other) = ports(family);
        let broadcast: IpAddr = if family == 0 { [255; 4].into() } else { "ff02::1".parse()? };
        for (who, from, mac, src, to) in [
            ("a LAN port", &lan, lab.a.mac()?, LAN[family], lab.a.addresses()[family]),
            ("a LAN port", &lan, groups::mac(broadcast), LAN[family], broadcast),
            ("outside", &out, out.router, host()[family], lab.c.addresses()[family]),
        ] {
            for sport in [67, 547, 1067] {
                trial.refused(format!("{who}, port {sport}, to {to}"), &["rogue-dhcp"], |twin, mark| {
                    let dport = twin.pick(client, other);
                    from.send_to(mac, &frame::udp((src, sport), (to, dport), &answer(family, mac, mark)))
                })?;
            }
        }
    }
    trial.finish()
}

/// The device answers as the gateway, by unicast and by broadcast.
#[test]
fn the_pools_own_server_is_heard() -> Result<()> {
    for access in ["none", "services"] {
        let lab = lab::lab(|config| config["network"]["pools"]["internal"]["host_access"] = json!(access))?;
        let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]);
        let index = lab.device.ns.run(|| Ok(nix::net::if_::if_nametoindex("pvbr3")?))?;
        let bridge = lab::link_local_of(&lab.device.ns, "pvbr3")?;
        let (four, six) = lab.device.ns.run(|| {
            let four = UdpSocket::bind("10.0.3.1:67")?;
            four.set_broadcast(true)?;
            Ok((four, UdpSocket::bind(SocketAddrV6::new(bridge, SERVER6, 0, index))?))
        })?;
        let b = link_local(lab.b.mac()?);
        let to = |addr: Ipv6Addr| SocketAddr::from(SocketAddrV6::new(addr, CLIENT6, 0, index));
        for (socket, to) in [
            (&four, SocketAddr::from((lab.b.v4, CLIENT))),
            (&four, "10.0.3.255:68".parse()?),
            (&six, to(b)),
            (&six, to("ff02::1".parse()?)),
        ] {
            let mac = lab.b.mac()?;
            trial.passes(format!("{access}: to {to}"), |mark| {
                socket.send_to(&answer(usize::from(to.is_ipv6()), mac, mark), to)?;
                Ok(())
            })?;
        }
        trial.finish()?;
    }
    Ok(())
}

/// An advertisement (134) or redirect (137) of `from` with `mark` in an option.
fn discovery(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, mark: &[u8]) -> Vec<u8> {
    let mut message = vec![0; if kind == 134 { 16 } else { 40 }];
    message[0] = kind;
    // An option that readers skip: type 200, three times eight bytes.
    let mut option = [&[200, 3][..], mark].concat();
    option.resize(24, 0);
    let mut packet = frame::icmp(src.into(), dst.into(), &[message, option].concat());
    packet[7] = 255;
    packet
}

/// RFC 6105, RFC 7113, RFC 6980: advertisements are recognised in any wrapping, and to any destination.
#[test]
fn advertisements_and_redirects_do_not_hide_in_wrappings() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?, Ear::stack(&lab.device.ns)?]);
    let wraps: &[&[Extension]] = &[
        &[],
        &[HopByHop],
        &[RouterAlert],
        &[Destination],
        &[Routing],
        &[Authentication],
        &[AtomicFragment],
        &[HopByHop, Destination, Routing],
        &[RouterAlert, Destination, AtomicFragment],
        &[AtomicFragment, Destination],
        &[AtomicFragment, AtomicFragment],
        &[Authentication, Destination],
        &[Destination; 5],
        &[Destination; 6],
    ];
    let (own, b) = (link_local(a.mac), link_local(lab.b.mac()?));
    let all: Ipv6Addr = "ff02::1".parse()?;
    let reasons = &["rogue-ra", "malformed", "spoofed-nd"];
    let mut id = 0x1000;
    for kind in [134, 137] {
        for (src, to, mac) in
            [(own, all, groups::mac(all.into())), (own, b, lab.b.mac()?), (lab.a.v6, lab.b.v6, lab.b.mac()?)]
        {
            for wrap in wraps {
                trial.refused(format!("{kind} to {to} in {wrap:?}"), reasons, |twin, mark| {
                    if twin.is_forged() {
                        return a.send_to(mac, &extended(&discovery(kind, src, to, mark), wrap));
                    }
                    // No more wrappings than every reader accepts.
                    let few = &wrap[..wrap.len().min(2)];
                    let plain = Proto::Udp.packet((src.into(), 9), (to.into(), PORT), mark);
                    a.send_to(mac, &if few.contains(&AtomicFragment) { plain } else { extended(&plain, few) })
                })?;
            }
            for cut in [8, 16, 24] {
                id += 2;
                trial.refused(format!("{kind} to {to} in pieces of {cut}"), reasons, |twin, mark| {
                    let honest = Proto::Udp.packet((src.into(), 9), (to.into(), PORT), &[&[7; 16][..], mark].concat());
                    let packet = if twin.is_forged() { discovery(kind, src, to, mark) } else { honest };
                    let pieces = fragments(&packet, id + twin.pick(0, 1), &[0, cut]);
                    pieces.iter().try_for_each(|piece| a.send_to(mac, piece))
                })?;
            }
        }
    }
    trial.finish()
}
