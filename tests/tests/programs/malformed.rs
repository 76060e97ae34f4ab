//! Frames with contradictory fields, options and extension headers: each is dropped under its own reason, or passes.

use super::lab::{FAMILIES, Family, REDIRECT, TCP, UDP, between, fix_ipv4, lab, may_be_refused};
use anyhow::{Result, ensure};
use harness::{Device, configs, frame, raw::RawSocket};

/// IPv6 extension headers of these kinds, eight bytes each, in front of `payload` of protocol `last`. A fragment
/// header is that of a first fragment of several.
pub fn chain(kinds: &[u8], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for next in kinds.iter().skip(1).copied().chain([last]).zip(kinds) {
        match next {
            (next, 44) => all.extend([next, 0, 0, 1, 0, 0, 0, 9]),
            // Its length is in words of four bytes, less two.
            (next, 51) => all.extend([next, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3, 4]),
            // One PadN option; routing: no segments left.
            (next, _) => all.extend([next, 0, 1, 0, 0, 0, 0, 0]),
        }
    }
    all.extend(payload);
    all
}

/// A UDP or TCP segment without its IP header.
fn segment(family: Family, packet: &[u8]) -> &[u8] {
    &packet[family.header()..]
}

#[test]
fn runts_of_every_length_are_dropped() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for family in FAMILIES {
            let (from, to) = ((a.ip(family), 4000), (b.ip(family), 80));
            for packet in [frame::tcp(from, to, 2, &[1; 100]), frame::udp(from, to, &[1; 100])] {
                let whole = between(&a, b.mac, &packet);
                for length in 0..120 {
                    // Nothing shorter than an Ethernet header reaches a program.
                    if length < 14 || may_be_refused(&whole[..length]) && lab.run(&a, &whole[..length]).is_err() {
                        continue;
                    }
                    lab.drops(&format!("{family:?}, {length} bytes"), &a, &whole[..length], "malformed")?;
                }
                lab.forwards("the whole frame", &a, &whole)?;
            }
        }
        let arp = frame::ethernet(a.mac, b.mac, frame::ARP, &frame::arp(1, (a.mac, a.v4), ([0; 6], b.v4)));
        for length in 14..32 {
            lab.drops(&format!("ARP, {length} bytes"), &a, &arp[..length], "malformed")?;
        }
        Ok(())
    })
}

#[test]
fn runts_on_a_real_link_are_dropped() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let out = RawSocket::open(&a.ns, "eth0")?;
    for (from, to) in [(a.v4.into(), b.v4.into()), (a.v6.into(), b.v6.into())] {
        let packet = frame::udp((from, 4000), (to, 53), &[1; 100]);
        let kind = if packet[0] >> 4 == 6 { frame::IPV6 } else { frame::IPV4 };
        let whole = frame::ethernet(a.mac()?, b.mac()?, kind, &packet);
        let grown = device.counted(|| (15..120).try_for_each(|length| out.send(&whole[..length])))?;
        ensure!(grown["malformed"] == 105, "{grown:?}");
    }
    Ok(())
}

#[test]
fn ipv4_headers_that_lie_are_dropped() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        let whole = between(&a, b.mac, &frame::udp((a.v4.into(), 4000), (b.v4.into(), 53), &[9; 40]));
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = whole.clone();
            change(&mut frame);
            frame
        };
        let length = (whole.len() - 14) as u16;
        for (what, frame) in [
            ("version 5", with(&|f| f[14] = 0x55)),
            ("version 6 in an IPv4 frame", with(&|f| f[14] = 0x65)),
            ("header of 0 bytes", with(&|f| f[14] = 0x40)),
            ("header of 16 bytes", with(&|f| f[14] = 0x44)),
            ("length 0", with(&|f| f[16..18].copy_from_slice(&[0, 0]))),
            ("length below the header's", with(&|f| f[16..18].copy_from_slice(&[0, 19]))),
            ("length beyond the frame by one", with(&|f| f[16..18].copy_from_slice(&(length + 1).to_be_bytes()))),
            ("length beyond the frame", with(&|f| f[16..18].copy_from_slice(&[0xff; 2]))),
            ("header beyond the packet", {
                let mut frame = with(&|f| f.truncate(14 + 28));
                frame[14] = 0x4f;
                frame[16..18].copy_from_slice(&28u16.to_be_bytes());
                frame
            }),
            ("no room for UDP behind the options", {
                let mut frame = with(&|f| f.truncate(14 + 28));
                frame[14] = 0x46;
                frame[16..18].copy_from_slice(&28u16.to_be_bytes());
                frame
            }),
        ] {
            lab.drops(what, &a, &frame, "malformed")?;
        }
        // Bytes behind the packet are padding.
        lab.forwards("padding", &a, &[&whole[..], &[0; 20]].concat())
    })
}

