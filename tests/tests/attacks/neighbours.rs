//! ARP, neighbour discovery, MLD and IGMP.

use crate::lab::{self, Lab, PORT, link_local};
use crate::trial::{Proto, Trial};
use anyhow::{Result, ensure};
use harness::ear::Ear;
use harness::wrap::Extension::{AtomicFragment, Destination, HopByHop, RouterAlert};
use harness::wrap::{Extension, extended};
use harness::{SOON, eventually, frame, groups};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const STRANGER: [u8; 6] = [2, 0, 0xde, 0xad, 0, 1];
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn b_hears(lab: &Lab) -> Result<Trial<'_>> {
    Ok(Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?]))
}

/// RFC 5227 section 2.1.1: a host that is about to take an address gives it up when it sees a probe for it. Section
/// 2.4: the same holds for any ARP packet with the address as its sender.
#[test]
fn arp_speaks_of_nobody_elses_address() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = b_hears(&lab)?;
    let (own, b, gateway) = (lab.a.v4, lab.b.v4, Ipv4Addr::new(10, 0, 3, 1));
    let unused = Ipv4Addr::new(10, 0, 3, 77);
    let zero = [0; 6];
    // Operation, sender, target. The operations of RARP and InARP have the same fields.
    let mut forged = vec![
        ("an answer of nobody", 2, (a.mac, NOBODY), (STRANGER, own)),
        ("an answer of nobody about b", 2, (a.mac, NOBODY), (a.mac, b)),
        ("an answer of nobody about the gateway", 2, (a.mac, NOBODY), (a.mac, gateway)),
        ("an announcement of nobody", 1, (a.mac, NOBODY), (zero, NOBODY)),
    ];
    for (what, target) in [("a probe for b", b), ("a probe for the gateway", gateway), ("a probe", unused)] {
        forged.push((what, 1, (a.mac, NOBODY), (zero, target)));
        for op in [1, 2, 3, 4, 8, 9] {
            forged.push(("an announcement of another's", op, (a.mac, target), (zero, target)));
            forged.push(("another's MAC", op, (STRANGER, own), (zero, target)));
        }
    }
    for (what, op, sender, target) in forged {
        for mac in [groups::BROADCAST, lab.b.mac()?] {
            trial.refused(
                format!("{what}: {op} {sender:?} {target:?}"),
                &["spoofed-arp", "malformed"],
                |twin, mark| {
                    let forged = frame::arp(op, sender, target);
                    let honest = frame::arp(1, (a.mac, own), (zero, b));
                    let packet = [&twin.pick(forged, honest)[..], mark].concat();
                    a.socket.send(&frame::ethernet(a.mac, mac, frame::ARP, &packet))
                },
            )?;
        }
    }
    // RFC 5227: what a client sends that takes its own address.
    for (what, op, sender, target) in [
        ("its own probe", 1, (a.mac, NOBODY), (zero, own)),
        ("its own announcement", 1, (a.mac, own), (zero, own)),
        ("its own announcement as an answer", 2, (a.mac, own), (a.mac, own)),
        ("a question for the gateway", 1, (a.mac, own), (zero, gateway)),
        ("an answer", 2, (a.mac, own), (lab.b.mac()?, b)),
    ] {
        trial.passes(what, |mark| {
            let packet = [&frame::arp(op, sender, target)[..], mark].concat();
            a.socket.send(&frame::ethernet(a.mac, groups::BROADCAST, frame::ARP, &packet))
        })?;
    }
    trial.finish()
}

/// A neighbour message with these options behind its target, and `mark` in one that readers skip.
fn message(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, options: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut skipped = [&[200, 3][..], mark].concat();
    skipped.resize(24, 0);
    let target = if kind == 133 { Vec::new() } else { target.octets().to_vec() };
    let flags = if kind == 136 { 0x20 } else { 0 };
    let all = [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &target, options, &skipped].concat();
    let mut packet = frame::icmp(src.into(), dst.into(), &all);
    packet[7] = 255;
    packet
}

