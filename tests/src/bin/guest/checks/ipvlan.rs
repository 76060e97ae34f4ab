//! Containers on the network of one of the device's links, with its MAC: ipvlan pools.

use super::forwarding::talks;
use super::{Absent, kinds};
use crate::console;
use crate::lab::{self, Lab};
use crate::{icmp, programs};
use anyhow::{Context, Result, bail, ensure};
use harness::forger::{MARK, is_forged};
use harness::raw::RawSocket;
use harness::{Container, Ear, Namespace, SOON, echo, eventually, frame, patience};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use rtnetlink::packet_route::link::{InfoData, InfoIpVlan, InfoKind, IpVlanFlags, IpVlanMode};
use rtnetlink::{LinkIpVlan, LinkMessageBuilder, LinkUnspec};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

const PARENT: &str = "lan0";
const DEVICE: [&str; 2] = ["10.79.0.250/24", "fd00:79::250/64"];
const HOST: [&str; 2] = ["10.79.0.1/24", "fd00:79::1/64"];
const HOSTS: [&str; 2] = ["10.79.0.1", "fd00:79::1"];
/// An address of that network that nobody has.
const FREE: &str = "10.79.0.77";
const ALL: [u8; 6] = [0xff; 6];
const CLOSED: u16 = 81;

fn config(policies: Value) -> Value {
    let mut config = lab::config();
    config["network"]["pools"]["lan"] = json!({
        "type": "ipvlan", "parent": PARENT,
        "subnet": "10.79.0.0/24", "gateway": "10.79.0.1", "subnet6": "fd00:79::/64", "gateway6": "fd00:79::1",
    });
    config["network"]["policies"] = policies;
    config
}

/// A host behind [`PARENT`], on which the lab's pool `lan` is.
struct Lan {
    host: Namespace,
}

impl Lan {
    fn attach(lab: &Lab) -> Result<[Container; 2]> {
        Ok([
            lab::attach_with(&lab.device, "x", "lan", &["80/tcp"])?,
            lab::attach_with(&lab.device, "y", "lan", &["80/tcp"])?,
        ])
    }
}

/// Makes the pool, and runs `check`. A kernel without tcx or ipvlan has no such pool, and says why.
fn with(lab: &mut Lab, check: fn(&mut Lab, &Lan) -> Result<()>) -> Result<()> {
    let host = Namespace::new("lan")?;
    lab.device.ns.connect((PARENT, &DEVICE), &host, ("eth0", &HOST))?;
    let loaded = lab.reload(&config(json!([])));
    let refusal = match (lab::kernel()? >= (6, 6), kinds::has("ipvlan")?) {
        (false, _) => Some("ipvlan pools need kernel 6.6"),
        (true, false) => Some("this kernel has no ipvlan"),
        (true, true) => None,
    };
    // The host lives as long as the parent is needed, which is the other end of its link.
    let lan = Lan { host };
    let done = match refusal {
        Some(why) => refused(loaded, why),
        None => loaded.and_then(|()| check(lab, &lan)),
    };
    if done.is_err() {
        // The check's own error is the one to report.
        for name in ["x", "y"] {
            if let Err(why) = lab.device.cli(&["detach", name]).ok() {
                console::fact(&format!("{why:#}"));
            }
        }
    }
    lab.reload(&lab::config())?;
    lab::delete_link(&lab.device.ns, PARENT)?;
    match (done, refusal) {
        (Ok(()), Some("this kernel has no ipvlan")) => Err(Absent.into()),
        (done, _) => done,
    }
}

fn refused(loaded: Result<()>, reason: &str) -> Result<()> {
    let Err(why) = loaded else { bail!("a pool that the kernel cannot have") };
    let why = format!("{why:#}");
    ensure!(why.contains(reason), "{why}");
    Ok(())
}

fn detach(lab: &Lab) -> Result<()> {
    for name in ["x", "y"] {
        lab.device.cli(&["detach", name]).ok()?;
    }
    let status = lab.get("/status")?;
    ensure!(status["conditions"] == json!([]), "{status}");
    for dir in ["child_out", "child_in"] {
        let left: Vec<_> = std::fs::read_dir(lab.device.pins().join("links").join(dir))?.collect();
        ensure!(left.is_empty(), "{dir}: {left:?}");
    }
    Ok(())
}

/// Containers of such a pool reach each other and the link's other hosts, which reach what is published; the device and
/// they do not reach each other. Rules decide, and a restart of the daemon changes nothing.
pub fn pool(lab: &mut Lab) -> Result<()> {
    with(lab, |lab, lan| {
        let [x, y] = Lan::attach(lab)?;
        programs::tell()?;
        ensure!(x.ns.mac("eth0")? == lab.device.ns.mac(PARENT)?, "x has a MAC of its own");
        talks(&x, &y, 7670)?;
        talks(&y, &x, 7671)?;
        on_the_lan(lab, lan, &x)?;
        link_local(&x, &y)?;
        rules(lab, &x, &y)?;
        restarts(lab, lan, &x, &y)?;
        detach(lab)?;
        ensure!(x.ns.mac("eth0").is_err() && y.ns.mac("eth0").is_err(), "a link is left");
        comes_back(lab, lan)
    })
}

