//! Packets that come by an uplink with another's source address.

use crate::lab::{self, Both, Lab, PORT, PUBLISHED, WEB, both, gateway, host, link_local, link_local_of, uplink};
use crate::trial::{Proto, Trial};
use anyhow::{Result, ensure};
use harness::configs::UPLINK;
use harness::ear::Ear;
use harness::{Namespace, echo, frame, patience};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub const FORGED: &[&str] = &["forged-source"];
const MARTIAN: &[&str] = &["martian"];
/// The drop reasons for addresses to which both apply.
pub const EITHER: &[&str] = &["forged-source", "martian"];
/// An IPv4-mapped address in an IPv6 header: no packet may have one (RFC 4291 section 2.5.5.2 is about programs).
const MAPPED: &[&str] = &["malformed"];

/// A source address that nobody outside can have.
struct Source {
    what: &'static str,
    addr: IpAddr,
    reasons: &'static [&'static str],
    /// The device's own stack may receive it nevertheless: the address is a neighbour's, or nobody has it yet.
    at_the_device: bool,
}

/// The sources that somebody outside may forge.
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

/// The address of the pair that has the family of `addr`.
pub fn of(pair: Both, addr: IpAddr) -> IpAddr {
    pair[usize::from(addr.is_ipv6())]
}

/// Rules by which the host beyond the uplink reaches `a` without a published port.
pub fn host_may() -> Value {
    json!([
        {"from": {"cidr": "192.0.2.9/32"}, "to": {"container": "a"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:1::9/128"}, "to": {"container": "a"}, "action": "allow"},
    ])
}

pub fn ears(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![Ear::stack(&lab.device.ns)?, Ear::link(&lab.a.ns, "eth0")?, Ear::link(&lab.b.ns, "eth0")?])
}

/// The destinations of an attack: a name, the address, the port.
fn targets(lab: &Lab) -> [(&'static str, Both, u16); 3] {
    [
        ("the device", uplink(), PORT),
        ("a published port", uplink(), PUBLISHED),
        ("the container", lab.a.addresses(), WEB),
    ]
}

/// RFC 2827 and RFC 1812 sections 5.3.7 and 5.3.8: a packet's link tells where it comes from, its source address does
/// not.
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
                // An echo has no port: the device answers it.
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

/// A forged source does not make the rules about its real owner apply, nor those about the world.
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

/// With real sockets in both directions: the answers would go to the forger's MAC.
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
            // The host cannot connect to the device's address when it has that address itself.
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
        // A time-out for `connect` as well (socket(7)).
        let micros = patience(wait).as_micros();
        let wait = TimeVal::new((micros / 1_000_000).try_into()?, (micros % 1_000_000).try_into()?);
        socket::setsockopt(&fd, sockopt::SendTimeout, &wait)?;
        Ok(socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).is_ok())
    })
}

/// RFC 1122 section 3.2.2.2 and RFC 4861 section 8.1: hosts believe redirects that come from their router.
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
                    // The redirect names `b` as the new router, and quotes a packet of `a`.
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