/// RFC 4862 section 5.4.3: a host gives up its tentative address when it gets a solicitation from `::` for it. RFC 4861
/// section 7.2.5: hosts believe advertisements.
#[test]
fn neighbour_discovery_speaks_of_nobody_elses_address() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = b_hears(&lab)?;
    let (own, b, nobody) = (lab.a.v6, lab.b.v6, Ipv6Addr::UNSPECIFIED);
    let (own_link, b_link) = (link_local(a.mac), link_local(lab.b.mac()?));
    let all: Ipv6Addr = "ff02::1".parse()?;
    let routers: Ipv6Addr = "ff02::2".parse()?;
    let bridge = lab::link_local_of(&lab.device.ns, "pvbr3")?;
    let source = |mac: [u8; 6]| [&[1, 1][..], &mac].concat();
    let target = |mac: [u8; 6]| [&[2, 1][..], &mac].concat();
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let others: Vec<Ipv6Addr> = vec![b, b_link, "fd00:5056:0:3::1".parse()?, bridge, "fd00:5056:0:3::77".parse()?];
    let mut forged = Vec::new();
    for other in others {
        let group = groups::solicited(other);
        forged.push(("duplicate detection", (135, nobody, group, other, Vec::new())));
        forged.push(("duplicate detection with a nonce", (135, nobody, group, other, nonce.to_vec())));
        for src in [own, own_link] {
            forged.push(("an advertisement", (136, src, all, other, target(a.mac))));
            forged.push(("an advertisement without a MAC", (136, src, all, other, Vec::new())));
        }
    }
    for (kind, dst) in [(133, routers), (135, groups::solicited(b)), (136, all)] {
        let about = if kind == 136 { own } else { b };
        for options in [source(STRANGER), target(STRANGER)] {
            forged.push(("another's MAC", (kind, own, dst, about, options.clone())));
            // RFC 4861 section 4.6: a message may have any number of options.
            let many = [vec![nonce.to_vec(); 5].concat(), options.clone()].concat();
            forged.push(("another's MAC behind five options", (kind, own, dst, about, many)));
            let many = [vec![nonce.to_vec(); 20].concat(), options].concat();
            forged.push(("another's MAC behind twenty options", (kind, own, dst, about, many)));
        }
    }
    let reasons = &["spoofed-nd", "malformed"];
    let wraps: [&[Extension]; 4] = [&[], &[HopByHop], &[Destination, Destination], &[AtomicFragment]];
    for (what, (kind, src, dst, about, options)) in forged {
        for wrap in wraps {
            trial.refused(format!("{what}: {kind} from {src} about {about} in {wrap:?}"), reasons, |twin, mark| {
                let bad = extended(&message(kind, src, dst, about, &options, mark), wrap);
                let good = message(135, own, groups::solicited(b), b, &source(a.mac), mark);
                a.send_to(groups::mac(dst.into()), &twin.pick(bad, good))
            })?;
        }
    }
    // RFC 4862 and RFC 4861: what a host sends about its own addresses.
    for (what, kind, src, dst, about, options) in [
        ("its own detection", 135, nobody, groups::solicited(own), own, Vec::new()),
        ("its own detection with a nonce", 135, nobody, groups::solicited(own), own, nonce.to_vec()),
        ("its own link-local's", 135, nobody, groups::solicited(own_link), own_link, Vec::new()),
        ("a question", 135, own, groups::solicited(b), b, source(a.mac)),
        ("an advertisement", 136, own, all, own, target(a.mac)),
        ("an advertisement of the link-local", 136, own_link, all, own_link, target(a.mac)),
    ] {
        trial.passes(what, |mark| a.send_to(groups::BROADCAST, &message(kind, src, dst, about, &options, mark)))?;
    }
    trial.finish()?;
    // Only the router on the bridge hears who looks for routers.
    let mut trial = Trial::new(&lab.device, vec![Ear::stack(&lab.device.ns)?]);
    for (src, options) in [(own_link, source(a.mac)), (nobody, Vec::new())] {
        trial.passes(format!("a router solicitation of {src}"), |mark| {
            a.send_to(groups::BROADCAST, &message(133, src, routers, own, &options, mark))
        })?;
    }
    trial.finish()
}

