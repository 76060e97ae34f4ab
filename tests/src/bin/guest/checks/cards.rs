//! Uplinks that are network cards, with the work that their drivers do for the kernel: checksums, segmentation, joining
//! of packets. A card completes a checksum that the kernel began; if pv-net breaks that beginning, the packet on the
//! wire is wrong. So every packet is checked at the other end of the wire.

use super::{Absent, outside};
use crate::cards::{self, Driver, FAR, LINK, Offload, WIRE_MTU, Wire};
use crate::lab::{self, Lab, UPLINK};
use crate::programs;
use anyhow::{Context, Result, bail, ensure};
use harness::capture::{Capture, Captured};
use harness::{Beyond, Namespace, SOON, echo, eventually, patience};
use pv_net_common::names;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// A virtio card.
pub fn virtio(lab: &mut Lab) -> Result<()> {
    passes(lab, Driver::Virtio, 7620)
}

/// A virtio card, and a path with a smaller MTU.
pub fn virtio_path_mtu(lab: &mut Lab) -> Result<()> {
    path_mtu(lab, Driver::Virtio, 7630)
}

/// A virtio card, and the filter in the driver.
pub fn virtio_filter(lab: &mut Lab) -> Result<()> {
    with(lab, Driver::Virtio, |wire| {
        lab.reload(&filtered("auto"))?;
        deny(lab, wire, "native", 7640)
    })
}

/// An e1000e card.
pub fn e1000e(lab: &mut Lab) -> Result<()> {
    passes(lab, Driver::E1000e, 7650)
}

/// An e1000e card, and a path with a smaller MTU.
pub fn e1000e_path_mtu(lab: &mut Lab) -> Result<()> {
    path_mtu(lab, Driver::E1000e, 7660)
}

/// An e1000e card, and the filter in the stack. The driver has no XDP, and `status` says so.
pub fn e1000e_filter(lab: &mut Lab) -> Result<()> {
    with(lab, Driver::E1000e, |wire| {
        lab.reload(&filtered("auto"))?;
        let status = lab.get("/status")?;
        let said = status["conditions"].to_string();
        ensure!(said.contains(&format!("uplink {LINK}: no uplink_filter")), "{said}");
        lab.reload(&filtered("generic"))?;
        deny(lab, wire, "generic", 7670)
    })
}

/// The lab's configuration with [`LINK`] as a second uplink.
fn config() -> Value {
    let mut config = lab::config();
    config["network"]["uplinks"] = json!([UPLINK, LINK]);
    config
}

/// The same configuration with a filter before the stack.
fn filtered(xdp: &str) -> Value {
    let mut config = config();
    config["network"]["uplink_filter"] = json!({"deny": cards::DENIED, "xdp": xdp});
    config
}

/// Runs `check` with a card of this driver as an uplink beside that of the lab.
fn with(lab: &Lab, driver: Driver, check: impl FnOnce(&Wire) -> Result<()>) -> Result<()> {
    let wire = Wire::connect(lab, driver)?.ok_or(Absent)?;
    let done = lab.reload(&config()).and_then(|()| check(&wire));
    // The next checks expect the lab as it was, whether this one has failed or not.
    let (as_before, back) = (lab.reload(&lab::config()), wire.give_back(lab));
    match (done, as_before.and(back)) {
        (Err(why), Err(also)) => Err(why.context(format!("and afterwards {also:#}"))),
        (done, after) => done.and(after),
    }
}

/// Traffic out and in takes the fast path, with the host's card doing its work and without.
fn passes(lab: &Lab, driver: Driver, port: u16) -> Result<()> {
    with(lab, driver, |wire| {
        let [far, near] = watched(lab, wire, || both_ways(lab, wire, port))?;
        // First the host's kernel leaves all that it can to the cards.
        let many = WIRE_MTU + ETHERNET;
        if Wire::offloads()? {
            ensure!(near.sent.largest > many, "nothing was left to the card to cut: {near:?}");
            ensure!(near.received.largest > many, "nothing came as one: {near:?}");
        }
        plain(&far, WIRE_MTU)?;
        // Then it leaves nothing to them.
        wire.set(Offload::SentChecksums, false)?;
        let [far, near] = watched(lab, wire, || both_ways(lab, wire, port + 2))?;
        ensure!(far.sent.kinds.keys().all(|seen| !seen.partial), "{far:?}");
        ensure!(near.received.largest > many, "nothing was put together: {near:?}");
        plain(&far, WIRE_MTU)
    })
}

