//! The answers to a refused sender, byte by byte: RST as in RFC 9293, ICMP and ICMPv6 errors that quote the packet.

use super::lab::{FAMILIES, Family, Host, Lab, REDIRECT, SHOT, TCP, between, lab};
use anyhow::{Result, ensure};
use harness::frame;
use std::net::IpAddr;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// The sequence number of `harness::frame::tcp`.
const SEQUENCE: u32 = 1000;
const ACKNOWLEDGED: u32 = 2000;

/// The frame of an answer to `to`: from the host that was addressed, or from the gateway.
fn back(to: &Host, from_mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 6 { frame::IPV6 } else { frame::IPV4 };
    frame::ethernet(from_mac, to.mac, kind, packet)
}

/// Whether the frames are alike except for fields that the sender may choose: identification, type of service, flow
/// label.
fn same(got: &[u8], want: &[u8]) -> bool {
    let mut want = want.to_vec();
    if want.len() > 34 && want[12..14] == [8, 0] && got.len() == want.len() {
        want[18..20].copy_from_slice(&got[18..20]);
        super::fix_ipv4(&mut want);
    }
    got == want
}

fn answered(lab: &mut Lab, what: &str, from: &Host, frame: &[u8], want: &[u8], reason: &str) -> Result<()> {
    let (ran, grown) = lab.counted(from, frame)?;
    // A packet that policy allows belongs to a flow, though this packet is answered instead of forwarded.
    let of_flow = |name: &&str| matches!(*name, "slow-path" | "fast-path" | "flows-created");
    let grown: Vec<_> = grown.into_iter().filter(|name| !of_flow(name)).collect();
    ensure!(ran.verdict == REDIRECT && grown == ["answered", reason], "{what}: verdict {}, {grown:?}", ran.verdict);
    ensure!(same(&ran.frame, want), "{what}:\n{:02x?} is not\n{want:02x?}", ran.frame);
    Ok(())
}

