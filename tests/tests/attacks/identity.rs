//! Somebody else's address, by an uplink or another link that is no container's.

use crate::lab::{self, Both, Lab, PORT, PUBLISHED, WEB, both, gateway, host, link_local, link_local_of, uplink};
use crate::trial::{Proto, Trial};
use anyhow::{Result, ensure};
use harness::configs::UPLINK;
use harness::ear::Ear;
use harness::{Device, Namespace, echo, frame, groups, patience};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const FORGED: &[&str] = &["forged-source"];
const MARTIAN: &[&str] = &["martian"];
/// For addresses that are both.
const EITHER: &[&str] = &["forged-source", "martian"];
/// An IPv4 address in an IPv6 header: no such packet is one (RFC 4291 section 2.5.5.2 is about programs).
const MAPPED: &[&str] = &["malformed"];

/// A source that nobody outside can have.
struct Source {
    what: &'static str,
    addr: IpAddr,
    reasons: &'static [&'static str],
    /// The device's own stack may see it all the same: it is a neighbour's, or nobody's yet.
    at_the_device: bool,
}

/// What somebody outside may pretend to be.
fn sources(lab: &Lab) -> Result<Vec<Source>> {
    let [gateway4, gateway6] = gateway(3);
    let [other4, other6] = gateway(4);
    let [device4, device6] = uplink();
    let bridge = link_local_of(&lab.device.ns, "pvbr3")?;
    let own = link_local_of(&lab.device.ns, UPLINK)?;
    let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("an address").into();
    let v4 = |octets: [u8; 4]| IpAddr::from(octets);
    let source = |what, addr, reasons, at_the_device| Source { what, addr, reasons, at_the_device };
    let everywhere = [
        ("the gateway", gateway4, FORGED),
        ("the gateway", gateway6, FORGED),
        ("another pool's gateway", other4, FORGED),
        ("another pool's gateway", other6, FORGED),
        ("another container", lab.b.v4.into(), FORGED),
        ("another container", lab.b.v6.into(), FORGED),
        ("another pool's container", lab.c.v4.into(), FORGED),
        ("another pool's container", lab.c.v6.into(), FORGED),
        ("the container itself", lab.a.v4.into(), FORGED),
        ("the container itself", lab.a.v6.into(), FORGED),
        ("nobody in the pool", v4([10, 0, 3, 77]), FORGED),
        ("nobody in the pool", v6("fd00:5056:0:3::77"), FORGED),
        ("the pool's broadcast", v4([10, 0, 3, 255]), EITHER),
        ("the pool's network", v4([10, 0, 3, 0]), EITHER),
        ("the pool's routers", v6("fd00:5056:0:3::"), EITHER),
        ("the device", device4, FORGED),
        ("the device", device6, FORGED),
        ("loopback", v4([127, 0, 0, 1]), MARTIAN),
        ("some loopback", v4([127, 99, 0, 7]), MARTIAN),
        ("loopback", v6("::1"), MARTIAN),
        ("the bridge's link-local", bridge.into(), EITHER),
        ("the device's link-local", own.into(), EITHER),
    ];
    let behind_the_device = [
        ("a container's link-local", link_local(lab.b.mac()?).into(), EITHER),
        ("a link-local", v4([169, 254, 7, 7]), MARTIAN),
        ("a link-local", v6("fe80::77"), MARTIAN),
        ("a group", v4([224, 0, 0, 5]), MARTIAN),
        ("a group", v6("ff02::5"), MARTIAN),
        ("a wider group", v4([239, 1, 1, 1]), MARTIAN),
        ("a wider group", v6("ff0e::5"), MARTIAN),
        ("the broadcast", v4([255; 4]), MARTIAN),
        ("the uplink's broadcast", v4([192, 0, 2, 255]), EITHER),
        ("nobody", v4([0; 4]), MARTIAN),
        ("nobody's network", v4([0, 0, 0, 9]), MARTIAN),
        ("nobody", v6("::"), MARTIAN),
        ("an IPv4 container in IPv6", v6("::ffff:10.0.3.3"), MAPPED),
        ("IPv4 loopback in IPv6", v6("::ffff:127.0.0.1"), MAPPED),
    ];
    let everywhere = everywhere.into_iter().map(|(what, addr, reasons)| source(what, addr, reasons, false));
    let behind = behind_the_device.into_iter().map(|(what, addr, reasons)| source(what, addr, reasons, true));
    Ok(everywhere.chain(behind).collect())
}

