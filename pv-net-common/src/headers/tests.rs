extern crate std;

use super::*;
use std::{vec, vec::Vec};

const SRC4: [u8; 4] = [10, 0, 3, 2];
const DST4: [u8; 4] = [192, 0, 2, 9];

/// An IPv4 packet in a frame; `fragment` is the word of flags and offset.
fn v4(proto: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0u8; 14];
    frame[12..14].copy_from_slice(&ETH_P_IP.to_be_bytes());
    frame.extend([0x45, 0]);
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 7]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, proto, 0, 0]);
    frame.extend(SRC4);
    frame.extend(DST4);
    frame.extend(payload);
    frame
}

/// An IPv6 packet in a frame, with these extension headers in front of the payload.
fn v6(chain: &[(u8, Vec<u8>)], proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    let kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).chain([proto]).collect();
    for (i, (_, rest)) in chain.iter().enumerate() {
        body.push(kinds[i + 1]);
        body.extend(rest);
    }
    body.extend(payload);
    let mut frame = vec![0u8; 14];
    frame[12..14].copy_from_slice(&ETH_P_IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([kinds[0], 64]);
    frame.extend([0xfd; 16]);
    frame.extend([0xfe; 16]);
    frame.extend(body);
    frame
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut segment = vec![0u8; 20];
    segment[..4].copy_from_slice(&[0x13, 0x88, 0, 80]);
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment
}

fn udp() -> Vec<u8> {
    vec![0x13, 0x88, 0, 53, 0, 8, 0, 0]
}

fn options() -> (u8, Vec<u8>) {
    (60, vec![0; 7])
}

/// A fragment header, with the number by which the header before announces it: offset in bytes, and whether more
/// fragments follow.
fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let word = (offset | u16::from(more)).to_be_bytes();
    (44, vec![0, word[0], word[1], 0, 0, 0, 9])
}

fn parse(frame: &[u8]) -> Result<Headers, DropReason> {
    let mut headers = Headers::default();
    let bytes = Bytes { bytes: frame, gso: false };
    if frame[12] == 8 {
        headers.parse_v4(&bytes)?
    } else {
        headers.parse_v6(&bytes)?
    }
    Ok(headers)
}

#[test]
fn ports_are_read_where_the_packet_has_them() {
    for (name, frame) in [
        ("IPv4", v4(IPPROTO_TCP, 0, &tcp(TCP_SYN))),
        ("IPv6", v6(&[], IPPROTO_TCP, &tcp(TCP_SYN))),
        ("IPv6 with options", v6(&[options(), (0, vec![0; 7])], IPPROTO_TCP, &tcp(TCP_SYN))),
        (
            "IPv6 with an authentication header",
            v6(&[(51, [&[1u8][..], &[0; 10]].concat())], IPPROTO_TCP, &tcp(TCP_SYN)),
        ),
    ] {
        let h = parse(&frame).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!((u16::from_be(h.key.sport_be), u16::from_be(h.key.dport_be)), (5000, 80), "{name}");
        assert!(h.tracked && h.ports && !h.fragment && h.opens_tcp(), "{name}: {h:?}");
        assert_eq!(h.end as usize, frame.len(), "{name}");
    }
}

#[test]
fn what_is_behind_the_packet_is_no_header() {
    for (name, mut frame) in [
        ("TCP", v4(IPPROTO_TCP, 0, &tcp(TCP_SYN)[..8])),
        ("a first fragment of TCP", v4(IPPROTO_TCP, 0x2000, &tcp(TCP_SYN)[..16])),
        ("UDP", v4(IPPROTO_UDP, 0, &udp()[..4])),
        ("ICMP", v4(IPPROTO_ICMP, 0, &[8, 0, 0, 0])),
        ("TCP over IPv6", v6(&[], IPPROTO_TCP, &tcp(TCP_SYN)[..8])),
        ("UDP over IPv6", v6(&[options()], IPPROTO_UDP, &udp()[..4])),
        ("a first fragment over IPv6", v6(&[fragment(0, true)], IPPROTO_TCP, &tcp(TCP_SYN)[..8])),
        ("nothing over IPv6", v6(&[], IPPROTO_ICMPV6, &[])),
        ("an extension header", v6(&[], 60, &[])),
        ("ICMPv6 behind options", v6(&[options()], IPPROTO_ICMPV6, &[])),
    ] {
        // Padding with the bytes that the packet itself lacks.
        frame.extend([0x50, 0x10].repeat(20));
        assert_eq!(parse(&frame), Err(DropReason::Malformed), "{name}");
    }
}

#[test]
fn no_ipv6_packet_is_taken_for_an_ipv4_one() {
    for at in [22, 38] {
        let mut frame = v6(&[], IPPROTO_UDP, &udp());
        frame[at..at + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        assert_eq!(parse(&frame), Err(DropReason::Malformed));
    }
}

#[test]
fn padding_changes_nothing() {
    for frame in [v4(IPPROTO_UDP, 0, &udp()), v6(&[options()], IPPROTO_UDP, &udp()), v4(IPPROTO_TCP, 3, b"data")] {
        let padded = [&frame[..], &[0xff; 30]].concat();
        assert_eq!(parse(&frame), parse(&padded));
    }
}

#[test]
fn a_tcp_header_is_as_long_as_it_says() {
    let mut segment = tcp(TCP_SYN);
    segment[12] = 8 << 4;
    assert_eq!(parse(&v4(IPPROTO_TCP, 0, &segment)), Err(DropReason::Malformed));
    segment.extend([1; 12]);
    assert!(parse(&v4(IPPROTO_TCP, 0, &segment)).is_ok());
    segment[12] = 4 << 4;
    assert_eq!(parse(&v4(IPPROTO_TCP, 0, &segment)), Err(DropReason::Malformed));
}

#[test]
fn later_fragments_do_not_reach_into_a_tcp_header() {
    for (offset, fine) in [(8, false), (16, false), (24, true)] {
        assert_eq!(parse(&v4(IPPROTO_TCP, offset / 8, &[0; 8])).is_ok(), fine, "IPv4 at {offset}");
        assert_eq!(parse(&v6(&[fragment(offset, false)], IPPROTO_TCP, &[0; 8])).is_ok(), fine, "IPv6 at {offset}");
        assert!(parse(&v4(IPPROTO_UDP, offset / 8, &[0; 8])).is_ok_and(|h| h.later && !h.tracked && !h.ports));
    }
}

#[test]
fn chains_of_extension_headers_have_a_limit() {
    let chain = |n| vec![options(); n];
    assert!(parse(&v6(&chain(6), IPPROTO_UDP, &udp())).is_ok());
    assert_eq!(parse(&v6(&chain(7), IPPROTO_UDP, &udp())), Err(DropReason::Malformed));
    let twice = [fragment(0, true), fragment(0, true)];
    assert_eq!(parse(&v6(&twice, IPPROTO_UDP, &udp())), Err(DropReason::Malformed));
}

#[test]
fn only_gso_packets_may_have_no_length() {
    let mut four = v4(IPPROTO_TCP, 0, &tcp(TCP_ACK));
    four[16..18].copy_from_slice(&[0, 0]);
    let mut six = v6(&[], IPPROTO_TCP, &tcp(TCP_ACK));
    six[18..20].copy_from_slice(&[0, 0]);
    for gso in [false, true] {
        let (mut a, mut b) = (Headers::default(), Headers::default());
        assert_eq!(a.parse_v4(&Bytes { bytes: &four, gso }).is_ok(), gso);
        assert_eq!(b.parse_v6(&Bytes { bytes: &six, gso }).is_ok(), gso);
    }
}
