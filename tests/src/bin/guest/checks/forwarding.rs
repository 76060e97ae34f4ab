//! Packets between containers, both families.

use crate::icmp;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use harness::raw::RawSocket;
use harness::{Container, echo, frame};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Bytes of a stream: enough for full-sized segments, and to fill the window.
const STREAM: u32 = 300_000;
const MARK: &[u8] = b"payload of the packet";

fn pairs(from: &Container, to: &Container) -> [(IpAddr, IpAddr); 2] {
    [(from.v4.into(), to.v4.into()), (from.v6.into(), to.v6.into())]
}

fn blob(length: u32) -> Vec<u8> {
    (0..length).map(|i| ((i * 7) >> 3) as u8).collect()
}

/// Every kind of traffic; the server sees the client's own address.
pub fn talks(from: &Container, to: &Container, port: u16) -> Result<()> {
    let blob = blob(STREAM);
    for (client, server) in pairs(from, to) {
        echo::serve(&to.ns, server, port)?;
        icmp::ping(&from.ns, server, 10)?;
        let server = SocketAddr::new(server, port);
        let seen = echo::tcp(&from.ns, server, &blob).with_context(|| format!("TCP to {server}"))?;
        ensure!(seen.ip() == client, "TCP: {client} was seen as {seen}");
        for size in [0, 1, 1200] {
            let seen = echo::udp(&from.ns, server, &blob[..size])?;
            ensure!(seen.ip() == client, "UDP: {client} was seen as {seen}");
        }
    }
    Ok(())
}

/// Containers and their gateway reach each other by the bridge.
pub fn gateways(lab: &mut Lab) -> Result<()> {
    for gateway in ["10.0.3.1".parse()?, "fd00:5056:0:3::1".parse()?] {
        icmp::ping(&lab.a.ns, gateway, 3)?;
    }
    Ok(())
}

/// Two containers of one pool reach each other.
pub fn same_pool(lab: &mut Lab) -> Result<()> {
    fast(lab, |lab| talks(&lab.a, &lab.b, 7000))
}

/// Containers of pools that are open to each other reach each other.
pub fn between_pools(lab: &mut Lab) -> Result<()> {
    fast(lab, |lab| talks(&lab.d, &lab.e, 7000))
}

/// Runs `work`; fails unless most of its packets take the fast path.
fn fast(lab: &Lab, work: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let grown = lab.counted(|| work(lab))?;
    ensure!(grown["fast-path"] > 60 && grown["fast-path"] > 2 * grown["slow-path"], "{grown:?}");
    ensure!(grown["flow-table-full"] == 0, "{grown:?}");
    Ok(())
}

/// The MAC to which `from` sends packets that leave its pool: the source of the gateway's answer.
fn gateway_mac(lab: &Lab, from: &Container, gateway: IpAddr) -> Result<[u8; 6]> {
    let socket = RawSocket::open(&from.ns, "eth0")?;
    icmp::ping(&from.ns, gateway, 1)?;
    let own = from.mac()?;
    let heard = socket.receive(Duration::from_secs(1), |f| f.starts_with(&own))?;
    let heard = heard.with_context(|| format!("{gateway} was not heard: {}", lab.device.log()))?;
    heard[6..12].try_into().context("a frame without a source")
}

/// A routed packet with this TTL or hop limit, sent as a frame of `d` to `e`.
fn send_routed(lab: &Lab, out: &RawSocket, pair: (IpAddr, IpAddr), hops: u8) -> Result<Vec<u8>> {
    let gateway = if pair.0.is_ipv4() { "10.0.5.1" } else { "fd00:5056:0:5::1" }.parse()?;
    let mac = gateway_mac(lab, &lab.d, gateway)?;
    let mut packet = frame::udp((pair.0, 5555), (pair.1, 6666), MARK);
    let kind = if pair.0.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
    set_hops(&mut packet, hops);
    out.send(&frame::ethernet(lab.d.mac()?, mac, kind, &packet))?;
    Ok(packet)
}

/// Sets TTL or hop limit, and the header's checksum where there is one.
fn set_hops(packet: &mut [u8], hops: u8) {
    if packet[0] >> 4 == 6 {
        packet[7] = hops;
        return;
    }
    packet[8] = hops;
    packet[10..12].copy_from_slice(&[0, 0]);
    let check = frame::checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&check);
}

/// A routed packet differs from the sent one by one hop and the MACs, and in nothing else.
pub fn bytes(lab: &mut Lab) -> Result<()> {
    let (out, back) = (RawSocket::open(&lab.d.ns, "eth0")?, RawSocket::open(&lab.e.ns, "eth0")?);
    let to_mac = lab.e.mac()?;
    for pair in pairs(&lab.d, &lab.e) {
        let mut want = send_routed(lab, &out, pair, 64)?;
        let arrived = back.receive(Duration::from_secs(3), |f| f.starts_with(&to_mac) && f.ends_with(MARK))?;
        let arrived = arrived.with_context(|| format!("nothing arrived at {}", pair.1))?;
        set_hops(&mut want, 63);
        ensure!(arrived[14..] == want[..], "{arrived:02x?} is not {want:02x?}");
    }
    Ok(())
}

/// A packet whose hops end at the gateway is answered by it and goes no further.
pub fn hop_limit(lab: &mut Lab) -> Result<()> {
    let (out, back) = (RawSocket::open(&lab.d.ns, "eth0")?, RawSocket::open(&lab.e.ns, "eth0")?);
    for pair in pairs(&lab.d, &lab.e) {
        send_routed(lab, &out, pair, 1)?;
        // "Time exceeded": type 11 of ICMP, 3 of ICMPv6.
        let (at, kind) = if pair.0.is_ipv4() { (14 + 20, 11) } else { (14 + 40, 3) };
        let own = lab.d.mac()?;
        let quotes = |f: &[u8]| f.windows(4).any(|w| w == [0x15, 0xb3, 0x1a, 0x0a]);
        let told =
            out.receive(Duration::from_secs(1), |f| f.starts_with(&own) && f.get(at) == Some(&kind) && quotes(f))?;
        ensure!(told.is_some(), "{}: nobody said that it ended", pair.1);
        let arrived = back.receive(Duration::from_millis(20), |f| f.ends_with(MARK))?;
        ensure!(arrived.is_none(), "{}: it arrived", pair.1);
    }
    Ok(())
}

/// Datagrams larger than a frame, within a pool and between open ones.
pub fn fragments(lab: &mut Lab) -> Result<()> {
    const PORT: u16 = 7001;
    let blob = blob(9000);
    for (from, to) in [(&lab.a, &lab.b), (&lab.d, &lab.e)] {
        for (_, server) in pairs(from, to) {
            echo::serve(&to.ns, server, PORT)?;
            for size in [1473, 9000] {
                echo::udp(&from.ns, SocketAddr::new(server, PORT), &blob[..size])
                    .with_context(|| format!("{size} bytes to {server}"))?;
            }
        }
    }
    Ok(())
}

/// A datagram socket in `from`, connected to `to`.
pub fn datagrams(from: &Container, to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    from.ns.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })
}