/// Of the family of `addr`.
fn of(pair: Both, addr: IpAddr) -> IpAddr {
    pair[usize::from(addr.is_ipv6())]
}

/// Rules by which the host beyond the uplink reaches `a` without a published port.
fn host_may() -> Value {
    json!([
        {"from": {"cidr": "192.0.2.9/32"}, "to": {"container": "a"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:1::9/128"}, "to": {"container": "a"}, "action": "allow"},
    ])
}

fn ears(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![Ear::stack(&lab.device.ns)?, Ear::link(&lab.a.ns, "eth0")?, Ear::link(&lab.b.ns, "eth0")?])
}

/// Where a packet can be meant for: a name, the address, the port.
fn targets(lab: &Lab) -> [(&'static str, Both, u16); 3] {
    [
        ("the device", uplink(), PORT),
        ("a published port", uplink(), PUBLISHED),
        ("the container", lab.a.addresses(), WEB),
    ]
}

/// RFC 2827 and RFC 1812 section 5.3.7 and 5.3.8: an address is no identity, the link is.
#[test]
fn a_forged_source_from_outside_reaches_nobody() -> Result<()> {
    let lab = lab::published(|config| config["network"]["policies"] = host_may())?;
    let out = lab.outsider()?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    for source in sources(&lab)? {
        for (whom, to, dport) in targets(&lab) {
            if whom == "the device" && source.at_the_device {
                continue;
            }
            for proto in Proto::ALL {
                // An echo names no port: the device answers it.
                if proto == Proto::Echo && whom == "a published port" {
                    continue;
                }
                port += 1;
                let to = (of(to, source.addr), dport);
                let what = format!("{proto:?} from {} ({}) to {whom}", source.what, source.addr);
                trial.refused(what, source.reasons, |twin, mark| {
                    let src = twin.pick(source.addr, of(host(), source.addr));
                    out.send(&proto.packet((src, port), to, mark))
                })?;
            }
        }
    }
    trial.finish()
}

/// The rules about whom the source names are not asked, and neither are those about the world.
#[test]
fn a_forged_source_gets_past_no_rule_about_the_world() -> Result<()> {
    let deny = json!([
        {"from": "world", "to": {"pool": "internal"}, "action": "deny"},
        {"from": {"pool": "internal"}, "to": {"pool": "internal"}, "action": "allow"},
        {"from": "host", "to": {"pool": "internal"}, "action": "allow"},
    ]);
    let lab = lab::published(|config| config["network"]["policies"] = deny)?;
    let out = lab.outsider()?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    for source in sources(&lab)? {
        for (whom, to, dport) in &targets(&lab)[1..] {
            for proto in [Proto::Syn, Proto::Udp] {
                port += 1;
                let to = (of(*to, source.addr), *dport);
                let from = |src: IpAddr, mark: &[u8]| out.send(&proto.packet((src, port), to, mark));
                let what = format!("{proto:?} from {} ({}) to {whom}", source.what, source.addr);
                trial.dropped(&what, source.reasons, |mark| from(source.addr, mark))?;
                let honest = of(host(), source.addr);
                trial.dropped(format!("{what}, honest"), &["policy-denied"], |mark| from(honest, mark))?;
            }
        }
    }
    trial.finish()
}

/// Both ways, through real sockets: the answers would go to the forger's MAC.
#[test]
fn a_forger_outside_talks_with_nobody() -> Result<()> {
    let lab = lab::published(|config| config["network"]["policies"] = host_may())?;
    lab.route_to_pools()?;
    echo::serve(&lab.a.ns, Ipv6Addr::UNSPECIFIED.into(), WEB)?;
    for addr in uplink() {
        echo::serve(&lab.device.ns, addr, PORT)?;
    }
    lab.out.settle()?;
    let forged = [lab.b.addresses(), lab.c.addresses(), gateway(3), uplink(), both("10.0.3.77", "fd00:5056:0:3::77")];
    for pair in forged {
        for addr in pair {
            let prefix = if addr.is_ipv4() { "addr add" } else { "-6 addr add nodad" };
            let length = if addr.is_ipv4() { 32 } else { 128 };
            // The device's own cannot be asked for where the host has them itself.
            if !uplink().contains(&addr) {
                lab.out.ip(&format!("{prefix} {addr}/{length} dev eth0"))?;
            }
        }
    }
    let mut open = Vec::new();
    for (whom, to, port) in targets(&lab) {
        for (family, to) in to.into_iter().enumerate() {
            let to = SocketAddr::new(to, port);
            let honest = connect(&lab.out, host()[family], to, Duration::from_secs(5))?;
            ensure!(honest, "{whom}: {to} is not reached honestly");
            for pair in forged {
                if uplink().contains(&pair[family]) {
                    continue;
                }
                if connect(&lab.out, pair[family], to, Duration::from_millis(250))? {
                    open.push(format!("{whom} at {to} as {}", pair[family]));
                }
            }
        }
    }
    ensure!(open.is_empty(), "a forger is connected with\n{}", open.join("\n"));
    Ok(())
}

fn connect(ns: &Namespace, from: IpAddr, to: SocketAddr, wait: Duration) -> Result<bool> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
    use nix::sys::time::TimeVal;
    use std::os::fd::AsRawFd;
    ns.run(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        // Of `connect` too (socket(7)).
        let micros = patience(wait).as_micros();
        let wait = TimeVal::new((micros / 1_000_000).try_into()?, (micros % 1_000_000).try_into()?);
        socket::setsockopt(&fd, sockopt::SendTimeout, &wait)?;
        Ok(socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).is_ok())
    })
}