/// RFC 5227 and RFC 4862 with real programs: a new container keeps its address, whatever another container sends.
#[test]
fn nobody_gives_an_address_up_for_a_forged_detection() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let target: Ipv6Addr = "fd00:5056:0:3::3".parse()?;
    ensure!(target == lab.b.v6, "{}", lab.b.v6);
    // Its duplicate address detection runs now, for as long as the kernel is configured to.
    lab.b.ns.ip("link set eth0 down")?;
    lab.b.ns.ip("-6 addr flush dev eth0")?;
    lab::sysctl(&lab.b.ns, "net/ipv6/conf/eth0/accept_dad", "1")?;
    lab::sysctl(&lab.b.ns, "net/ipv6/conf/eth0/dad_transmits", "3")?;
    lab.b.ns.ip("link set eth0 up")?;
    lab.b.ns.ip(&format!("-6 addr add {target}/64 dev eth0"))?;
    let detection =
        || message(135, Ipv6Addr::UNSPECIFIED, groups::solicited(target), target, &[14, 1, 9, 9, 9, 9, 9, 9], b"mark");
    let advertisement = message(136, lab.a.v6, "ff02::1".parse()?, target, &[], b"mark");
    let state = eventually(SOON, || {
        for packet in [detection(), advertisement.clone()] {
            a.send_to(groups::mac(groups::solicited(target).into()), &packet)?;
            a.send_to(lab.b.mac()?, &packet)?;
        }
        let said = lab.b.ns.ip("-6 -o addr show dev eth0 scope global")?;
        ensure!(said.contains("dadfailed") || !said.contains("tentative"), "{said}");
        Ok(said)
    })?;
    ensure!(!state.contains("dadfailed"), "b has given its address up: {state}");
    Ok(())
}

/// A packet with this mark in it.
type Marked = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// RFC 3376 section 6.6.2, RFC 3810 section 7.6.2: the sender with the lowest address becomes the querier. RFC 4541
/// section 2.1.1 and RFC 4286: a querier or a multicast router gets the traffic of all groups.
#[test]
fn a_container_becomes_neither_querier_nor_router_of_groups() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut trial = b_hears(&lab)?;
    let (own4, own6, own_link) = (lab.a.v4, lab.a.v6, link_local(a.mac));
    let v4 = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
    let mut forged: Vec<(String, Marked)> = Vec::new();
    for (what, dst, group, rest) in [
        ("IGMPv1 or 2 query", v4("224.0.0.1"), NOBODY, &[][..]),
        ("IGMPv3 query", v4("224.0.0.1"), NOBODY, &[2, 125, 0, 0]),
        ("IGMP query about a group", v4("239.1.2.3"), v4("239.1.2.3"), &[]),
        ("IGMP query to b", lab.b.v4, NOBODY, &[]),
        ("IGMP query to the gateway", v4("10.0.3.1"), NOBODY, &[]),
    ] {
        forged.push((
            what.to_owned(),
            Box::new(move |mark| groups::igmp(own4, dst, groups::IGMP_QUERY, group, &[rest, mark].concat())),
        ));
    }
    forged.push((
        "IGMP query without a router alert".to_owned(),
        Box::new(move |mark| {
            let mut message = [&[groups::IGMP_QUERY, 100, 0, 0, 0, 0, 0, 0][..], mark].concat();
            let check = frame::checksum(&[&message]);
            message[2..4].copy_from_slice(&check);
            frame::ipv4(own4, v4("224.0.0.1"), 2, &message)
        }),
    ));
    forged.push((
        "router of groups, IPv4".to_owned(),
        Box::new(move |mark| groups::igmp(own4, v4("224.0.0.106"), groups::IGMP_ROUTER, NOBODY, mark)),
    ));
    forged.push((
        "PIM hello, IPv4".to_owned(),
        Box::new(move |mark| frame::ipv4(own4, v4("224.0.0.13"), 103, &[&[0x20, 0, 0xdf, 0xff][..], mark].concat())),
    ));
    let wraps: [&[Extension]; 4] = [&[], &[RouterAlert], &[RouterAlert, Destination], &[AtomicFragment]];
    for src in [own6, own_link] {
        for (what, dst, group, rest) in [
            ("MLDv1 query", v6("ff02::1"), Ipv6Addr::UNSPECIFIED, &[][..]),
            ("MLDv2 query", v6("ff02::1"), Ipv6Addr::UNSPECIFIED, &[2, 125, 0, 0]),
            ("MLD query about a group", v6("ff02::1234"), v6("ff02::1234"), &[]),
            ("MLD query to b", lab.b.v6, Ipv6Addr::UNSPECIFIED, &[]),
        ] {
            for wrap in wraps {
                forged.push((
                    format!("{what} from {src} in {wrap:?}"),
                    Box::new(move |mark| {
                        extended(&groups::mld(src, dst, groups::MLD_QUERY, group, &[rest, mark].concat()), wrap)
                    }),
                ));
            }
        }
        forged.push((
            format!("router of groups, from {src}"),
            Box::new(move |mark| {
                extended(
                    &groups::mld(src, v6("ff02::6a"), groups::MLD_ROUTER, Ipv6Addr::UNSPECIFIED, mark),
                    &[RouterAlert],
                )
            }),
        ));
        forged.push((
            format!("PIM hello from {src}"),
            Box::new(move |mark| {
                let hello = [&[0x20, 0, 0, 0][..], mark].concat();
                frame::ip(src.into(), IpAddr::from(v6("ff02::d")), 103, &hello)
            }),
        ));
    }
    for (what, build) in forged {
        let to = destination(&build(b""));
        let mac = if to.is_multicast() { groups::mac(to) } else { lab.b.mac()? };
        trial.refused(what, &["rogue-querier", "malformed", "fragment-lost"], |twin, mark| {
            // To all hosts, as a member could: the bridge sends reports to routers only.
            let honest = Proto::Udp.packet((own4.into(), 9), ([224, 0, 0, 1].into(), PORT), mark);
            if twin.is_forged() {
                a.send_to(mac, &build(mark))
            } else {
                a.send_to(groups::mac([224, 0, 0, 1].into()), &honest)
            }
        })?;
    }
    trial.finish()?;
    let said = lab.device.ns.sh("bridge -d mdb show dev pvbr3")?;
    ensure!(!said.contains(lab.a.host_if()) || !said.contains("router ports"), "a is a router port: {said}");
    Ok(())
}

