//! The source guard, tested by forged frames.

use crate::lab::Lab;
use anyhow::{Result, ensure};
use harness::raw::RawSocket;
use harness::{Container, frame};
use pv_net_common::{DropReason, Ip};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const OTHER_MAC: [u8; 6] = [2, 0, 0xde, 0xad, 0, 1];
const ALL: [u8; 6] = [0xff; 6];
const MARK: &[u8] = b"forged by the test";

/// Frames that the guard must drop, with the label of the drop reason.
fn frames(a: &Container, b: &Container) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (me, peer) = (a.mac()?, b.mac()?);
    let stranger: Ipv6Addr = "fd00:5056:0:3::dead".parse()?;
    let udp4 = |src: Ipv4Addr, sport| frame::udp((src.into(), sport), (b.v4.into(), 9), MARK);
    let udp6 = |src: Ipv6Addr, sport| frame::udp((src.into(), sport), (b.v6.into(), 9), MARK);
    let eth = |src, kind, payload: &[u8]| frame::ethernet(src, peer, kind, payload);
    let IpAddr::V6(own_link_local) = Ip::link_local(me).into() else { anyhow::bail!("no link-local address") };
    let mut router = [0u8; 16];
    router[0] = 134;
    let router = frame::icmp(own_link_local.into(), "ff02::1".parse()?, &router);
    let mut vlan = vec![0, 7, 8, 0];
    vlan.extend(udp4(a.v4, 1));
    let mut too_long = udp4(a.v4, 1);
    too_long[2..4].copy_from_slice(&1400u16.to_be_bytes());
    Ok(vec![
        ("spoofed-mac", eth(OTHER_MAC, frame::IPV4, &udp4(a.v4, 1))),
        ("spoofed-mac", eth(OTHER_MAC, frame::IPV6, &udp6(a.v6, 1))),
        ("spoofed-ipv4", eth(me, frame::IPV4, &udp4(Ipv4Addr::new(10, 0, 3, 77), 1))),
        ("spoofed-ipv4", eth(me, frame::IPV4, &udp4(Ipv4Addr::new(192, 0, 2, 1), 1))),
        ("spoofed-ipv6", eth(me, frame::IPV6, &udp6(stranger, 1))),
        ("spoofed-arp", eth(me, frame::ARP, &frame::arp(2, (me, Ipv4Addr::new(10, 0, 3, 1)), (peer, b.v4)))),
        ("spoofed-nd", eth(me, frame::IPV6, &frame::neighbour(136, a.v6, b.v6, stranger, me))),
        ("rogue-ra", frame::ethernet(me, ALL, frame::IPV6, &router)),
        ("rogue-dhcp", eth(me, frame::IPV4, &udp4(a.v4, 67))),
        ("rogue-dhcp", eth(me, frame::IPV6, &udp6(a.v6, 547))),
        ("vlan-tag", eth(me, 0x8100, &vlan)),
        ("ethertype", eth(me, 0x88cc, MARK)),
        ("malformed", eth(me, frame::IPV4, &too_long)),
    ])
}

/// Each forged frame is counted once, under its own reason, and does not arrive.
pub fn forged(lab: &mut Lab) -> Result<()> {
    let (out, peer) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.b.ns, "eth0")?);
    for (reason, frame) in frames(&lab.a, &lab.b)? {
        let grown = lab.counted(|| out.send(&frame))?;
        ensure!(grown[reason] == 1 && dropped(&grown) == 1, "{reason}: counted {grown:?}");
        let tail = frame[frame.len().saturating_sub(30)..].to_vec();
        let arrived = peer.receive(Duration::from_millis(5), |f| f.ends_with(&tail))?;
        ensure!(arrived.is_none(), "{reason}: it arrived");
    }
    Ok(())
}

/// What a container sends before it has an address passes.
pub fn honest(lab: &mut Lab) -> Result<()> {
    let me = lab.a.mac()?;
    let out = RawSocket::open(&lab.a.ns, "eth0")?;
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut discover = vec![1u8, 1, 6, 0];
    discover.resize(240, 0);
    let IpAddr::V6(own) = Ip::link_local(me).into() else { anyhow::bail!("no link-local address") };
    let fine = [
        ("ARP probe", frame::ARP, frame::arp(1, (me, zero), ([0; 6], lab.a.v4))),
        ("ARP announcement", frame::ARP, frame::arp(1, (me, lab.a.v4), ([0; 6], lab.a.v4))),
        ("DHCP discover", frame::IPV4, frame::udp((zero.into(), 68), (Ipv4Addr::BROADCAST.into(), 67), &discover)),
        ("solicitation", frame::IPV6, frame::neighbour(135, lab.a.v6, "ff02::1:ff00:1".parse()?, lab.b.v6, me)),
        ("router solicitation", frame::IPV6, frame::icmp(own.into(), "ff02::2".parse()?, &[133, 0, 0, 0, 0, 0, 0, 0])),
    ];
    for (what, kind, payload) in fine {
        let grown = lab.counted(|| out.send(&frame::ethernet(me, ALL, kind, &payload)))?;
        ensure!(dropped(&grown) == 0, "{what}: dropped: {grown:?}");
    }
    Ok(())
}

fn dropped(grown: &std::collections::BTreeMap<String, u64>) -> u64 {
    DropReason::ALL.iter().filter_map(|r| grown.get(r.label())).sum()
}
