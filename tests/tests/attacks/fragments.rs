//! Fragments, and headers that are not where they seem to be.

use crate::lab::{self, Both, Lab, PORT, PUBLISHED, Sender, WEB, gateway, host, uplink};
use crate::trial::{Proto, Trial, Twin};
use anyhow::{Context, Result, ensure};
use harness::ear::Ear;
use harness::wrap::Extension::{Destination, HopByHop};
use harness::wrap::{Extension, extended, fragment, fragments, padded};
use harness::{Namespace, SOON, eventually, frame};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv6Addr};

/// What a first fragment without its whole header is dropped as.
const CUT: &[&str] = &["malformed"];

/// A way on which the packets of `from` are allowed.
struct Way<'a> {
    what: &'static str,
    from: &'a Sender,
    /// The MAC that frames go to.
    mac: [u8; 6],
    src: Both,
    dst: Both,
    port: u16,
}

impl Way<'_> {
    /// A packet with `mark` behind 40 bytes, so that it is in the last piece of whatever it is cut into.
    fn packet(&self, proto: Proto, family: usize, sport: u16, mark: &[u8]) -> Vec<u8> {
        let payload = [&[0x55; 40][..], mark, &[0x55; 7]].concat();
        proto.packet((self.src[family], sport), (self.dst[family], self.port), &payload)
    }

    fn send(&self, packets: &[Vec<u8>]) -> Result<()> {
        packets.iter().try_for_each(|packet| self.from.send_to(self.mac, packet))
    }
}

/// Who sends in the lab.
struct Senders {
    a: Sender,
    c: Sender,
    out: Sender,
    lan: Sender,
}

const LAN: [&str; 2] = ["10.0.3.200/24", "fd00:5056:0:3::c8/64"];

/// `management` is routed and may all on the device, `internal` nothing; outside reaches `c` by a rule, and `a` by
/// published ports. The other host outside is denied everything.
fn config(config: &mut Value) {
    let pools = &mut config["network"]["pools"];
    pools["internal"]["host_access"] = json!("none");
    pools["management"]["host_access"] = json!("all");
    config["network"]["policies"] = json!([
        {"from": {"cidr": "192.0.2.9/32"}, "to": {"pool": "management"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:1::9/128"}, "to": {"pool": "management"}, "action": "allow"},
        {"from": {"cidr": "192.0.2.66/32"}, "to": {"pool": "management"}, "action": "deny"},
        {"from": {"cidr": "2001:db8:1::66/128"}, "to": {"pool": "management"}, "action": "deny"},
        {"from": {"container": "a"}, "to": {"container": "b"}, "ports": ["tcp/7001", "udp/7001"], "action": "deny"},
    ]);
}

fn lab_with_lan() -> Result<(Lab, Namespace)> {
    let prepare = |device: &harness::Device| {
        lab::forwarding(device)?;
        lab::lan_port(device, "pvbr3", "lan0", &LAN)
    };
    let (lab, lan) = lab::prepared(config, prepare, &["8080:80/tcp", "8080:80/udp"])?;
    // What is sent there does not wait for an answer.
    lab.device.ns.ping("192.0.2.9", 1)?;
    eventually(SOON, || lab.device.ns.ping("2001:db8:1::9", 1))?;
    Ok((lab, lan))
}

fn senders(lab: &Lab, lan: &Namespace) -> Result<Senders> {
    Ok(Senders {
        a: lab.sender(&lab.a.ns, "pvbr3")?,
        c: lab.sender(&lab.c.ns, "pvbr4")?,
        out: lab.outsider()?,
        lan: lab.sender(lan, "pvbr3")?,
    })
}

fn ways<'a>(lab: &Lab, all: &'a Senders) -> Result<Vec<Way<'a>>> {
    let lan = lab::both("10.0.3.200", "fd00:5056:0:3::c8");
    let (a, b, c) = (lab.a.addresses(), lab.b.addresses(), lab.c.addresses());
    let way = |what, from: &'a Sender, src, dst, port| Way { what, from, mac: from.router, src, dst, port };
    Ok(vec![
        Way { mac: lab.b.mac()?, ..way("between containers", &all.a, a, b, PORT) },
        way("to the device", &all.c, c, gateway(4), PORT),
        way("to outside", &all.a, a, host(), PORT),
        way("routed to outside", &all.c, c, host(), PORT),
        way("to a published port", &all.out, host(), uplink(), PUBLISHED),
        way("from outside, routed", &all.out, host(), c, WEB),
        Way { mac: lab.a.mac()?, ..way("from a LAN port", &all.lan, lan, a, WEB) },
    ])
}