#[test]
fn ipv4_options_do_not_hide_the_ports() -> Result<()> {
    lab(|lab| {
        let (a, b, c) = (lab.a, lab.b, lab.c);
        for words in 1..=10usize {
            let options = vec![1u8; words * 4];
            let with_options = |to: std::net::Ipv4Addr, mac| {
                let plain = frame::udp((a.v4.into(), 5000 + words as u16), (to.into(), 53), b"data");
                let mut packet = [&plain[..20], &options, &plain[20..]].concat();
                packet[0] = 0x45 + words as u8;
                let length = (packet.len() as u16).to_be_bytes();
                packet[2..4].copy_from_slice(&length);
                let mut frame = between(&a, mac, &packet);
                fix_ipv4(&mut frame);
                frame
            };
            lab.forwards(&format!("{words} words of options"), &a, &with_options(b.v4, b.mac))?;
            ensure!(lab.flow_ports(&a)?.contains(&(5000 + words as u16, 53)), "{words} words of options: no flow");
            let (ran, grown) = lab.counted(&a, &with_options(c.v4, a.gateway_mac))?;
            ensure!(ran.verdict == REDIRECT && grown == ["answered", "pool-isolated"], "{words}: {grown:?}");
        }
        Ok(())
    })
}

#[test]
fn ipv6_headers_that_lie_are_dropped() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        let whole = between(&a, b.mac, &frame::udp((a.v6.into(), 4000), (b.v6.into(), 53), &[9; 40]));
        for (what, at, bytes) in [
            ("version 4 in an IPv6 frame", 14, &[0x40][..]),
            ("version 7", 14, &[0x70]),
            ("length beyond the frame by one", 18, &[0, 49]),
            ("length beyond the frame", 18, &[0xff, 0xff]),
        ] {
            let mut frame = whole.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            lab.drops(what, &a, &frame, "malformed")?;
        }
        for kind in [0, 43, 44, 51, 60] {
            // A header whose length is larger than the packet.
            let frame = between(&a, b.mac, &frame::ipv6(a.v6, b.v6, kind, &[UDP, 255, 0, 0, 0, 0, 0, 0]));
            lab.drops(&format!("extension header {kind} beyond the packet"), &a, &frame, "malformed")?;
            let frame = between(&a, b.mac, &frame::ipv6(a.v6, b.v6, kind, &[UDP]));
            lab.drops(&format!("extension header {kind} of one byte"), &a, &frame, "malformed")?;
        }
        lab.forwards("padding", &a, &[&whole[..], &[0; 20]].concat())
    })
}

#[test]
fn extension_headers_do_not_hide_the_ports() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for (n, kinds) in
            [&[0u8][..], &[60], &[43], &[51], &[0, 60, 43, 51, 60], &[0, 60, 60, 60, 60, 60]].into_iter().enumerate()
        {
            let port = 6000 + n as u16;
            let packet = frame::udp((a.v6.into(), port), (b.v6.into(), 53), b"data");
            let packet = frame::ipv6(a.v6, b.v6, kinds[0], &chain(kinds, UDP, segment(Family::V6, &packet)));
            lab.forwards(&format!("{kinds:?}"), &a, &between(&a, b.mac, &packet))?;
            ensure!(lab.flow_ports(&a)?.contains(&(port, 53)), "{kinds:?}: no flow");
            // A packet that a container must not send is dropped behind an extension header too.
            let dhcp = frame::udp((a.v6.into(), 547), (b.v6.into(), 546), b"data");
            let dhcp = frame::ipv6(a.v6, b.v6, kinds[0], &chain(kinds, UDP, segment(Family::V6, &dhcp)));
            lab.drops(&format!("DHCPv6 behind {kinds:?}"), &a, &between(&a, b.mac, &dhcp), "rogue-dhcp")?;
            let advertisement = chain(kinds, 58, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let advertisement = frame::ipv6(a.v6, "ff02::1".parse()?, kinds[0], &advertisement);
            lab.drops(&format!("router behind {kinds:?}"), &a, &between(&a, b.mac, &advertisement), "rogue-ra")?;
        }
        Ok(())
    })
}

