//! Packets that no program can read, and bytes that only look like a header.

use crate::fragments::{CUT, ears, lab_with_lan, senders};
use crate::lab::{self, WEB, host};
use crate::trial::{Proto, Trial};
use anyhow::Result;
use harness::ear::Ear;
use harness::frame;
use harness::wrap::Extension::{Destination, HopByHop};
use harness::wrap::{Extension, extended, fragment, fragments, padded};
use std::net::{IpAddr, Ipv6Addr};

/// Packets that no program can read do not pass rules that deny everything, neither when forwarded nor at a bridge.
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

/// Packets with a missing header, or with more headers than pv-net reads.
fn unreadable() -> Vec<(&'static str, usize, Builder)> {
    let chain = |headers: &'static [Extension]| -> Builder {
        Box::new(move |src, dst, mark| vec![extended(&frame::udp(src, dst, mark), headers)])
    };
    let tiny: fn() -> Builder =
        || Box::new(|src, dst, mark| fragments(&frame::tcp(src, dst, 2, &[mark, mark].concat()), 7, &[0, 8]));
    // The IP payload ends inside the transport header; the mark follows behind it.
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

/// A TCP header whose data offset points behind the packet's end.
fn longer() -> Builder {
    Box::new(|src, dst, mark| {
        let mut packet = frame::tcp(src, dst, 2, b"");
        let at = packet.len() - 20 + 12;
        packet[at] = 15 << 4;
        vec![padded(&packet, mark)]
    })
}

/// RFC 7113: bytes behind the payload's end are no header. A decoy there must not make an advertisement look like an
/// echo.
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
