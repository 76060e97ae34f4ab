//! Ways by which containers could reach the device's own stack.

use crate::lab::{self, Lab, PORT, Sender, both, gateway, uplink};
use crate::trial::{Proto, Trial};
use anyhow::{Context, Result, ensure};
use harness::configs::UPLINK;
use harness::ear::Ear;
use harness::{Namespace, SOON, echo, eventually, frame, groups, patience};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::time::Duration;

const JOINED: [(Ipv4Addr, Ipv6Addr); 2] = [
    (Ipv4Addr::new(239, 1, 2, 3), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x1234)),
    (Ipv4Addr::new(224, 0, 0, 251), Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x77)),
];

/// A pool that may reach nothing on the device, and one that may reach everything.
fn config(config: &mut Value) {
    let pools = &mut config["network"]["pools"];
    pools["internal"]["host_access"] = json!("none");
    pools["management"]["host_access"] = json!("all");
}

/// Joins groups on both bridges, for as long as the sockets exist.
fn join(ns: &Namespace) -> Result<Vec<UdpSocket>> {
    ns.run(|| {
        let (four, six) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?);
        for (n, bridge) in [(3, "pvbr3"), (4, "pvbr4")] {
            let index = nix::net::if_::if_nametoindex(bridge)?;
            for (v4, v6) in JOINED {
                four.join_multicast_v4(&v4, &Ipv4Addr::new(10, 0, n, 1))?;
                six.join_multicast_v6(&v6, index)?;
            }
        }
        Ok(vec![four, six])
    })
}

/// The addresses by which pool `n` can reach the device, other than the configured ones.
fn ways_in(n: u8) -> Vec<(&'static str, IpAddr)> {
    let v4 = |text: &str| text.parse::<Ipv4Addr>().expect("an address").into();
    let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("an address").into();
    let [gateway4, gateway6] = gateway(n);
    let [uplink4, uplink6] = uplink();
    let mut all = vec![
        ("the gateway", gateway4),
        ("the gateway", gateway6),
        ("the uplink's address", uplink4),
        ("the uplink's address", uplink6),
        ("the broadcast", v4("255.255.255.255")),
        ("the pool's broadcast", v4(&format!("10.0.{n}.255"))),
        ("the uplink's broadcast", v4("192.0.2.255")),
        ("all hosts", v4("224.0.0.1")),
        ("all nodes", v6("ff02::1")),
        ("all routers", v6("ff02::2")),
        ("the pool's routers", v6(&format!("fd00:5056:0:{n}::"))),
        ("another pool's routers", v6(&format!("fd00:5056:0:{}::", 7 - n))),
        ("a local route", v4("198.51.100.7")),
        ("a local route", v6("2001:db8:99::7")),
        ("a late address", v4("203.0.113.77")),
        ("a late address", v6("2001:db8:98::77")),
    ];
    all.extend(
        JOINED.iter().flat_map(|(v4, v6)| [("a joined group", IpAddr::from(*v4)), ("a joined group", (*v6).into())]),
    );
    all
}

/// The destination MAC of a frame to this address: broadcast, a group's, or the router's.
fn mac_of(to: IpAddr, sender: &Sender) -> [u8; 6] {
    match to {
        IpAddr::V4(a) if a.is_broadcast() || a.octets()[0] == 10 && a.octets()[3] == 255 => groups::BROADCAST,
        to if to.is_multicast() => groups::mac(to),
        _ => sender.router,
    }
}

/// Adds AnyIP routes, and addresses that the daemon did not find at its start.
fn local_routes(lab: &Lab) -> Result<()> {
    lab.device.ns.ip("route add local 198.51.100.0/24 dev lo")?;
    lab.device.ns.ip("-6 route add local 2001:db8:99::/64 dev lo").and_then(|_| late(lab))
}

fn late(lab: &Lab) -> Result<()> {
    lab.device.ns.ip(&format!("addr add 203.0.113.77/24 dev {UPLINK}"))?;
    lab.device.ns.ip(&format!("-6 addr add 2001:db8:98::77/64 dev {UPLINK} nodad")).map(drop)
}