/// The destination of a packet.
fn destination(packet: &[u8]) -> IpAddr {
    if packet[0] >> 4 == 4 {
        return <[u8; 4]>::try_from(&packet[16..20]).expect("four bytes").into();
    }
    <[u8; 16]>::try_from(&packet[24..40]).expect("sixteen bytes").into()
}

/// How many groups the bridge knows at a port.
fn members(lab: &Lab, port: &str) -> Result<usize> {
    let said = lab.device.ns.sh("bridge mdb show dev pvbr3")?;
    Ok(said.lines().filter(|line| line.contains(&format!(" port {port} "))).count())
}

/// A bridge keeps at most `mcast_hash_max` groups (net/bridge/br_multicast.c). When the table is full it stops
/// snooping, and everybody gets everything.
#[test]
fn reports_do_not_fill_the_bridges_groups() -> Result<()> {
    const FLOOD: u16 = 6000;
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let report = |n: u16, family: usize| {
        let [high, low] = n.to_be_bytes();
        if family == 0 {
            let group = Ipv4Addr::new(239, 7, high, low);
            return (groups::mac(group.into()), groups::igmp(lab.a.v4, group, groups::IGMP_REPORT, group, &[]));
        }
        let group = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 7, n);
        let mld = groups::mld(link_local(a.mac), group, groups::MLD_REPORT, group, &[]);
        (groups::mac(group.into()), extended(&mld, &[RouterAlert]))
    };
    let send = |n, family| {
        let (mac, packet) = report(n, family);
        a.send_to(mac, &packet)
    };
    let before = members(&lab, lab.a.host_if())?;
    let grown = lab::grown(&lab.device, || (1..=4).try_for_each(|n| send(n, 0).and_then(|()| send(n, 1))))?;
    ensure!(lab::count(&grown, "group-limit") == 0, "a few reports are too many: {grown:?}");
    eventually(SOON, || {
        let known = members(&lab, lab.a.host_if())?;
        ensure!(known >= before + 8, "the bridge knows {known} groups of a, {before} before");
        Ok(())
    })?;
    for family in [0, 1] {
        let grown = lab::grown(&lab.device, || (5..FLOOD).try_for_each(|n| send(n, family)))?;
        ensure!(lab::count(&grown, "group-limit") > u64::from(FLOOD) / 2, "family {family}: {grown:?}");
    }
    let known = members(&lab, lab.a.host_if())?;
    ensure!(known < 1000, "the bridge knows {known} groups of a");
    // Another container can still join a group.
    let _joined = lab.b.ns.run(|| {
        let (four, six) = (std::net::UdpSocket::bind("0.0.0.0:0")?, std::net::UdpSocket::bind("[::]:0")?);
        let index = nix::net::if_::if_nametoindex("eth0")?;
        four.join_multicast_v4(&Ipv4Addr::new(239, 9, 9, 9), &lab.b.v4)?;
        six.join_multicast_v6(&"ff15::9:9".parse()?, index)?;
        Ok((four, six))
    })?;
    eventually(SOON, || {
        let said = lab.device.ns.sh("bridge mdb show dev pvbr3")?;
        let of_b = |group: &str| said.lines().any(|l| l.contains(lab.b.host_if()) && l.contains(group));
        ensure!(of_b("239.9.9.9") && of_b("ff15::9:9"), "b is not in its groups");
        Ok(())
    })
}