/// The packets on the host's link and on the device's while `work` ran. Fails when one has a wrong checksum.
fn watched(lab: &Lab, wire: &Wire, work: impl FnOnce() -> Result<()>) -> Result<[Captured; 2]> {
    let links = [Capture::start(&wire.host, FAR, false)?, Capture::start(&lab.device.ns, LINK, false)?];
    let done = work();
    // Looked at before the result of `work`: a wrong checksum explains why something did not arrive.
    let [far, near] = links.map(Capture::finish);
    let both = [far.context("at the other end of the wire")?, near?];
    done.map(|()| both)
}

/// Fails unless the host received only whole packets of at most `mtu` with complete checksums, of both families.
fn plain(far: &Captured, mtu: usize) -> Result<()> {
    let got = &far.received;
    ensure!(got.largest <= mtu + ETHERNET, "larger than {mtu}: {got:?}");
    ensure!(got.largest > mtu / 2, "no large packet at all: {got:?}");
    ensure!(got.kinds.keys().all(|seen| !seen.partial), "a checksum was left out: {got:?}");
    for (v6, proto) in [(false, 6), (false, 17), (true, 6), (true, 17)] {
        ensure!(got.kinds.keys().any(|s| (s.v6, s.proto) == (v6, proto)), "nothing of protocol {proto}: {got:?}");
    }
    Ok(())
}

/// TCP, UDP, fragments and echo, out and in.
fn both_ways(lab: &Lab, wire: &Wire, port: u16) -> Result<()> {
    let out = lab.counted(|| outside::hidden_from(&wire.host, Beyond::PAIRS, &lab.a, port))?;
    ensure!(out["fast-path"] > 20, "masquerade: {out:?}");
    let inwards = lab.counted(|| outside::published_to(&wire.host, Beyond::PAIRS))?;
    ensure!(inwards["fast-path"] > 20, "published port: {inwards:?}");
    Beyond::PAIRS.iter().try_for_each(|(host, device)| segments(lab, wire, (*host, port + 1), *device))
}

/// Datagrams that are sent as one packet and segmented on the way (`UDP_SEGMENT`, as QUIC does).
fn segments(lab: &Lab, wire: &Wire, to: (IpAddr, u16), device: IpAddr) -> Result<()> {
    const SIZE: u16 = 1200;
    const COUNT: u8 = 8;
    let to = SocketAddr::from(to);
    let host = wire.host.run(|| Ok(UdpSocket::bind(to)?))?;
    host.set_read_timeout(Some(patience(Duration::from_secs(2))))?;
    let from = super::forwarding::datagrams(&lab.a, to)?;
    let size = libc::c_int::from(SIZE);
    let length = libc::socklen_t::try_from(size_of_val(&size))?;
    // SAFETY: the kernel reads one integer.
    let set = unsafe {
        libc::setsockopt(from.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), length)
    };
    ensure!(set == 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    let parts: Vec<u8> = (0..COUNT).flat_map(|number| [number; SIZE as usize]).collect();
    from.send(&parts)?;
    let mut buffer = [0; 2000];
    for number in 0..COUNT {
        let (length, sender) = host.recv_from(&mut buffer).with_context(|| format!("segment {number} to {to}"))?;
        ensure!(sender.ip() == device, "segment {number} to {to}: it saw {sender}");
        ensure!(buffer[..length] == [number; SIZE as usize], "segment {number} to {to}: {length} other bytes");
    }
    Ok(())
}

/// Packets that are too large for the card, or for a link behind the host.
fn path_mtu(lab: &Lab, driver: Driver, port: u16) -> Result<()> {
    const NARROW: u16 = 1400;
    const BEHIND: u16 = 1300;
    with(lab, driver, |wire| {
        let remote = Remote::behind(lab, wire, BEHIND)?;
        let blob: Vec<u8> = (0..100_000u32).map(|i| ((i * 5) >> 3) as u8).collect();
        for addr in Remote::ADDRESSES {
            let to = SocketAddr::new(addr, port);
            echo::serve(&remote.host, addr, port)?;
            echo::tcp(&lab.a.ns, to, &blob).with_context(|| format!("behind the host, TCP to {to}"))?;
            let found = path_mtu_of(&echo::connect(&lab.a.ns, to)?, addr)?;
            ensure!(found == u32::from(BEHIND), "behind the host, {to}: the path's MTU is {found}");
        }
        cards::set_mtu(&lab.device.ns, LINK, NARROW.into())?;
        lab.reload(&config())?;
        let [far, _] = watched(lab, wire, || {
            Beyond::PAIRS.iter().try_for_each(|(_, device)| learns(wire, *device))?;
            both_ways(lab, wire, port + 1)
        })?;
        plain(&far, NARROW.into())
    })
}