fn on_the_lan(lab: &Lab, lan: &Lan, x: &Container) -> Result<()> {
    for (own, host) in x.addresses().into_iter().zip(HOSTS) {
        let host: IpAddr = host.parse()?;
        icmp::ping(&x.ns, host, 2)?;
        echo::serve(&lan.host, host, 7672)?;
        let seen = echo::tcp(&x.ns, SocketAddr::new(host, 7672), b"out")?;
        ensure!(seen.ip() == own, "{own} was seen as {seen}");
        echo::serve(&x.ns, own, 80)?;
        echo::tcp(&lan.host, SocketAddr::new(own, 80), b"in")?;
        let grown = lab.counted(|| {
            icmp::silent(&lan.host, own)?;
            let any: IpAddr = if own.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            lan.host.run(|| Ok(UdpSocket::bind((any, 0))?.send_to(MARK, (own, CLOSED))?)).map(drop)
        })?;
        ensure!(grown["unpublished"] > 1, "{grown:?}");
    }
    // The kernel passes nothing between an ipvlan and its parent, and pv-net neither.
    for device in ["10.79.0.250", "fd00:79::250"] {
        icmp::silent(&x.ns, device.parse()?)?;
    }
    for own in x.addresses() {
        icmp::silent(&lab.device.ns, own)?;
    }
    Ok(())
}

/// Each has a link-local address of its own, by which the other reaches it.
fn link_local(x: &Container, y: &Container) -> Result<()> {
    let (own, other) = (link_local_of(x)?, link_local_of(y)?);
    ensure!(own != other, "{own} twice");
    let link = x.ns.run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
    let open = |ns: &Namespace, port: u16| ns.run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?));
    let (from, to) = (open(&x.ns, 0)?, open(&y.ns, 7680)?);
    from.send_to(MARK, SocketAddrV6::new(other, 7680, 0, link))?;
    to.set_read_timeout(Some(patience(Duration::from_secs(2))))?;
    let (_, seen) = to.recv_from(&mut [0u8; 64]).context("by its link-local address")?;
    ensure!(seen.ip() == own, "{own} was seen as {seen}");
    Ok(())
}

fn link_local_of(container: &Container) -> Result<Ipv6Addr> {
    container.ns.run(|| {
        let all = nix::ifaddrs::getifaddrs()?.filter(|found| found.interface_name == "eth0");
        let mut all = all.filter_map(|found| Some(found.address?.as_sockaddr_in6()?.ip()));
        all.find(Ipv6Addr::is_unicast_link_local).context("a link-local address")
    })
}

fn rules(lab: &Lab, x: &Container, y: &Container) -> Result<()> {
    let deny = json!([
        {"from": {"container": "x"}, "to": {"container": "y"}, "action": "deny"},
        {"from": {"container": "y"}, "to": {"cidr": "10.79.0.1/32"}, "action": "deny"},
    ]);
    lab.reload(&config(deny))?;
    let grown = lab.counted(|| {
        for dst in y.addresses() {
            icmp::silent(&x.ns, dst)?;
        }
        icmp::silent(&y.ns, HOSTS[0].parse()?)
    })?;
    ensure!(grown["policy-denied"] > 2, "{grown:?}");
    icmp::ping(&y.ns, HOSTS[1].parse()?, 1).context("beside the rules")?;
    lab.reload(&config(json!([])))?;
    talks(x, y, 7673).context("no rules any more")
}

fn restarts(lab: &mut Lab, lan: &Lan, x: &Container, y: &Container) -> Result<()> {
    for (signal, port) in [(Signal::SIGTERM, 7674), (Signal::SIGKILL, 7676)] {
        lab.device.stop(signal)?;
        talks(x, y, port).context("without a daemon")?;
        for own in x.addresses() {
            icmp::silent(&lan.host, own)?;
        }
        lab.device.start()?;
        talks(x, y, port + 1).context("with a new one")?;
        let status = lab.get("/status")?;
        ensure!(status["conditions"] == json!([]), "{status}");
    }
    Ok(())
}

