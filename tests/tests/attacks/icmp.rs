//! Forged ICMP errors and requests.

use crate::lab::{self, Both, Lab, PUBLISHED, WEB, both, gateway, host, uplink};
use crate::trial::Trial;
use anyhow::{Result, ensure};
use harness::ear::Ear;
use harness::{Namespace, SOON, eventually, frame, patience};
use serde_json::json;
use std::net::{IpAddr, SocketAddr, UdpSocket};

const FORGED: &[&str] = &["forged-icmp"];
/// A port of the container, and of the host that it talks to.
const OWN: u16 = 5000;
const FAR: u16 = 7000;
/// The same for its flow with the device: the container's port, and the device's.
const ASKS: u16 = 5001;
const ASKED: u16 = 5002;
const DEVICE: u16 = 9000;
/// The port of a host that never answers, and the port that asks it.
const SILENT: u16 = 7003;
const IGNORED: u16 = 5003;
/// A port of no flow.
const OTHER: u16 = 6666;
/// Another host beyond the uplink, which has no flow.
const ELSEWHERE: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];

type End = (IpAddr, u16);

/// An ICMP error "port unreachable" (RFC 792, RFC 4443 section 3.1) from `from` to `to`. It quotes a datagram from
/// `sent` to `arrived`.
fn unreachable(from: IpAddr, to: IpAddr, sent: End, arrived: End, mark: &[u8]) -> Vec<u8> {
    let kind = if from.is_ipv4() { [3, 3] } else { [1, 4] };
    error(from, to, kind, &frame::udp(sent, arrived, mark))
}

fn error(from: IpAddr, to: IpAddr, kind: [u8; 2], quote: &[u8]) -> Vec<u8> {
    frame::icmp(from, to, &[&kind[..], &[0, 0, 0, 0, 5, 0], quote].concat())
}

fn socket(ns: &Namespace, at: End) -> Result<UdpSocket> {
    let socket = ns.run(|| Ok(UdpSocket::bind(at)?))?;
    socket.set_read_timeout(Some(patience(SOON)))?;
    Ok(socket)
}

/// Sends a datagram and its answer; gives the sender's address as the receiver sees it.
fn talk(from: &UdpSocket, to: &UdpSocket, at: End) -> Result<SocketAddr> {
    from.send_to(b"hello", at)?;
    let (_, seen) = to.recv_from(&mut [0; 9])?;
    to.send_to(b"hello", seen)?;
    from.recv_from(&mut [0; 9])?;
    Ok(seen)
}

/// The flows of one family; they exist as long as the sockets.
struct Flows {
    a: IpAddr,
    b: IpAddr,
    c: IpAddr,
    host: IpAddr,
    elsewhere: IpAddr,
    gateway: IpAddr,
    uplink: IpAddr,
    /// The port that masquerade uses outside for [`OWN`].
    nat: u16,
    /// The client of the published port.
    client: u16,
    _sockets: Vec<UdpSocket>,
}

impl Flows {
    fn open(lab: &Lab, family: usize) -> Result<Self> {
        let of = |all: Both| all[family];
        let (a, b, c) = (of(lab.a.addresses()), of(lab.b.addresses()), of(lab.c.addresses()));
        let (host, gateway, uplink) = (of(host()), of(gateway(3)), of(uplink()));
        let [own, asks, asked, web] = [OWN, ASKS, ASKED, WEB].map(|port| socket(&lab.a.ns, (a, port)));
        let (own, asks, asked, web) = (own?, asks?, asked?, web?);
        let (far, client) = (socket(&lab.out, (host, FAR))?, socket(&lab.out, (host, 0))?);
        let (device, of_b) = (socket(&lab.device.ns, (gateway, DEVICE))?, socket(&lab.b.ns, (b, ASKED))?);
        let nat = talk(&own, &far, (host, FAR))?.port();
        talk(&client, &web, (uplink, PUBLISHED))?;
        talk(&asks, &device, (gateway, DEVICE))?;
        talk(&device, &asked, (a, ASKED))?;
        talk(&device, &of_b, (b, ASKED))?;
        // The second datagram establishes the flow, although it is not answered.
        let (ignored, silent) = (socket(&lab.a.ns, (a, IGNORED))?, socket(&lab.out, (host, SILENT))?);
        for _ in 0..2 {
            ignored.send_to(b"hello", (host, SILENT))?;
            silent.recv_from(&mut [0; 9])?;
        }
        let client_port = client.local_addr()?.port();
        let sockets = vec![own, asks, asked, web, far, client, device, of_b, ignored, silent];
        let elsewhere = both(ELSEWHERE[0], ELSEWHERE[1])[family];
        Ok(Self { a, b, c, host, elsewhere, gateway, uplink, nat, client: client_port, _sockets: sockets })
    }
}