/// Repeats a datagram of the host that is as large as the wire allows, until it arrives, or until the host knows the
/// smaller MTU of the path. The first datagram that is too large is always lost, and [`both_ways`] sends each of its
/// own only once.
fn learns(wire: &Wire, device: IpAddr) -> Result<()> {
    let any: IpAddr = if device.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = wire.host.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.connect((device, 8080))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually(SOON, || {
        let told = socket.send(&[0; 1450]).is_err() || path_mtu_of(&socket, device)? < u32::try_from(WIRE_MTU)?;
        ensure!(told || socket.recv(&mut [0; 2000]).is_ok(), "{device}: neither told nor answered");
        Ok(())
    })
}

/// The MTU of the path to `peer`, as a connected socket knows it.
fn path_mtu_of(socket: &impl AsRawFd, peer: IpAddr) -> Result<u32> {
    let (level, option) = match peer {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu = 0u32;
    let mut length = libc::socklen_t::try_from(size_of_val(&mtu))?;
    // SAFETY: the kernel writes at most `length` bytes.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut length) };
    ensure!(got == 0, "the path's MTU: {}", std::io::Error::last_os_error());
    Ok(mtu)
}

/// A host behind two routers, of which the first is the host at the other end of the wire. The link between the routers
/// has a small MTU that neither end knows.
struct Remote {
    host: Namespace,
    _router: Namespace,
}

impl Remote {
    /// The remote host's addresses.
    const ADDRESSES: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 7))];

    fn behind(lab: &Lab, wire: &Wire, mtu: u16) -> Result<Self> {
        let (host, router) = (Namespace::new("remote")?, Namespace::new("router")?);
        let narrow = [["192.168.9.1/24", "fd00:9::1/64"], ["192.168.9.2/24", "fd00:9::2/64"]];
        wire.host.connect(("narrow0", &narrow[0]), &router, ("narrow0", &narrow[1]))?;
        router.connect(
            ("wide0", &["203.0.113.1/24", "2001:db8:3::1/64"]),
            &host,
            ("eth0", &["203.0.113.7/24", "2001:db8:3::7/64"]),
        )?;
        for ns in [&wire.host, &router] {
            cards::set_mtu(ns, "narrow0", mtu.into())?;
            ns.run(|| {
                for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                    std::fs::write(format!("/proc/sys/net/{file}"), "1").with_context(|| file.to_owned())?;
                }
                Ok(())
            })?;
        }
        let ways = [("192.168.9.1", "192.168.9.2", "203.0.113.1"), ("fd00:9::1", "fd00:9::2", "2001:db8:3::1")];
        for ((first, second, last), ((far, device), remote)) in
            ways.into_iter().zip(Beyond::PAIRS.into_iter().zip(Self::ADDRESSES))
        {
            lab::route_by(&lab.device.ns, remote, far)?;
            lab::route_by(&wire.host, remote, second.parse()?)?;
            lab::route_by(&router, device, first.parse()?)?;
            lab::route_by(&host, device, last.parse()?)?;
        }
        Ok(Self { host, _router: router })
    }
}

/// With a filter, denied addresses get no answer, and everything else passes as before.
fn deny(lab: &Lab, wire: &Wire, xdp: &str, port: u16) -> Result<()> {
    let status = lab.get("/status")?;
    let uplinks = status["uplinks"].as_array().context("uplinks")?;
    ensure!(uplinks.contains(&json!({"name": LINK, "xdp": xdp})), "{uplinks:?}: {}", status["conditions"]);
    // XDP on frames in several buffers came with kernel 5.18; older kernels get another program.
    let program = if lab::kernel()? >= (5, 18) { names::PROG_XDP_UPLINK } else { names::PROG_XDP_UPLINK_SINGLE };
    programs::are_loaded([program])?;
    programs::tell()?;
    let [far, _] = watched(lab, wire, || both_ways(lab, wire, port))?;
    plain(&far, WIRE_MTU)?;
    for (source, (_, device)) in cards::DENIED.iter().zip(Beyond::PAIRS) {
        let source: IpAddr = source.parse()?;
        let grown = lab.counted(|| {
            let asked = wire.host.run(|| {
                let socket = UdpSocket::bind((source, 0))?;
                socket.connect((device, 8080))?;
                socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                socket.send(b"let me in")?;
                Ok(socket.recv(&mut [0; 64]).is_ok())
            })?;
            if asked { bail!("{source} is answered") } else { Ok(()) }
        })?;
        ensure!(grown["deny-listed"] > 0, "{source}: {grown:?}");
    }
    Ok(())
}