/// A reset with this sequence number, acknowledgement and flags (RFC 9293 section 3.10.7.1), and no window.
fn reset(src: (IpAddr, u16), dst: (IpAddr, u16), seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut packet = frame::tcp(src, dst, flags, b"");
    let at = packet.len() - 20;
    packet[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
    packet[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
    packet[at + 14..at + 18].copy_from_slice(&[0; 4]);
    let length = 20u32.to_be_bytes();
    let pseudo = match (src.0, dst.0) {
        (IpAddr::V4(s), IpAddr::V4(d)) => [&s.octets()[..], &d.octets(), &length, &[0, 0, 0, TCP]].concat(),
        (IpAddr::V6(s), IpAddr::V6(d)) => [&s.octets()[..], &d.octets(), &length, &[0, 0, 0, TCP]].concat(),
        _ => unreachable!("one family"),
    };
    let check = frame::checksum(&[&pseudo, &packet[at..]]);
    packet[at + 16..at + 18].copy_from_slice(&check);
    packet
}

#[test]
fn a_refused_segment_is_reset() -> Result<()> {
    lab(|lab| {
        let (a, c) = (lab.a, lab.c);
        for family in FAMILIES {
            let (client, server) = ((a.ip(family), 4000), (c.ip(family), 80));
            for (what, flags, data, seq, ack, answer) in [
                ("SYN", SYN, &b""[..], 0, SEQUENCE + 1, RST | ACK),
                ("SYN with data (RFC 7413)", SYN, b"hello", 0, SEQUENCE + 6, RST | ACK),
                ("data", ACK, b"hello", ACKNOWLEDGED, 0, RST),
                ("SYN and ACK", SYN | ACK, b"", ACKNOWLEDGED, 0, RST),
                ("FIN and ACK", FIN | ACK, b"", ACKNOWLEDGED, 0, RST),
                ("FIN", FIN, b"bye", 0, SEQUENCE + 4, RST | ACK),
                ("no flags", 0, b"", 0, SEQUENCE, RST | ACK),
            ] {
                let frame = between(&a, a.gateway_mac, &frame::tcp(client, server, flags, data));
                let want = back(&a, a.gateway_mac, &reset(server, client, seq, ack, answer));
                answered(lab, &format!("{family:?} {what}"), &a, &frame, &want, "pool-isolated")?;
                // A frame may be longer than its packet: Ethernet pads short ones.
                let padded = [&frame[..], &[0; 6]].concat();
                answered(lab, &format!("{family:?} {what}, padded"), &a, &padded, &want, "pool-isolated")?;
            }
            let frame = between(&a, a.gateway_mac, &frame::tcp(client, server, RST, b""));
            lab.drops("a reset is not answered", &a, &frame, "pool-isolated")?;
        }
        Ok(())
    })
}

/// The ICMP error about `packet` from the gateway of `to`: type, code, the header's last word, and the quote.
fn error(to: &Host, family: Family, kind: [u8; 2], rest: u32, packet: &[u8]) -> Vec<u8> {
    let quote = match family {
        Family::V4 => 28,
        // The quote has room for extension headers when the packet is long enough.
        Family::V6 if packet.len() >= 88 => 88,
        Family::V6 => 48,
    };
    let message = [&kind[..], &[0, 0], &rest.to_be_bytes(), &packet[..quote]].concat();
    back(to, to.gateway_mac, &frame::icmp(to.gateway(family), to.ip(family), &message))
}

#[test]
fn a_refused_datagram_is_told_who_forbids_it() -> Result<()> {
    lab(|lab| {
        let (a, c) = (lab.a, lab.c);
        for family in FAMILIES {
            let (from, to) = (a.ip(family), c.ip(family));
            // Communication administratively prohibited (RFC 1812, RFC 4443).
            let kind = if family == Family::V4 { [3, 13] } else { [1, 1] };
            for (what, packet) in [
                ("UDP", frame::udp((from, 4000), (to, 53), b"question")),
                ("UDP, empty", frame::udp((from, 4000), (to, 53), b"")),
                ("UDP, large", frame::udp((from, 4000), (to, 53), &[0x55; 1400])),
                ("echo", frame::echo(from, to, 9, 1)),
                ("SCTP", frame::ip(from, to, 132, &[0; 20])),
            ] {
                let frame = between(&a, a.gateway_mac, &packet);
                let want = error(&a, family, kind, 0, &packet);
                answered(lab, &format!("{family:?} {what}"), &a, &frame, &want, "pool-isolated")?;
            }
        }
        Ok(())
    })
}

#[test]
fn errors_and_fragments_are_not_answered() -> Result<()> {
    lab(|lab| {
        let (a, c) = (lab.a, lab.c);
        let quoted = frame::udp((c.v4.into(), 1), (a.v4.into(), 2), b"");
        let quoted6 = frame::udp((c.v6.into(), 1), (a.v6.into(), 2), b"");
        let message = |kind: u8, code: u8, quoted: &[u8]| [&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat();
        let mut later = frame::udp((a.v4.into(), 1), (c.v4.into(), 2), &[0; 32]);
        later[6..8].copy_from_slice(&[0x20, 4]);
        let mut later = between(&a, a.gateway_mac, &later);
        super::fix_ipv4(&mut later);
        let fragment6 = frame::ipv6(a.v6, c.v6, 44, &[&[17, 0, 0, 0x20, 0, 0, 0, 1][..], &[0; 32]].concat());
        for (what, reason, frame) in [
            (
                "port unreachable",
                "forged-icmp",
                between(&a, a.gateway_mac, &frame::icmp(a.v4.into(), c.v4.into(), &message(3, 3, &quoted))),
            ),
            (
                "port unreachable, IPv6",
                "forged-icmp",
                between(&a, a.gateway_mac, &frame::icmp(a.v6.into(), c.v6.into(), &message(1, 4, &quoted6))),
            ),
            // Too short to be quoted.
            (
                "eight bytes too few",
                "pool-isolated",
                between(&a, a.gateway_mac, &frame::ipv4(a.v4, c.v4, 132, &[0; 7])),
            ),
        ] {
            let (ran, grown) = lab.counted(&a, &frame)?;
            ensure!(ran.verdict == SHOT && grown == [reason], "{what}: {} {grown:?}", ran.verdict);
        }
        for (what, frame) in [("IPv4", later), ("IPv6", between(&a, a.gateway_mac, &fragment6))] {
            let (ran, grown) = lab.counted(&a, &frame)?;
            ensure!(
                ran.verdict == SHOT && grown == ["fragment-lost"],
                "a later fragment: {what}: {} {grown:?}",
                ran.verdict
            );
        }
        Ok(())
    })
}

#[test]
fn a_packet_on_its_last_hop_and_one_that_does_not_fit_are_told() -> Result<()> {
    lab(|lab| {
        let (d, e) = (lab.d, lab.e);
        for family in FAMILIES {
            let (from, to) = ((d.ip(family), 4000), (e.ip(family), 53));
            let (hops_at, expired, too_big) =
                if family == Family::V4 { (8, [11, 0], [3, 4]) } else { (7, [3, 0], [2, 0]) };
            for hops in [0, 1] {
                let mut packet = frame::udp(from, to, b"on its last hop");
                packet[hops_at] = hops;
                let mut frame = between(&d, d.gateway_mac, &packet);
                if family == Family::V4 {
                    super::fix_ipv4(&mut frame);
                }
                let want = error(&d, family, expired, 0, &frame[14..]);
                answered(lab, &format!("{family:?} {hops} hops"), &d, &frame, &want, "ttl-expired")?;
            }
            let mut packet = frame::udp(from, to, &vec![7; 1600]);
            if family == Family::V4 {
                packet[6] = 0x40;
            }
            let mut frame = between(&d, d.gateway_mac, &packet);
            if family == Family::V4 {
                super::fix_ipv4(&mut frame);
            }
            let want = error(&d, family, too_big, 1500, &frame[14..]);
            answered(lab, &format!("{family:?} too big"), &d, &frame, &want, "too-big")?;
        }
        Ok(())
    })
}