/// RFC 1122 section 3.2.2.2 and RFC 4861 section 8.1: redirects are believed when the router sends them.
#[test]
fn a_redirect_in_the_gateways_name_does_not_come_in() -> Result<()> {
    let lab = lab::published(|_| ())?;
    let out = lab.outsider()?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let [gateway4, gateway6] = gateway(3);
    let bridge = link_local_of(&lab.device.ns, "pvbr3")?;
    let reasons = &["forged-source", "martian", "forged-icmp", "no-flow", "rogue-ra"];
    let own = link_local(lab.a.mac()?);
    for (src, dst) in [
        (gateway4, IpAddr::from(lab.a.v4)),
        (uplink()[0], lab.a.v4.into()),
        (gateway6, lab.a.v6.into()),
        (bridge.into(), lab.a.v6.into()),
        (bridge.into(), own.into()),
    ] {
        trial.dropped(format!("from {src} to {dst}"), reasons, |mark| {
            let packet = match (dst, host()) {
                (IpAddr::V4(a), [IpAddr::V4(far), _]) => {
                    // The new router is b; what is quoted is of a's own.
                    let quote = frame::udp((dst, 5), (far.into(), 6), mark);
                    frame::icmp(src, a.into(), &[&[5, 1, 0, 0][..], &lab.b.v4.octets(), &quote].concat())
                }
                (IpAddr::V6(_), [_, IpAddr::V6(far)]) => {
                    let new = link_local(lab.b.mac()?);
                    let option = [&[4, 3, 0, 0, 0, 0, 0, 0][..], mark].concat();
                    let all = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &new.octets(), &far.octets(), &option].concat();
                    let mut packet = frame::icmp(src, dst, &all);
                    packet[7] = 255;
                    packet
                }
                _ => unreachable!("families"),
            };
            out.send(&packet)
        })?;
    }
    trial.finish()
}

/// Ports of `a`: one on loopback alone, one on all addresses.
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

/// RFC 1122 section 3.2.1.3 (g) and RFC 4291 section 2.5.3: loopback is on no wire.
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
        // The same frames to an address of the device do arrive.
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
    // In a frame to the container's own MAC, past the device's stack.
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

/// The same addresses as sources: a container behind a port that is not published, the device itself.
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

/// A host on a port of the bridge of `internal`.
const LAN: Both =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 3, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 0xc8))];

fn lan(device: &Device) -> Result<Namespace> {
    lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"])
}

/// Whom a stranger at a bridge, or at a link that is no uplink, may pretend to be.
fn insiders(lab: &Lab, denied: Both) -> Result<Vec<(&'static str, IpAddr)>> {
    let pairs = [
        ("b", lab.b.addresses()),
        ("one who is denied", denied),
        ("one of another pool", lab.c.addresses()),
        ("the gateway", gateway(3)),
        ("the device", uplink()),
    ];
    let mut all: Vec<_> = pairs.into_iter().flat_map(|(who, pair)| pair.map(|addr| (who, addr))).collect();
    all.push(("the container itself", lab.a.v4.into()));
    all.push(("the container itself", lab.a.v6.into()));
    all.push(("b's link-local", link_local(lab.b.mac()?).into()));
    all.push(("the bridge's link-local", link_local_of(&lab.device.ns, "pvbr3")?.into()));
    Ok(all)
}