#[test]
fn a_chain_that_is_longer_than_the_guard_reads_is_dropped() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        let all_nodes = "ff02::1".parse()?;
        for length in [7, 8, 20] {
            let kinds = vec![60; length];
            // Behind the headers could be a router advertisement, which the guard must find (RFC 7113).
            let advertisement = chain(&kinds, 58, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let udp = frame::udp((a.v6.into(), 4000), (b.v6.into(), 53), b"data");
            for (to, payload) in [(all_nodes, advertisement), (b.v6, chain(&kinds, UDP, segment(Family::V6, &udp)))] {
                let frame = between(&a, b.mac, &frame::ipv6(a.v6, to, 60, &payload));
                lab.drops(&format!("{length} headers to {to}"), &a, &frame, "malformed")?;
            }
        }
        Ok(())
    })
}

#[test]
fn fragments_belong_to_the_flow_of_their_first_one() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for (what, fragment) in [("the first", 0x2000u16), ("a middle one", 0x2010), ("the last", 0x0010)] {
            let mut packet = frame::udp((a.v4.into(), 4000), (b.v4.into(), 53), &[9; 40]);
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            let mut frame = between(&a, b.mac, &packet);
            fix_ipv4(&mut frame);
            lab.forwards(what, &a, &frame)?;
            let field = ((fragment & 0x1fff) << 3 | fragment >> 13).to_be_bytes();
            let header = [UDP, 0, field[0], field[1], 0, 0, 0, 9];
            let payload = [&header[..], segment(Family::V4, &packet)].concat();
            lab.forwards(what, &a, &between(&a, b.mac, &frame::ipv6(a.v6, b.v6, 44, &payload)))?;
        }
        let ports = lab.flow_ports(&a)?;
        ensure!(!ports.is_empty() && ports.iter().all(|p| *p == (4000, 53)), "flows of fragments: {ports:?}");
        // The first fragment shows that this is a DHCP server's packet, which a container must not send.
        let mut dhcp = frame::udp((a.v4.into(), 67), (b.v4.into(), 68), &[0; 40]);
        dhcp[6] = 0x20;
        let mut dhcp = between(&a, b.mac, &dhcp);
        fix_ipv4(&mut dhcp);
        lab.drops("DHCP in fragments", &a, &dhcp, "rogue-dhcp")?;
        let dhcp = frame::udp((a.v6.into(), 547), (b.v6.into(), 546), &[0; 40]);
        let dhcp = frame::ipv6(a.v6, b.v6, 44, &chain(&[44], UDP, segment(Family::V6, &dhcp)));
        lab.drops("DHCPv6 in fragments", &a, &between(&a, b.mac, &dhcp), "rogue-dhcp")?;
        let router = chain(&[44], 58, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let router = frame::ipv6(a.v6, "ff02::1".parse()?, 44, &router);
        lab.drops("a router advertisement in fragments", &a, &between(&a, b.mac, &router), "rogue-ra")
    })
}

#[test]
fn tags_and_other_protocols_have_their_reasons() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for family in FAMILIES {
            let packet = frame::udp((a.ip(family), 1), (b.ip(family), 2), b"data");
            let kind = family.ethertype().to_be_bytes();
            let tagged = [&[0, 7][..], &kind, &packet].concat();
            let twice = [&[0, 7, 0x81, 0][..], &tagged].concat();
            for (what, kind, payload) in
                [("802.1Q", 0x8100, &tagged), ("802.1ad", 0x88a8, &twice), ("a bare tag", 0x8100, &Vec::new())]
            {
                lab.drops(what, &a, &frame::ethernet(a.mac, b.mac, kind, payload), "vlan-tag")?;
            }
            for kind in [0u16, 46, 0x05ff, 0x0801, 0x8847, 0x88cc, 0x8863, 0xffff] {
                lab.drops(&format!("{kind:#06x}"), &a, &frame::ethernet(a.mac, b.mac, kind, &packet), "ethertype")?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_tcp_header_that_is_none_is_dropped() -> Result<()> {
    lab(|lab| {
        let (a, b, c) = (lab.a, lab.b, lab.c);
        for family in FAMILIES {
            for to in [&b, &c] {
                for words in 0..5u8 {
                    let mut packet = frame::tcp((a.ip(family), 1), (to.ip(family), 2), 2, b"data");
                    packet[family.header() + 12] = words << 4;
                    let frame = between(&a, b.mac, &packet);
                    lab.drops(&format!("{family:?}, {words} words"), &a, &frame, "malformed")?;
                }
            }
            for length in 0..14 {
                let frame = between(&a, b.mac, &frame::ip(a.ip(family), b.ip(family), TCP, &vec![0x50; length]));
                lab.drops(&format!("{family:?}, TCP of {length} bytes"), &a, &frame, "malformed")?;
            }
        }
        Ok(())
    })
}
