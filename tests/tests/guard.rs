//! The source guard: a forged frame of each kind is dropped with its own reason, and does not arrive.

use anyhow::{Context, Result, ensure};
use harness::{Container, Device, configs, frame, raw::RawSocket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const OTHER_MAC: [u8; 6] = [2, 0, 0xde, 0xad, 0, 1];
const ALL: [u8; 6] = [0xff; 6];
const MARK: &[u8] = b"forged by the test";

struct Lab {
    device: Device,
    a: Container,
    b: Container,
}

fn lab() -> Result<Lab> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    Ok(Lab { device, a, b })
}

/// Frames that the guard must drop, each with the label of its drop reason.
fn forged(a: &Container, b: &Container) -> Result<Vec<(&'static str, &'static str, Vec<u8>)>> {
    let (me, peer) = (a.mac()?, b.mac()?);
    let v4 = |src: [u8; 4]| IpAddr::from(Ipv4Addr::from(src));
    let v6 = |text: &str| text.parse::<Ipv6Addr>().context("address");
    let udp4 = |src: IpAddr, sport| frame::udp((src, sport), (b.v4.into(), 9), MARK);
    let udp6 = |src: Ipv6Addr, sport| frame::udp((src.into(), sport), (b.v6.into(), 9), MARK);
    let eth = |src, kind, payload: &[u8]| frame::ethernet(src, peer, kind, payload);
    let stranger = v6("fd00:5056:0:3::dead")?;
    let all_nodes = v6("ff02::1")?;
    let own_link_local = link_local(me);
    let advertisement = |kind: u8, body: usize| {
        let mut message = vec![0u8; body];
        message[0] = kind;
        frame::icmp(own_link_local.into(), all_nodes.into(), &message)
    };
    let mut vlan = vec![0, 7, 8, 0];
    vlan.extend(udp4(a.v4.into(), 1));
    let arp = |sender| frame::arp(2, sender, (peer, b.v4));
    Ok(vec![
        ("MAC", "spoofed-mac", eth(OTHER_MAC, frame::IPV4, &udp4(a.v4.into(), 1))),
        ("MAC over IPv6", "spoofed-mac", eth(OTHER_MAC, frame::IPV6, &udp6(a.v6, 1))),
        ("MAC in an ARP frame", "spoofed-mac", eth(OTHER_MAC, frame::ARP, &arp((OTHER_MAC, a.v4)))),
        ("IPv4 of a neighbour", "spoofed-ipv4", eth(me, frame::IPV4, &udp4(v4([10, 0, 3, 77]), 1))),
        ("IPv4 of the gateway", "spoofed-ipv4", eth(me, frame::IPV4, &udp4(v4([10, 0, 3, 1]), 1))),
        ("IPv4 of the world", "spoofed-ipv4", eth(me, frame::IPV4, &udp4(v4([192, 0, 2, 1]), 1))),
        ("IPv4 zero", "spoofed-ipv4", eth(me, frame::IPV4, &udp4(v4([0; 4]), 1))),
        ("IPv6 of a neighbour", "spoofed-ipv6", eth(me, frame::IPV6, &udp6(stranger, 1))),
        ("IPv6 of the world", "spoofed-ipv6", eth(me, frame::IPV6, &udp6(v6("2001:db8::1")?, 1))),
        ("IPv6 zero", "spoofed-ipv6", eth(me, frame::IPV6, &udp6(Ipv6Addr::UNSPECIFIED, 1))),
        ("ARP for a neighbour", "spoofed-arp", eth(me, frame::ARP, &arp((me, Ipv4Addr::new(10, 0, 3, 77))))),
        ("ARP for the gateway", "spoofed-arp", eth(me, frame::ARP, &arp((me, Ipv4Addr::new(10, 0, 3, 1))))),
        ("ARP with another MAC", "spoofed-arp", eth(me, frame::ARP, &arp((OTHER_MAC, a.v4)))),
        (
            "advertisement of a neighbour's address",
            "spoofed-nd",
            eth(me, frame::IPV6, &frame::neighbour(136, a.v6, b.v6, stranger, me)),
        ),
        (
            "advertisement of another MAC",
            "spoofed-nd",
            eth(me, frame::IPV6, &frame::neighbour(136, a.v6, b.v6, a.v6, OTHER_MAC)),
        ),
        (
            "solicitation with another MAC",
            "spoofed-nd",
            eth(me, frame::IPV6, &frame::neighbour(135, a.v6, b.v6, b.v6, OTHER_MAC)),
        ),
        ("router advertisement", "rogue-ra", frame::ethernet(me, ALL, frame::IPV6, &advertisement(134, 16))),
        ("redirect", "rogue-ra", frame::ethernet(me, ALL, frame::IPV6, &advertisement(137, 40))),
        ("DHCP answer", "rogue-dhcp", eth(me, frame::IPV4, &udp4(a.v4.into(), 67))),
        ("DHCPv6 answer", "rogue-dhcp", eth(me, frame::IPV6, &udp6(a.v6, 547))),
        ("VLAN tag", "vlan-tag", eth(me, 0x8100, &vlan)),
        ("MPLS", "ethertype", eth(me, 0x8847, MARK)),
        ("LLDP", "ethertype", eth(me, 0x88cc, MARK)),
        ("IPv4 with a length beyond the frame", "malformed", {
            let mut packet = udp4(a.v4.into(), 1);
            packet[2..4].copy_from_slice(&1400u16.to_be_bytes());
            eth(me, frame::IPV4, &packet)
        }),
    ])
}

fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let text = pv_net_common::Ip::link_local(mac);
    match IpAddr::from(text) {
        IpAddr::V6(a) => a,
        IpAddr::V4(a) => a.to_ipv6_mapped(),
    }
}

#[test]
fn a_forged_frame_of_each_kind_has_its_reason_and_does_not_arrive() -> Result<()> {
    let lab = lab()?;
    let (out, peer) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.b.ns, "eth0")?);
    for (what, reason, frame) in forged(&lab.a, &lab.b)? {
        let grown = lab.device.counted(|| out.send(&frame))?;
        ensure!(grown[reason] == 1, "{what}: {reason} is not counted: {grown:?}");
        let dropped: u64 = pv_net_common::DropReason::ALL.iter().map(|r| grown[r.label()]).sum();
        ensure!(dropped == 1, "{what}: counted more than once: {grown:?}");
        let tail = frame[frame.len().saturating_sub(30)..].to_vec();
        let arrived = peer.receive(Duration::from_millis(30), |f| f.ends_with(&tail))?;
        ensure!(arrived.is_none(), "{what}: it arrived");
    }
    Ok(())
}

#[test]
fn what_a_container_needs_to_send_passes() -> Result<()> {
    let lab = lab()?;
    let me = lab.a.mac()?;
    let out = RawSocket::open(&lab.a.ns, "eth0")?;
    let own = link_local(me);
    let mut discover = vec![1u8, 1, 6, 0];
    discover.resize(240, 0);
    let zero = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let broadcast = IpAddr::from(Ipv4Addr::BROADCAST);
    let solicited: Ipv6Addr = "ff02::1:ff00:1".parse()?;
    let probe = frame::arp(1, (me, Ipv4Addr::UNSPECIFIED), ([0; 6], lab.a.v4));
    let router: Ipv6Addr = "ff02::2".parse()?;
    let fine = [
        ("ARP probe", frame::ARP, probe),
        ("ARP announcement", frame::ARP, frame::arp(1, (me, lab.a.v4), ([0; 6], lab.a.v4))),
        ("DHCP discover", frame::IPV4, frame::udp((zero, 68), (broadcast, 67), &discover)),
        ("own link-local", frame::IPV6, frame::udp((own.into(), 546), ("ff02::1:2".parse()?, 547), &[1, 0, 0, 0])),
        ("router solicitation", frame::IPV6, frame::icmp(own.into(), router.into(), &[133, 0, 0, 0, 0, 0, 0, 0])),
        ("solicitation", frame::IPV6, frame::neighbour(135, lab.a.v6, solicited, lab.b.v6, me)),
        ("advertisement", frame::IPV6, frame::neighbour(136, lab.a.v6, lab.b.v6, lab.a.v6, me)),
    ];
    for (what, kind, payload) in fine {
        let grown = lab.device.counted(|| out.send(&frame::ethernet(me, ALL, kind, &payload)))?;
        let dropped: u64 = pv_net_common::DropReason::ALL.iter().map(|r| grown[r.label()]).sum();
        ensure!(dropped == 0, "{what}: dropped: {grown:?}");
    }
    // A real ARP client too.
    lab.a.ns.sh(&format!("arping -c 2 -w 3 -I eth0 {}", lab.b.v4))?;
    Ok(())
}