/// A lab in which an ICMP error depends on the flows only.
fn icmp_lab() -> Result<Lab> {
    let lab = lab::published(|config| {
        let pools = &mut config["network"]["pools"];
        for pool in ["internal", "management"] {
            pools[pool]["host_access"] = json!("all");
            pools[pool]["isolated"] = json!(false);
        }
    })?;
    lab.out.ip(&format!("addr add {}/24 dev eth0", ELSEWHERE[0]))?;
    lab.out.ip(&format!("-6 addr add {}/64 dev eth0 nodad", ELSEWHERE[1]))?;
    Ok(lab)
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4 (c): an ICMP error goes to the source of the packet that it quotes. RFC
/// 5508 section 4.2, RFC 5927: an error about no flow is a forgery.
#[test]
fn errors_from_outside_reach_containers_about_their_flows_alone() -> Result<()> {
    let lab = icmp_lab()?;
    let out = lab.outsider()?;
    let ears = vec![Ear::link(&lab.a.ns, "eth0")?, Ear::link(&lab.b.ns, "eth0")?];
    let mut trial = Trial::new(&lab.device, ears);
    for family in [0, 1] {
        let f = Flows::open(&lab, family)?;
        let (sent, arrived) = ((f.uplink, f.nat), (f.host, FAR));
        for (what, to, quoted) in [
            ("to the container behind masquerade", f.a, (sent, arrived)),
            ("to another container", f.b, (sent, arrived)),
            ("quoting the container's own address", f.a, ((f.a, OWN), arrived)),
            ("quoting it to the device", f.uplink, ((f.a, OWN), arrived)),
            ("quoting another port", f.a, ((f.a, OWN), (f.host, OTHER))),
            ("about what it sent to the device", f.a, ((f.a, ASKS), (f.gateway, DEVICE))),
            ("about what the device sent to it", f.a, ((f.gateway, DEVICE), (f.a, ASKED))),
            ("about a neighbour of its", f.a, ((f.a, OWN), (f.b, ASKED))),
        ] {
            trial.refused(format!("{what} ({to})"), FORGED, |twin, mark| {
                let (to, (sent, arrived)) = twin.pick((to, quoted), (f.uplink, (sent, arrived)));
                out.send(&unreachable(f.host, to, sent, arrived, mark))
            })?;
        }
        trial.passes(format!("about a published port's answer to {}", f.host), |mark| {
            out.send(&unreachable(f.host, f.uplink, (f.uplink, PUBLISHED), (f.host, f.client), mark))
        })?;
    }
    trial.finish()
}

/// The other direction: a container is no router, so its errors may go only to those that sent it something.
#[test]
fn a_containers_errors_reach_those_it_has_flows_with_alone() -> Result<()> {
    let lab = icmp_lab()?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let links = [&lab.out, &lab.b.ns, &lab.c.ns].map(|ns| Ear::link(ns, "eth0"));
    let mut trial = Trial::new(&lab.device, links.into_iter().collect::<Result<_>>()?);
    for family in [0, 1] {
        let f = Flows::open(&lab, family)?;
        let known = ((f.host, FAR), (f.a, OWN));
        for (what, to, quoted) in [
            ("to another host", f.elsewhere, known),
            ("to another container", f.b, known),
            ("about a packet to another container", f.host, ((f.host, FAR), (f.b, OWN))),
            ("about no flow", f.host, ((f.host, OTHER), (f.a, OWN))),
            ("about an answer that never came", f.host, ((f.host, SILENT), (f.a, IGNORED))),
            ("about no flow of its neighbour", f.b, ((f.b, OTHER), (f.a, OWN))),
            ("about no flow of another pool", f.c, ((f.c, OTHER), (f.a, OWN))),
        ] {
            trial.refused(format!("{what} ({to})"), FORGED, |twin, mark| {
                let (to, (sent, arrived)) = twin.pick((to, quoted), (f.host, known));
                a.send(&unreachable(f.a, to, sent, arrived, mark))
            })?;
        }
    }
    trial.finish()
}

/// Linux (`icmp_err`, `icmpv6_err`) believes an error that quotes an echo reply as too big, and lowers the path MTU to
/// its destination, whether or not the reply was ever sent.
#[test]
fn a_containers_errors_reach_the_device_about_their_flows_alone() -> Result<()> {
    let lab = icmp_lab()?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, vec![Ear::stack(&lab.device.ns)?]);
    for family in [0, 1] {
        let f = Flows::open(&lab, family)?;
        let known = ((f.gateway, DEVICE), (f.a, ASKS));
        for (what, to, quoted) in [
            ("about what it sends to others", f.uplink, ((f.uplink, DEVICE), (f.host, FAR))),
            ("about what it forwards", f.uplink, ((f.uplink, f.nat), (f.host, FAR))),
            ("about what it sends to another container", f.gateway, ((f.gateway, DEVICE), (f.b, ASKED))),
            ("about no flow", f.gateway, ((f.gateway, OTHER), (f.a, ASKS))),
            ("about what others send", f.gateway, ((f.host, FAR), (f.a, OWN))),
            ("by another address", f.uplink, known),
        ] {
            trial.refused(format!("{what} ({to})"), FORGED, |twin, mark| {
                let (to, (sent, arrived)) = twin.pick((to, quoted), (f.gateway, known));
                a.send(&unreachable(f.a, to, sent, arrived, mark))
            })?;
        }
        trial.passes(format!("about what the device sent unasked ({})", f.gateway), |mark| {
            a.send(&unreachable(f.a, f.gateway, (f.gateway, DEVICE), (f.a, ASKED), mark))
        })?;
        let too_big = if family == 0 { [3, 4] } else { [2, 0] };
        for (from, to) in [(f.uplink, f.host), (f.gateway, f.host)] {
            trial.dropped(format!("an echo's answer of {from} to {to} is too big"), FORGED, |mark| {
                let answer = if family == 0 { 0 } else { 129 };
                let quote = frame::icmp(from, to, &[&[answer, 0, 0, 0, 0, 7, 0, 1], mark].concat());
                a.send(&error(f.a, from, too_big, &quote))
            })?;
        }
        let route = lab.device.ns.ip(&format!("route get {}", f.host))?;
        ensure!(!route.contains("mtu"), "the path MTU is another one: {route}");
    }
    trial.finish()
}

