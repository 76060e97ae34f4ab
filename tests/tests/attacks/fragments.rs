//! Fragments, and headers that are not where they seem to be.

use crate::lab::{self, Both, Lab, PORT, PUBLISHED, Sender, WEB, gateway, host, uplink};
use crate::trial::{Proto, Trial, Twin};
use anyhow::{Context, Result, ensure};
use harness::ear::Ear;
use harness::wrap::Extension::Destination;
use harness::wrap::{extended, fragments, padded};
use harness::{Namespace, SOON, eventually};
use serde_json::{Value, json};

/// The drop reason of a first fragment without its whole header.
pub const CUT: &[&str] = &["malformed"];

/// A path on which packets of `from` are allowed.
pub struct Way<'a> {
    what: &'static str,
    from: &'a Sender,
    /// The MAC that frames go to.
    mac: [u8; 6],
    src: Both,
    dst: Both,
    port: u16,
}

impl Way<'_> {
    /// A packet with `mark` behind 40 bytes, so that the mark is in the last fragment, wherever the packet is cut.
    fn packet(&self, proto: Proto, family: usize, sport: u16, mark: &[u8]) -> Vec<u8> {
        let payload = [&[0x55; 40][..], mark, &[0x55; 7]].concat();
        proto.packet((self.src[family], sport), (self.dst[family], self.port), &payload)
    }

    fn send(&self, packets: &[Vec<u8>]) -> Result<()> {
        packets.iter().try_for_each(|packet| self.from.send_to(self.mac, packet))
    }
}

/// The senders in the lab.
pub struct Senders {
    pub a: Sender,
    pub c: Sender,
    pub out: Sender,
    pub lan: Sender,
}

const LAN: [&str; 2] = ["10.0.3.200/24", "fd00:5056:0:3::c8/64"];

/// `management` is routed and may reach everything on the device, `internal` nothing. The host outside reaches `c` by a
/// rule, and `a` by published ports. The other host outside is denied everything.
pub fn config(config: &mut Value) {
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

pub fn lab_with_lan() -> Result<(Lab, Namespace)> {
    let prepare = |device: &harness::Device| {
        lab::forwarding(device)?;
        lab::lan_port(device, "pvbr3", "lan0", &LAN)
    };
    let (lab, lan) = lab::prepared(config, prepare, &["8080:80/tcp", "8080:80/udp"])?;
    // The neighbour entry exists from now on, so packets to the host do not wait for it.
    lab.device.ns.ping("192.0.2.9", 1)?;
    eventually(SOON, || lab.device.ns.ping("2001:db8:1::9", 1))?;
    Ok((lab, lan))
}

pub fn senders(lab: &Lab, lan: &Namespace) -> Result<Senders> {
    Ok(Senders {
        a: lab.sender(&lab.a.ns, "pvbr3")?,
        c: lab.sender(&lab.c.ns, "pvbr4")?,
        out: lab.outsider()?,
        lan: lab.sender(lan, "pvbr3")?,
    })
}

pub fn ways<'a>(lab: &Lab, all: &'a Senders) -> Result<Vec<Way<'a>>> {
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

pub fn ears(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![
        Ear::stack(&lab.device.ns)?,
        Ear::link(&lab.a.ns, "eth0")?,
        Ear::link(&lab.b.ns, "eth0")?,
        Ear::link(&lab.c.ns, "eth0")?,
        Ear::link(&lab.out, "eth0")?,
    ])
}

/// The fragments of a packet that is cut where its headers stay whole.
fn well_cut(family: usize, packet: &[u8], id: u32) -> Vec<Vec<u8>> {
    let starts: &[usize] = if family == 0 { &[0, 24, 48] } else { &[0, 32, 48] };
    fragments(packet, id, starts)
}

/// Fragments that are cut inside a header, or with a decoy behind the end that the first one states.
fn bad_cuts(proto: Proto, family: usize, packet: &[u8], id: u32) -> Vec<(String, Vec<Vec<u8>>)> {
    // The rest of a TCP header, as the data behind the end: an acknowledgement.
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
        // RFC 7112: the first fragment must contain the whole chain of headers.
        for headers in [&[Destination][..], &[Destination, Destination]] {
            let long = extended(packet, headers);
            let pieces = fragments(&long, id, &[0, 8]);
            let hidden = padded(&pieces[0], &decoy);
            cuts.push((format!("cut behind the first of {headers:?}"), pieces.clone()));
            cuts.push((format!("cut behind the first of {headers:?}, with a decoy"), vec![hidden, pieces[1].clone()]));
        }
        // An extension header whose length is beyond the fragment.
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

/// RFC 1858, RFC 3128, RFC 7112: the first fragment must contain the whole transport header within its length.
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

/// `host_access: none` is decided by whole headers. Formerly a SYN in two fragments opened a real connection.
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
            // With whole headers the SYN is refused because of `host_access`, with all of its fragments.
            (port, id) = (port + 1, id + 2);
            trial.refused(format!("to {whom} at {}: well cut", dst[family]), &["host-access"], |twin, mark| {
                let way = twin.pick(&way, &honest);
                way.send(&well_cut(family, &way.packet(Proto::Syn, family, port, mark), twin.pick(id, id + 1)))
            })?;
        }
    }
    trial.finish()
}

/// RFC 1858 section 2.2: a later fragment without an allowed first fragment is dropped.
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
                // A fragment to a published port may be meant for the device itself: its stack waits in vain for the
                // first one.
                let reasons: &[&str] = if way.port == PUBLISHED { &[] } else { &["fragment-lost"] };
                trial.refused(format!("{}, {proto:?} to {}", way.what, way.dst[family]), reasons, |twin, mark| {
                    let pieces = well_cut(family, &way.packet(proto, family, port, mark), twin.pick(id, id + 1));
                    way.send(twin.pick(&pieces[1..], &pieces))
                })?;
            }
        }
    }
    // Later fragments of a first one that a rule denies, and of one with a forged source.
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

/// How many fragments a namespace's stack was given for reassembly.
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

/// All senders share the device's memory for reassembly. Formerly 20 of 20 later fragments without a first one got
/// there.
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
                // With their first fragments they reach the stack, where the sender may.
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

/// The kernel keeps fragments by sender. A table of pv-net that all share must not be filled by one sender.
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
    // One after the other on each link, since a share has no room for all that a link could send at once.
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
                // First fragments and later ones, each of a new packet.
                let sample = flood.packet(Proto::Udp, family, 9, b"flood");
                (0..FLOOD / 2).try_for_each(|n| flood.send(&well_cut(family, &sample, 100 + n)[..2]))?;
                all.iter().try_for_each(|(way, pieces)| way.send(&pieces[1..]))
            })?;
        }
    }
    trial.finish()
}