/// RFC 1122 section 3.2.1.3, RFC 4291 section 2.6.1, ip-route(8) `local`: every address that the kernel has as local is
/// the device's.
#[test]
fn no_way_leads_to_the_devices_stack_past_host_access() -> Result<()> {
    let deny = json!([{"from": {"container": "denied"}, "to": "host", "action": "deny"}]);
    let lab = lab::lab(|all| {
        config(all);
        all["network"]["policies"] = deny;
    })?;
    let denied = lab.device.attach("denied", "management")?;
    let _joined = join(&lab.device.ns)?;
    local_routes(&lab)?;
    let (a, c, d) =
        (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&lab.c.ns, "pvbr4")?, lab.sender(&denied.ns, "pvbr4")?);
    let mut trial = Trial::new(&lab.device, vec![Ear::stack(&lab.device.ns)?]);
    let mut port = 10_000;
    for ((what, forged), (_, honest)) in ways_in(3).into_iter().zip(ways_in(4)) {
        let family = usize::from(forged.is_ipv6());
        for proto in Proto::ALL {
            for (who, from, own, to, reason) in [
                ("none", &a, lab.a.addresses(), forged, &["host-access"][..]),
                // A packet to a group is dropped only for the device, whose drop reason does not tell which rule it
                // was.
                ("a rule", &d, denied.addresses(), honest, &["policy-denied", "host-access"]),
            ] {
                port += 1;
                trial.refused(format!("past {who}: {proto:?} to {what} ({to})"), reason, |twin, mark| {
                    let from = twin.pick(from, &c);
                    let src = twin.pick(own, lab.c.addresses())[family];
                    let to = twin.pick(to, honest);
                    from.send_to(mac_of(to, from), &proto.packet((src, port), (to, PORT), mark))
                })?;
            }
        }
    }
    trial.finish()
}

/// The same with a link-local source, as packets to a link's groups have it.
#[test]
fn a_link_local_source_leads_no_further() -> Result<()> {
    let lab = lab::lab(config)?;
    let _joined = join(&lab.device.ns)?;
    let (a, c) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&lab.c.ns, "pvbr4")?);
    let mut trial = Trial::new(&lab.device, vec![Ear::stack(&lab.device.ns)?]);
    let mut port = 10_000;
    let bridges = ["pvbr3", "pvbr4"].map(|bridge| lab::link_local_of(&lab.device.ns, bridge));
    let [of3, of4] = bridges;
    let mut ways = vec![("the bridge's link-local", of3?, of4?)];
    ways.extend(["ff02::1", "ff02::2", "ff02::1234"].map(|to| {
        let to: Ipv6Addr = to.parse().expect("an address");
        ("a group", to, to)
    }));
    for (what, forged, honest) in ways {
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} to {what} ({forged})"), &["host-access"], |twin, mark| {
                let from = twin.pick(&a, &c);
                let to = twin.pick(forged, honest).into();
                let src = lab::link_local(from.mac).into();
                from.send_to(mac_of(to, from), &proto.packet((src, port), (to, PORT), mark))
            })?;
        }
    }
    trial.finish()
}