/// An error from the container's own bridge must come from a host that has a flow with the container.
#[test]
fn a_lan_ports_errors_reach_containers_about_their_flows_with_it_alone() -> Result<()> {
    let at = both("10.0.3.200", "fd00:5056:0:3::c8");
    let (lab, host) = lab::prepared(
        |config| config["network"]["pools"]["internal"]["host_access"] = json!("all"),
        |device| lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"]),
        &["8080:80/udp"],
    )?;
    let lan = lab.sender(&host, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.a.ns, "eth0")?]);
    for family in [0, 1] {
        let f = Flows::open(&lab, family)?;
        let here = at[family];
        let (own, there) = (socket(&lab.a.ns, (f.a, OTHER))?, socket(&host, (here, FAR))?);
        eventually(SOON, || talk(&own, &there, (here, FAR)))?;
        let known = ((f.a, OTHER), (here, FAR));
        for (what, quoted) in [
            ("about no flow", ((f.a, OWN), (here, FAR))),
            ("about what another sent", ((f.b, OTHER), (here, FAR))),
            ("about what it sent to the device", ((f.a, ASKS), (f.gateway, DEVICE))),
            ("about what it sent outside", ((f.a, OWN), (f.host, FAR))),
        ] {
            trial.refused(format!("{what} ({})", f.a), FORGED, |twin, mark| {
                let (sent, arrived) = twin.pick(quoted, known);
                lan.send_to(lab.a.mac()?, &unreachable(here, f.a, sent, arrived, mark))
            })?;
        }
    }
    trial.finish()
}

/// Types of messages that redirect traffic or ask for data of a host: RFC 792, RFC 950, RFC 6918; RFC 2894, RFC 4620.
/// (ICMPv6 redirects are refused together with router advertisements.)
const UNASKED: [&[u8]; 2] = [&[5, 13, 14, 15, 16, 17, 18], &[137, 138, 139, 140]];

/// Linux answers a timestamp request. It also believes redirects of its router, and a container's neighbour may claim
/// to be the router.
#[test]
fn redirects_and_requests_for_information_reach_nobody() -> Result<()> {
    let lab = icmp_lab()?;
    lab.route_to_pools()?;
    let (a, out) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.outsider()?);
    let links = [&lab.a.ns, &lab.b.ns, &lab.c.ns].map(|ns| Ear::link(ns, "eth0"));
    let ears = links.into_iter().chain([Ear::stack(&lab.device.ns)]).collect::<Result<_>>()?;
    let mut trial = Trial::new(&lab.device, ears);
    for (family, kinds) in UNASKED.iter().enumerate() {
        let of = |all: Both| all[family];
        let own = of(lab.a.addresses());
        let [b, c] = [&lab.b, &lab.c].map(|container| of(container.addresses()));
        for kind in *kinds {
            let message = |mark: &[u8]| [&[*kind, 0, 0, 0, 0, 7, 0, 1], &[0; 32][..], mark].concat();
            for to in [of(gateway(3)), of(uplink()), b, c] {
                trial.dropped(format!("{kind} of a to {to}"), &["forged-icmp", "rogue-ra"], |mark| {
                    a.send(&frame::icmp(own, to, &message(mark)))
                })?;
            }
            for to in [own, c] {
                trial.dropped(format!("{kind} from outside to {to}"), FORGED, |mark| {
                    out.send(&frame::icmp(of(host()), to, &message(mark)))
                })?;
            }
        }
    }
    trial.finish()
}