fn ears(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![
        Ear::stack(&lab.device.ns)?,
        Ear::link(&lab.a.ns, "eth0")?,
        Ear::link(&lab.b.ns, "eth0")?,
        Ear::link(&lab.c.ns, "eth0")?,
        Ear::link(&lab.out, "eth0")?,
    ])
}

/// Where a packet of this kind may be cut: its headers stay whole.
fn well_cut(family: usize, packet: &[u8], id: u32) -> Vec<Vec<u8>> {
    let starts: &[usize] = if family == 0 { &[0, 24, 48] } else { &[0, 32, 48] };
    fragments(packet, id, starts)
}

/// Cuts through a header, and what stands behind the end that the first piece says it has.
fn bad_cuts(proto: Proto, family: usize, packet: &[u8], id: u32) -> Vec<(String, Vec<Vec<u8>>)> {
    // What a TCP header would go on with: an acknowledgement.
    let decoy = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut cuts = Vec::new();
    if proto == Proto::Syn {
        for at in [8, 16] {
            let pieces = fragments(packet, id, &[0, at]);
            let hidden = padded(&pieces[0], &decoy[at - 8..]);
            cuts.push((format!("cut at {at}"), pieces.clone()));
            cuts.push((format!("cut at {at}, with a decoy behind"), vec![hidden, pieces[1].clone()]));
        }
    }
    if family == 1 {
        // RFC 7112: the whole chain of headers belongs into the first one.
        for headers in [&[Destination][..], &[Destination, Destination]] {
            let long = extended(packet, headers);
            let pieces = fragments(&long, id, &[0, 8]);
            let hidden = padded(&pieces[0], &decoy);
            cuts.push((format!("cut behind the first of {headers:?}"), pieces.clone()));
            cuts.push((format!("cut behind the first of {headers:?}, with a decoy"), vec![hidden, pieces[1].clone()]));
        }
        // A header that says it is longer than the piece.
        let mut long = extended(packet, &[Destination]);
        long.splice(48..48, [1, 6, 0, 0, 0, 0, 0, 0]);
        long[41] = 1;
        let length = u16::try_from(long.len() - 40).expect("short").to_be_bytes();
        long[4..6].copy_from_slice(&length);
        let pieces = fragments(&long, id, &[0, 8]);
        cuts.push(("cut within an option header".to_owned(), pieces.clone()));
        cuts.push((
            "cut within an option header, with a decoy".to_owned(),
            vec![padded(&pieces[0], &decoy), pieces[1].clone()],
        ));
    }
    cuts
}

/// RFC 1858, RFC 3128, RFC 7112: the first fragment has the whole transport header, within its own length.
#[test]
fn a_header_in_two_pieces_gets_nowhere() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let (mut port, mut id) = (10_000, 100);
    for way in ways(&lab, &senders)? {
        for family in [0, 1] {
            for proto in Proto::ALL {
                if way.port == PUBLISHED && proto == Proto::Echo {
                    continue;
                }
                let sample = way.packet(proto, family, 1, b"");
                for n in 0..bad_cuts(proto, family, &sample, 0).len() {
                    let what = bad_cuts(proto, family, &sample, 0)[n].0.clone();
                    (port, id) = (port + 1, id + 2);
                    trial.refused(
                        format!("{}, {proto:?} to {}: {what}", way.what, way.dst[family]),
                        CUT,
                        |twin, mark| {
                            let packet = way.packet(proto, family, port, mark);
                            let bad = bad_cuts(proto, family, &packet, id)[n].1.clone();
                            way.send(&twin.pick(bad, well_cut(family, &packet, id + 1)))
                        },
                    )?;
                }
            }
        }
    }
    trial.finish()
}