/// The programs ask the kernel for local addresses, so no daemon needs to run when an address is added.
#[test]
fn an_address_that_comes_while_no_daemon_runs_is_the_devices_too() -> Result<()> {
    let mut lab = lab::lab(config)?;
    lab.device.stop(Signal::SIGTERM)?;
    late(&lab)?;
    let ear = Ear::stack(&lab.device.ns)?;
    let (a, c) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&lab.c.ns, "pvbr4")?);
    let mut failures = Vec::new();
    for to in both("203.0.113.77", "2001:db8:98::77") {
        let family = usize::from(to.is_ipv6());
        for proto in Proto::ALL {
            let send = |from: &Sender, src: IpAddr, mark: &[u8]| from.send(&proto.packet((src, 9), (to, PORT), mark));
            send(&a, lab.a.addresses()[family], b"who may not")?;
            send(&c, lab.c.addresses()[family], b"who may all")?;
            let mut heard = Vec::new();
            let has = |heard: &[Vec<u8>], mark: &[u8]| heard.iter().any(|p| p.windows(mark.len()).any(|w| w == mark));
            let arrived = eventually(Duration::from_secs(5), || {
                heard.extend(ear.heard()?);
                ensure!(has(&heard, b"who may all"), "{proto:?} of c to {to} does not arrive");
                Ok(())
            });
            failures.extend(arrived.err().map(|why| why.to_string()));
            if has(&heard, b"who may not") {
                failures.push(format!("{proto:?} of a to {to} arrives"));
            }
        }
    }
    lab.device.start()?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    ensure!(lab.device.counters()?["host-access"] >= 6, "{:?}", lab.device.counters()?);
    Ok(())
}

/// TCP flags of scans, and of segments that seem to belong to a connection.
const SCANS: [(&str, u8); 7] =
    [("FIN", 1), ("NULL", 0), ("Xmas", 0x29), ("ACK", 0x10), ("Maimon", 0x11), ("SYN ACK", 0x12), ("URG", 0x20)];

/// RFC 9293 section 3.10.7: a closed port answers each of these segments with a reset, an open port mostly not at all.
#[test]
fn scans_do_not_tell_open_ports_from_closed_ones() -> Result<()> {
    let lab = lab::lab(config)?;
    let listeners = lab.device.ns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    let (a, c) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&lab.c.ns, "pvbr4")?);
    // Each probe has its own source port, which tells the answers apart.
    let mut sport = 20_000;
    for family in [0, 1] {
        for (what, flags) in SCANS {
            for (state, dport) in [("an open", PORT), ("a closed", PORT + 1)] {
                for to in [gateway(3)[family], uplink()[family]] {
                    sport += 1;
                    let what = format!("{what} to {state} port of {to}");
                    let ear = Ear::link(&lab.a.ns, "eth0")?;
                    let grown = lab::grown(&lab.device, || {
                        a.send(&frame::tcp((lab.a.addresses()[family], sport), (to, dport), flags, b""))?;
                        // An honest probe first, to see how long an answer takes.
                        let at = gateway(4)[family];
                        let honest = frame::tcp((lab.c.addresses()[family], sport), (at, PORT + 1), flags, b"");
                        let answers = Ear::link(&lab.c.ns, "eth0")?;
                        c.send(&honest)?;
                        eventually(SOON, || {
                            let heard = answers.heard()?;
                            ensure!(heard.iter().any(|f| has_port(f, sport)), "{what}: who may all is not answered");
                            Ok(())
                        })
                    })?;
                    std::thread::sleep(patience(Duration::from_millis(20)));
                    let answered = ear.heard()?.iter().filter(|f| has_port(f, sport)).count();
                    ensure!(answered == 0, "{what}: answered; {grown:?}");
                    ensure!(lab::count(&grown, "host-access") == 1, "{what}: {grown:?}");
                }
            }
        }
    }
    drop(listeners);
    Ok(())
}

/// Whether the frame contains this port anywhere, as an answer or a quote would.
fn has_port(frame: &[u8], port: u16) -> bool {
    frame.len() > 34 && frame[34..].windows(2).any(|two| two == port.to_be_bytes())
}

/// Answers to the device's own connections arrive even where containers may open nothing.
#[test]
fn the_devices_own_connections_live_under_none() -> Result<()> {
    let lab = lab::lab(config)?;
    echo::serve(&lab.a.ns, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    for to in lab.a.addresses() {
        echo::tcp(&lab.device.ns, (to, PORT).into(), &[7; 200_000]).context("TCP")?;
        echo::udp(&lab.device.ns, (to, PORT).into(), b"datagram").context("UDP")?;
        lab.device.ns.ping(to, 2)?;
    }
    Ok(())
}