/// A parent that goes takes the interfaces along, and the pool is there again when it is back.
fn comes_back(lab: &Lab, lan: &Lan) -> Result<()> {
    let x = lab::attach_with(&lab.device, "x", "lan", &[])?;
    lab::delete_link(&lab.device.ns, PARENT)?;
    ensure!(x.ns.mac("eth0").is_err(), "the link is left");
    let says = |what: &str, wanted: bool| {
        eventually(SOON, || {
            let said = lab.get("/status")?["conditions"].to_string();
            ensure!(said.contains(what) == wanted, "{said}");
            Ok(())
        })
    };
    says("no such link", true)?;
    lab.device.ns.connect((PARENT, &DEVICE), &lan.host, ("eth0", &HOST))?;
    says("no such link", false)?;
    lab.device.cli(&["detach", "x"]).ok()?;
    let x = lab::attach_with(&lab.device, "x", "lan", &[])?;
    icmp::ping(&x.ns, HOSTS[0].parse()?, 1)?;
    lab.device.cli(&["detach", "x"]).ok()?;
    Ok(())
}

/// Sends frames by a link, whatever becomes of them: what a program drops at egress, the sender is told.
fn send(socket: &RawSocket, frames: &[Vec<u8>]) -> Result<()> {
    for frame in frames {
        match socket.send(frame) {
            Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOBUFS) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Frames that `x` must not send to `y`, nor anybody on the LAN in the name of `x`: `to` is the MAC of both.
fn forged(x: &Container, y: &Container, to: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    let stranger: [IpAddr; 2] = [FREE.parse()?, "fd00:79::77".parse()?];
    let hosts: [IpAddr; 2] = [HOSTS[0].parse()?, HOSTS[1].parse()?];
    for dst_mac in [to, ALL] {
        for srcs in [stranger, hosts] {
            for (src, dst) in srcs.into_iter().zip(y.addresses()) {
                let packet = frame::udp((src, 4000), (dst, 4000), MARK);
                all.push(frame::ethernet(to, dst_mac, frame::kind(&packet), &packet));
            }
        }
        // In the other's name to itself: no flow is known.
        for (src, dst) in x.addresses().into_iter().zip(y.addresses()) {
            let packet = frame::udp((src, 4001), (dst, 4001), MARK);
            all.push(frame::ethernet(to, dst_mac, frame::kind(&packet), &packet));
        }
    }
    Ok(all)
}

/// ARP and neighbour discovery that give the router another MAC, to all.
fn spoofed_router() -> Result<Vec<Vec<u8>>> {
    let mac = [2, 0, 0xde, 0xad, 0, 0x11];
    let (v4, v6) = (HOSTS[0].parse()?, HOSTS[1].parse::<Ipv6Addr>()?);
    let all_nodes = "ff02::1".parse()?;
    let advertisement = frame::neighbour(136, v6, all_nodes, v6, mac);
    Ok(vec![
        frame::ethernet(mac, ALL, frame::ARP, &frame::arp(2, (mac, v4), (ALL, v4))),
        frame::ethernet(mac, [0x33, 0x33, 0, 0, 0, 1], frame::IPV6, &advertisement),
    ])
}

/// Fails when one of `ears` has heard a forged packet, or `y` does not reach the router any more.
fn heard_none(y: &Container, ears: &[Ear]) -> Result<()> {
    for host in HOSTS {
        icmp::ping(&y.ns, host.parse()?, 1).context("the router")?;
    }
    for ear in ears {
        let heard = ear.heard()?;
        ensure!(!heard.iter().any(|packet| is_forged(packet)), "{}: {heard:02x?}", ear.name());
    }
    Ok(())
}

/// What a container must not be able to do as root in its namespace, also past the program on its interface.
pub fn attacker(lab: &mut Lab) -> Result<()> {
    with(lab, |lab, lan| {
        let [x, y] = Lan::attach(lab)?;
        let to = lab.device.ns.mac(PARENT)?;
        let ears = [Ear::stack(&y.ns)?, Ear::stack(&lab.device.ns)?];
        let frames = [forged(&x, &y, to)?, spoofed_router()?].concat();
        // By the program on the interface, and with packet sockets that leave it out.
        let socket = RawSocket::open(&x.ns, "eth0")?;
        let grown = lab.counted(|| send(&socket, &forged(&y, &x, to)?))?;
        ensure!(grown["spoofed-ipv4"] > 0 && grown["spoofed-ipv6"] > 0, "{grown:?}");
        let grown = lab.counted(|| send(&socket, &spoofed_router()?))?;
        ensure!(grown["spoofed-mac"] == 2, "{grown:?}");
        socket.leave_out_programs()?;
        let grown = lab.counted(|| send(&socket, &frames).and_then(|()| heard_none(&y, &ears)))?;
        ensure!(grown["forged-source"] > 0, "{grown:?}");
        further(lab, &x, &y, &ears, &frames).context("by a further ipvlan")?;
        on_the_wire(lab, lan, &x, &y, &ears).context("by the wire")?;
        taken_address(lab, lan, &x).context("an address that it takes")?;
        changed_mode(lan, &x, &y).context("in another mode")?;
        detach(lab)
    })
}

/// A further ipvlan that a container makes on its own one has no program. It cannot reach other containers either, and
/// changing the flags of all interfaces on the parent does not help.
fn further(lab: &Lab, x: &Container, y: &Container, ears: &[Ear], frames: &[Vec<u8>]) -> Result<()> {
    let eth0 = x.ns.run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
    let rogue = LinkIpVlan::new("rogue", eth0, IpVlanMode::L2).up().build();
    lab::netlink(&x.ns, async |handle| Ok(handle.link().add(rogue).execute().await?))?;
    let socket = RawSocket::open(&x.ns, "rogue")?;
    let grown = lab.counted(|| send(&socket, frames).and_then(|()| heard_none(y, ears)))?;
    ensure!(grown["forged-source"] > 0, "{grown:?}");
    change(x, vec![InfoIpVlan::Mode(IpVlanMode::L2), InfoIpVlan::Flags(IpVlanFlags::empty())])?;
    let grown = lab.counted(|| send(&socket, frames).and_then(|()| heard_none(y, ears)))?;
    ensure!(grown["forged-source"] > 10, "{grown:?}");
    change(x, vec![InfoIpVlan::Mode(IpVlanMode::L2), InfoIpVlan::Flags(IpVlanFlags::Vepa)])?;
    lab::delete_link(&x.ns, "rogue")
}

/// Changes mode or flags of all interfaces on the parent, as a container with the device's user namespace can.
fn change(x: &Container, to: Vec<InfoIpVlan>) -> Result<()> {
    let index = x.ns.run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
    let mut message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpVlan)
        .set_info_data(InfoData::IpVlan(to))
        .build();
    message.header.index = index;
    lab::netlink(&x.ns, async |handle| Ok(handle.link().set(message).execute().await?))
}

/// Nobody on the LAN speaks for a container, to another one or to the device.
fn on_the_wire(lab: &Lab, lan: &Lan, x: &Container, y: &Container, ears: &[Ear]) -> Result<()> {
    let socket = RawSocket::open(&lan.host, "eth0")?;
    let to = lab.device.ns.mac(PARENT)?;
    let host = lan.host.mac("eth0")?;
    let device: [IpAddr; 2] = ["10.79.0.250".parse()?, "fd00:79::250".parse()?];
    let mut frames = Vec::new();
    for src in [host, to] {
        for targets in [y.addresses(), device] {
            for (theirs, dst) in x.addresses().into_iter().zip(targets) {
                let packet = frame::udp((theirs, 4002), (dst, 80), MARK);
                frames.push(frame::ethernet(src, to, frame::kind(&packet), &packet));
            }
        }
    }
    let grown = lab.counted(|| send(&socket, &frames).and_then(|()| heard_none(y, ears)))?;
    ensure!(grown["forged-source"] == 8, "{grown:?}");
    Ok(())
}

/// The kernel gives an interface what is for any address on it. What is not for the lease's is dropped there.
fn taken_address(lab: &Lab, lan: &Lan, x: &Container) -> Result<()> {
    x.ns.configure("eth0", &[&format!("{FREE}/24")])?;
    let ear = Ear::stack(&x.ns)?;
    let socket = RawSocket::open(&lan.host, "eth0")?;
    let packet = frame::udp((HOSTS[0].parse()?, 4003), (FREE.parse()?, 80), MARK);
    let to = lab.device.ns.mac(PARENT)?;
    let frame = frame::ethernet(lan.host.mac("eth0")?, to, frame::IPV4, &packet);
    let grown = lab.counted(|| socket.send(&frame).and_then(|()| icmp::silent(&lan.host, FREE.parse()?)))?;
    ensure!(grown["forged-source"] > 0, "{grown:?}");
    ensure!(!ear.heard()?.iter().any(|packet| is_forged(packet)), "it arrived");
    Ok(())
}

/// In mode l3s the kernel gives packets from the wire to interfaces past their programs: then nothing arrives.
fn changed_mode(lan: &Lan, x: &Container, y: &Container) -> Result<()> {
    let closed = |what: &str| {
        for own in y.addresses() {
            icmp::silent(&lan.host, own).context(what.to_owned())?;
        }
        Ok::<(), anyhow::Error>(())
    };
    for mode in [IpVlanMode::L3, IpVlanMode::L3S] {
        change(x, vec![InfoIpVlan::Mode(mode)])?;
        closed(&format!("{mode:?}"))?;
    }
    change(x, vec![InfoIpVlan::Mode(IpVlanMode::L2), InfoIpVlan::Flags(IpVlanFlags::Vepa)])?;
    closed("l2 again")?;
    icmp::ping(&y.ns, HOSTS[0].parse()?, 1)
}