/// `host_access: none` is asked by whole headers: the connection that a SYN in two pieces opened was a real one.
#[test]
fn a_syn_in_two_pieces_does_not_get_past_host_access() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let (mut port, mut id) = (10_000, 100);
    for family in [0, 1] {
        let forged = |dst| Way {
            what: "none",
            from: &senders.a,
            mac: senders.a.router,
            src: lab.a.addresses(),
            dst,
            port: PORT,
        };
        let honest = Way { from: &senders.c, mac: senders.c.router, src: lab.c.addresses(), ..forged(gateway(4)) };
        for (whom, dst) in [("the gateway", gateway(3)), ("the uplink's address", uplink())] {
            let way = forged(dst);
            let sample = way.packet(Proto::Syn, family, 1, b"");
            for n in 0..bad_cuts(Proto::Syn, family, &sample, 0).len() {
                let what = bad_cuts(Proto::Syn, family, &sample, 0)[n].0.clone();
                (port, id) = (port + 1, id + 2);
                trial.refused(format!("to {whom} at {}: {what}", dst[family]), CUT, |twin, mark| {
                    let cut =
                        |way: &Way<'_>| bad_cuts(Proto::Syn, family, &way.packet(Proto::Syn, family, port, mark), id);
                    match twin {
                        Twin::Forged => way.send(&cut(&way)[n].1),
                        Twin::Honest => {
                            let packet = honest.packet(Proto::Syn, family, port, mark);
                            honest.send(&well_cut(family, &packet, id + 1))
                        }
                    }
                })?;
            }
            // Cut as it should be, it is refused for what it is, with all of its pieces.
            (port, id) = (port + 1, id + 2);
            trial.refused(format!("to {whom} at {}: well cut", dst[family]), &["host-access"], |twin, mark| {
                let way = twin.pick(&way, &honest);
                way.send(&well_cut(family, &way.packet(Proto::Syn, family, port, mark), twin.pick(id, id + 1)))
            })?;
        }
    }
    trial.finish()
}

/// RFC 1858 section 2.2: a later fragment decides nothing by itself, nor does the one before it when that was refused.
#[test]
fn a_later_fragment_without_its_first_gets_nowhere() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let (mut port, mut id) = (10_000, 100);
    for way in ways(&lab, &senders)? {
        for family in [0, 1] {
            for proto in Proto::ALL {
                if way.port == PUBLISHED && proto == Proto::Echo {
                    continue;
                }
                (port, id) = (port + 1, id + 2);
                // One to a published port may be the device's own: its stack waits for the first one in vain.
                let reasons: &[&str] = if way.port == PUBLISHED { &[] } else { &["fragment-lost"] };
                trial.refused(format!("{}, {proto:?} to {}", way.what, way.dst[family]), reasons, |twin, mark| {
                    let pieces = well_cut(family, &way.packet(proto, family, port, mark), twin.pick(id, id + 1));
                    way.send(twin.pick(&pieces[1..], &pieces))
                })?;
            }
        }
    }
    // After one that a rule denies, and after one of a forged source.
    for family in [0, 1] {
        for proto in [Proto::Syn, Proto::Udp] {
            (port, id) = (port + 1, id + 2);
            let (src, dst) = (lab.a.addresses()[family], lab.b.addresses()[family]);
            let to = |dport, mark: &[u8]| {
                let payload = [&[0x55; 40][..], mark, &[0x55; 7]].concat();
                well_cut(family, &proto.packet((src, port), (dst, dport), &payload), id + u32::from(dport == PORT))
            };
            let way = Way { what: "", from: &senders.a, mac: lab.b.mac()?, src: [src; 2], dst: [dst; 2], port: 0 };
            trial.refused(format!("after a denied one, {proto:?} to {dst}"), &["policy-denied"], |twin, mark| {
                way.send(&to(twin.pick(7001, PORT), mark))
            })?;
        }
    }
    trial.finish()
}