/// `c` and `denied` may not reach `a`; the network of the link that is no uplink may.
fn rules_of_strangers() -> Value {
    json!([
        {"from": {"container": "denied"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "10.0.3.201/32"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "fd00:5056:0:3::c9/128"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "198.51.100.9/32"}, "to": {"container": "a"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:2::9/128"}, "to": {"container": "a"}, "action": "allow"},
    ])
}

/// What did not come from a container's link is not that container; the bridge itself checks no address.
#[test]
fn a_lan_port_does_not_speak_as_anybody_of_the_pool() -> Result<()> {
    let (lab, host) = lab::prepared(
        |config| config["network"]["policies"] = rules_of_strangers(),
        |device| lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"]),
        &[],
    )?;
    let denied = lab.device.attach("denied", "internal")?;
    let lan = lab.sender(&host, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    let groups = both("224.0.0.251", "ff02::fb");
    for (who, addr) in insiders(&lab, denied.addresses())? {
        let reasons = if addr == IpAddr::from(lab.a.v4) || addr == IpAddr::from(lab.a.v6) { EITHER } else { FORGED };
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {who} ({addr}) to a"), reasons, |twin, mark| {
                let src = twin.pick(addr, of(LAN, addr));
                lan.send_to(lab.a.mac()?, &proto.packet((src, port), (of(lab.a.addresses(), addr), PORT), mark))
            })?;
            trial.dropped(format!("{proto:?} as {who} ({addr}) to the device"), EITHER, |mark| {
                lan.send(&proto.packet((addr, port), (of(gateway(3), addr), PORT), mark))
            })?;
        }
        trial.refused(format!("as {who} ({addr}) to a group"), EITHER, |twin, mark| {
            let (src, to) = (twin.pick(addr, of(LAN, addr)), of(groups, addr));
            lan.send_to(groups::mac(to), &Proto::Udp.packet((src, 5353), (to, 5353), mark))
        })?;
    }
    // It meets rules as what it is.
    for (denied, a) in both("10.0.3.201", "fd00:5056:0:3::c9").into_iter().zip(lab.a.addresses()) {
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {denied}, that is denied"), &["policy-denied"], |twin, mark| {
                let src = twin.pick(denied, of(LAN, denied));
                lan.send_to(lab.a.mac()?, &proto.packet((src, port), (a, PORT), mark))
            })?;
        }
    }
    trial.finish()
}

/// With `rp_filter` 2 the kernel forwards what comes in by a link that the route back does not lead to.
#[test]
fn a_link_that_is_no_uplink_does_not_speak_as_anybody_of_the_pool() -> Result<()> {
    const OWN: Both =
        [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9))];
    let (lab, second) = lab::prepared(
        |config| config["network"]["policies"] = rules_of_strangers(),
        |device| {
            let host = device.outside(
                "lan1",
                &["198.51.100.1/24", "2001:db8:2::1/64"],
                &["198.51.100.9/24", "2001:db8:2::9/64"],
            )?;
            lab::forwarding(device)?;
            for link in ["all", "lan1"] {
                lab::sysctl(&device.ns, &format!("net/ipv4/conf/{link}/rp_filter"), "2")?;
            }
            Ok(host)
        },
        &[],
    )?;
    let denied = lab.device.attach("denied", "internal")?;
    let host = lab.sender(&second, "lan1")?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    for (who, addr) in insiders(&lab, denied.addresses())? {
        // The kernel drops what comes by a wire with a local or a link-local source, before it forwards.
        let kernels = matches!(who, "the gateway" | "the device") && addr.is_ipv4() || who.contains("link-local");
        let reasons = if kernels { &[] } else { EITHER };
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {who} ({addr}) to a"), reasons, |twin, mark| {
                let src = twin.pick(addr, of(OWN, addr));
                host.send(&proto.packet((src, port), (of(lab.a.addresses(), addr), PORT), mark))
            })?;
        }
    }
    trial.finish()
}