/// What a stack has been given to put together.
fn reassembled(ns: &Namespace) -> Result<u64> {
    ns.run(|| {
        let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6")?;
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6ReasmReqds")).context("Ip6ReasmReqds")?;
        let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines =
            v4.lines().filter_map(|line| line.strip_prefix("Ip: ").map(|l| l.split(' ').collect::<Vec<_>>()));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let at = names.iter().position(|name| *name == "ReasmReqds").context("ReasmReqds")?;
        Ok(values[at].parse::<u64>()? + v6.trim().parse::<u64>()?)
    })
}

/// The device's memory for reassembly is one for all; 20 of 20 got there.
#[test]
fn later_fragments_do_not_fill_the_devices_reassembly() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let groups = |n: u8| {
        [
            lab::both(&format!("10.0.{n}.255"), "ff02::1"),
            lab::both("224.0.0.1", "ff02::2"),
            lab::both("255.255.255.255", &format!("fd00:5056:0:{n}::")),
        ]
    };
    let everywhere = |n: u8| [gateway(n), uplink()].into_iter().chain(groups(n));
    for (who, from, src, n, may) in [
        ("a, that may nothing", &senders.a, lab.a.addresses(), 3, false),
        ("c, that may all", &senders.c, lab.c.addresses(), 4, true),
    ] {
        for dst in everywhere(n) {
            for family in [0, 1] {
                let to = dst[family];
                let mac = if dst == gateway(n) || dst == uplink() || to.to_string().starts_with("fd00") {
                    from.router
                } else {
                    harness::groups::mac(to)
                };
                let way = Way { what: who, from, mac, src, dst, port: PORT };
                let cut = |id| well_cut(family, &way.packet(Proto::Udp, family, 999, b""), id);
                let before = reassembled(&lab.device.ns)?;
                let grown = lab::grown(&lab.device, || (1..=20).try_for_each(|id| way.send(&cut(1000 + id)[1..])))?;
                let reached = reassembled(&lab.device.ns)? - before;
                ensure!(reached == 0, "{who} to {to}: {reached} of 40 are in the device's reassembly: {grown:?}");
                ensure!(
                    lab::count(&grown, "fragment-lost") + lab::count(&grown, "host-access") >= 20,
                    "{who} to {to}: {grown:?}"
                );
                // With their first ones they get there, where they may.
                if may && (dst == gateway(n) || dst == uplink()) {
                    way.send(&cut(2000))?;
                    eventually(SOON, || {
                        ensure!(reassembled(&lab.device.ns)? >= before + 3, "{who} to {to}: honest ones do not arrive");
                        Ok(())
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// What no program can read, past rules that deny the sender everything: where the kernel forwards, and at a bridge.
#[test]
fn what_cannot_be_read_does_not_get_into_a_container() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let denied = lab::both("192.0.2.66", "2001:db8:1::66");
    let lan_own = lab::both("10.0.3.200", "fd00:5056:0:3::c8");
    let (a, c) = (lab.a.addresses(), lab.c.addresses());
    let ways = [
        ("from outside", &senders.out, senders.out.router, denied, host(), c),
        ("from a LAN port", &senders.lan, lab.a.mac()?, lan_own, lan_own, a),
    ];
    for (way, from, mac, forged, honest, dst) in ways {
        for (what, family, unreadable) in unreadable() {
            trial.refused(format!("{way}: {what}"), CUT, |twin, mark| {
                let good = Proto::Udp.packet((honest[family], 9), (dst[family], WEB), mark);
                let bad = || unreadable((forged[family], 9), (dst[family], WEB), mark);
                let packets = if twin.is_forged() { bad() } else { vec![good] };
                packets.iter().try_for_each(|packet| from.send_to(mac, packet))
            })?;
        }
    }
    trial.finish()
}

type Builder = Box<dyn Fn((IpAddr, u16), (IpAddr, u16), &[u8]) -> Vec<Vec<u8>>>;

/// Packets with a header that is not there, or behind more than is looked through.
fn unreadable() -> Vec<(&'static str, usize, Builder)> {
    let chain = |headers: &'static [Extension]| -> Builder {
        Box::new(move |src, dst, mark| vec![extended(&frame::udp(src, dst, mark), headers)])
    };
    let tiny: fn() -> Builder =
        || Box::new(|src, dst, mark| fragments(&frame::tcp(src, dst, 2, &[mark, mark].concat()), 7, &[0, 8]));
    // The payload of the IP packet ends within the transport header; the mark is behind it.
    let short = |proto: u8, bytes: usize| -> Builder {
        Box::new(move |src: (IpAddr, u16), dst: (IpAddr, u16), mark| {
            let header = [src.1.to_be_bytes(), dst.1.to_be_bytes(), [0; 2], [0; 2]].concat();
            vec![padded(&frame::ip(src.0, dst.0, proto, &header[..bytes]), mark)]
        })
    };
    vec![
        ("seven options", 1, chain(&[Destination; 7])),
        ("twelve options", 1, chain(&[Destination; 12])),
        (
            "seven options, the first hop by hop",
            1,
            chain(&[HopByHop, Destination, Destination, Destination, Destination, Destination, Destination]),
        ),
        ("a first fragment of eight bytes", 0, tiny()),
        ("a first fragment of eight bytes, IPv6", 1, tiny()),
        ("half a UDP header", 0, short(17, 4)),
        ("half a UDP header, IPv6", 1, short(17, 4)),
        ("no UDP header", 0, short(17, 0)),
        ("no UDP header, IPv6", 1, short(17, 0)),
        ("a third of a TCP header", 0, short(6, 8)),
        ("a third of a TCP header, IPv6", 1, short(6, 8)),
        ("half an ICMP header", 0, short(1, 4)),
        ("half an ICMP header, IPv6", 1, short(58, 4)),
        ("a TCP header that is longer than the packet", 0, longer()),
        ("a TCP header that is longer than the packet, IPv6", 1, longer()),
    ]
}

/// Its data offset leads behind the packet's end.
fn longer() -> Builder {
    Box::new(|src, dst, mark| {
        let mut packet = frame::tcp(src, dst, 2, b"");
        let at = packet.len() - 20 + 12;
        packet[at] = 15 << 4;
        vec![padded(&packet, mark)]
    })
}

/// RFC 7113: bytes behind the payload's end are no header; a first fragment that seems to be an echo is not the
/// advertisement's.
#[test]
fn a_decoy_behind_the_end_hides_no_advertisement() -> Result<()> {
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.b.ns, "eth0")?, Ear::link(&lan, "eth0")?]);
    let own = lab::link_local(lab.a.mac()?);
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let group = harness::groups::mac(all_nodes.into());
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let header = |payload: &[u8], next| {
        let mut packet = frame::ipv6_hops(own, all_nodes, next, 255, payload);
        packet.truncate(40);
        packet
    };
    let advertisement = |kind: u8, mark: &[u8]| {
        let body = if kind == 134 { 16 } else { 40 };
        let mut message = vec![0; body];
        message[0] = kind;
        let packet = frame::icmp(own.into(), all_nodes.into(), &[&message, &[1, 3, 0, 0][..], mark].concat());
        packet[40..].to_vec()
    };
    for kind in [134, 137] {
        type Pieces<'a> = Box<dyn Fn(&[u8]) -> Vec<Vec<u8>> + 'a>;
        let attacks: [(&str, Pieces<'_>); 4] = [
            (
                "in the second piece, behind half an option header",
                Box::new(|mark| {
                    let ip = header(&[], 60);
                    let options = [58, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    let first = padded(&fragment(&ip, &options[..8], 77, 0, true), &[&[0; 8][..], &echo].concat());
                    let rest = [&options[8..], &advertisement(kind, mark)].concat();
                    vec![first, fragment(&ip, &rest, 77, 8, false)]
                }),
            ),
            (
                "in the second piece, behind an option header",
                Box::new(|mark| {
                    let ip = header(&[], 60);
                    let first = padded(&fragment(&ip, &[58, 0, 1, 4, 0, 0, 0, 0], 78, 0, true), &echo);
                    vec![first, fragment(&ip, &advertisement(kind, mark), 78, 8, false)]
                }),
            ),
            (
                "the first piece has nothing of its own",
                Box::new(|mark| {
                    let ip = header(&[], 58);
                    let first = padded(&fragment(&ip, &[], 79, 0, true), &echo);
                    vec![first, fragment(&ip, &advertisement(kind, mark), 79, 0, false)]
                }),
            ),
            (
                "behind the end",
                Box::new(|mark| {
                    let packet = frame::ipv6_hops(own, all_nodes, 60, 255, &[58, 0, 1, 4, 0, 0, 0, 0]);
                    vec![padded(&packet, &[&echo[..], &advertisement(kind, mark)].concat())]
                }),
            ),
        ];
        for (what, pieces) in attacks {
            trial.refused(format!("{kind} {what}"), &["malformed", "rogue-ra"], |twin, mark| {
                let honest = vec![frame::udp((own.into(), 5353), (all_nodes.into(), 5353), mark)];
                let packets = if twin.is_forged() { pieces(mark) } else { honest };
                packets.iter().try_for_each(|packet| senders.a.send_to(group, packet))
            })?;
        }
    }
    trial.finish()
}

/// The kernel's own table of fragments is kept by sender; one that all share would be everybody's at once.
#[test]
fn a_flood_of_fragments_loses_nobody_elses() -> Result<()> {
    const FLOOD: u32 = 4_000;
    let (lab, lan) = lab_with_lan()?;
    let senders = senders(&lab, &lan)?;
    let b = lab.sender(&lab.b.ns, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let (a_addresses, b_addresses) = (lab.a.addresses(), lab.b.addresses());
    let way = |what, from, mac, src, dst, port| Way { what, from, mac, src, dst, port };
    let lan_own = lab::both("10.0.3.200", "fd00:5056:0:3::c8");
    let floods = [
        way("a, to outside", &senders.a, senders.a.router, a_addresses, host(), PORT),
        way("a, as b", &senders.a, senders.a.router, b_addresses, host(), PORT),
        way("a, to the device", &senders.a, senders.a.router, a_addresses, gateway(3), PORT),
        way("a, to b", &senders.a, lab.b.mac()?, a_addresses, b_addresses, PORT),
        way("outside, to a published port", &senders.out, senders.out.router, host(), uplink(), PUBLISHED),
        way("outside, routed", &senders.out, senders.out.router, host(), lab.c.addresses(), WEB),
        way("a LAN port", &senders.lan, lab.a.mac()?, lan_own, a_addresses, WEB),
        way("a LAN port, as b", &senders.lan, lab.a.mac()?, b_addresses, a_addresses, WEB),
    ];
    // One at a time of each link: a share has no room for all that a link could have on its way.
    let others = [
        way("b to outside", &b, b.router, b_addresses, host(), PORT),
        way("b to a", &b, lab.a.mac()?, b_addresses, a_addresses, PORT),
    ];
    let third = way("c to the device", &senders.c, senders.c.router, lab.c.addresses(), gateway(4), PORT);
    let mut id: u16 = 1;
    for flood in &floods {
        for (honest, family) in others.iter().flat_map(|way| [(way, 0), (way, 1)]) {
            id += 1;
            let ways = [honest, &third];
            let what = ways.map(|way| format!("{}, family {family}, after a flood of {}", way.what, flood.what));
            trial.all_pass(&what, |marks| {
                let all: Vec<_> = ways
                    .iter()
                    .zip(marks)
                    .map(|(way, mark)| {
                        (way, well_cut(family, &way.packet(Proto::Udp, family, 20_000 + id, mark), id.into()))
                    })
                    .collect();
                all.iter().try_for_each(|(way, pieces)| way.send(&pieces[..1]))?;
                // First ones and later ones, of ever new packets.
                let sample = flood.packet(Proto::Udp, family, 9, b"flood");
                (0..FLOOD / 2).try_for_each(|n| flood.send(&well_cut(family, &sample, 100 + n)[..2]))?;
                all.iter().try_for_each(|(way, pieces)| way.send(&pieces[1..]))
            })?;
        }
    }
    trial.finish()
}
