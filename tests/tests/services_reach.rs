//! What a pool's gateway offers is reached by that gateway alone, and what asks for it reaches nobody else.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::dhcp::{self, CLIENT, CLIENT6, SERVER, SERVER6};
use harness::raw::RawSocket;
use harness::{AT_ONCE, Container, Device, Ear, Namespace, SOON, eventually, frame, groups};
use serde_json::{Value, json};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

/// All DHCPv6 servers on a link.
const SERVERS6: &str = "ff02::1:2";
const ROUTERS: &str = "ff02::2";
/// What no other packet has in it.
const MARK: &[u8; 16] = b"services reached";

struct Lab {
    device: Device,
    a: Container,
    b: Container,
    _outside: Namespace,
}

impl Lab {
    fn new(config: &Value) -> Result<Self> {
        let mut device = Device::new(config)?;
        let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
        device.start()?;
        let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
        Ok(Self { device, a, b, _outside: outside })
    }

    fn bridge(&self) -> Result<(u32, Ipv6Addr)> {
        let index = self.device.ns.run(|| Ok(nix::net::if_::if_nametoindex("pvbr3")?))?;
        let own = eventually(SOON, || {
            let said = self.device.ns.ip("-6 -o addr show dev pvbr3 scope link -tentative")?;
            let found = said.split_whitespace().nth(3).and_then(|a| a.split('/').next());
            Ok(found.context("no link-local address")?.parse()?)
        })?;
        Ok((index, own))
    }

    /// The pool's servers for DHCP, on the bridge as such servers are.
    fn servers(&self) -> Result<[UdpSocket; 2]> {
        let (index, _) = self.bridge()?;
        self.device.ns.run(|| {
            let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER))?;
            four.set_broadcast(true)?;
            let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, SERVER6))?;
            six.join_multicast_v6(&SERVERS6.parse()?, index)?;
            for socket in [&four, &six] {
                nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::BindToDevice, &"pvbr3".into())?;
                socket.set_read_timeout(Some(harness::patience(SOON)))?;
            }
            Ok([four, six])
        })
    }

    fn reload(&self, config: &Value) -> Result<()> {
        self.device.configure(config)?;
        self.device.cli(&["reload"]).ok().map(drop)
    }
}

fn with_access(access: &str) -> Value {
    let mut config = configs::masqueraded();
    config["network"]["pools"]["internal"]["host_access"] = json!(access);
    config
}

fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    match IpAddr::from(pv_net_common::Ip::link_local(mac)) {
        IpAddr::V6(addr) => addr,
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
    }
}

/// Answers datagrams with what they say, for as long as the test runs.
fn serve(device: &Device, at: SocketAddr) -> Result<()> {
    let socket = device.ns.run(|| UdpSocket::bind(at).with_context(|| at.to_string()))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    Ok(())
}

/// Whether a datagram from inside `from` is answered with what it says: at once, or soon where an answer is wanted, since
/// a lost neighbour solicitation is repeated only after a second.
fn is_answered(from: &Container, to: SocketAddr, want: bool) -> Result<bool> {
    from.ns.run(|| {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(if want { SOON } else { harness::patience(AT_ONCE) }))?;
        socket.send(MARK)?;
        match socket.recv(&mut [0; 64]) {
            Ok(_) => Ok(true),
            Err(e) if is_refusal(&e) => Ok(false),
            Err(e) => Err(e.into()),
        }
    })
}

fn is_refusal(e: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut, WouldBlock,
    };
    let kinds = [ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut, WouldBlock];
    kinds.contains(&e.kind())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn services_are_reached_by_the_pools_own_gateway_alone() -> Result<()> {
    let mut config = with_access("services");
    for pool in ["internal", "management"] {
        config["network"]["pools"][pool]["dns"] = json!(false);
    }
    let lab = Lab::new(&config)?;
    // Somebody's servers, on addresses too that only the kernel's routes know to be the device's.
    lab.device.ns.ip("route add local 198.51.100.0/24 dev lo")?;
    lab.device.ns.ip("-6 route add local 2001:db8:77::/64 dev lo")?;
    lab.device.ns.run(|| Ok(std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")?))?;
    let index = lab.a.ns.run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
    let (link, bridge) = lab.bridge()?;
    let own: [IpAddr; 2] = ["10.0.3.1".parse()?, "fd00:5056:0:3::1".parse()?];
    let others: [IpAddr; 6] = [
        "10.0.4.1".parse()?,
        "fd00:5056:0:4::1".parse()?,
        "192.0.2.1".parse()?,
        "2001:db8:1::1".parse()?,
        "198.51.100.7".parse()?,
        "2001:db8:77::7".parse()?,
    ];
    for port in [53, SERVER, SERVER6] {
        for at in own.iter().chain(&others) {
            serve(&lab.device, (*at, port).into())?;
        }
        serve(&lab.device, SocketAddrV6::new(bridge, port, 0, link).into())?;
    }
    for (access, gateway, other) in [("services", true, false), ("all", true, true), ("none", false, false)] {
        config["network"]["pools"]["internal"]["host_access"] = json!(access);
        lab.reload(&config)?;
        for port in [53, SERVER, SERVER6] {
            for (addresses, want) in [(&own[..], gateway), (&others[..4], other)] {
                for to in addresses {
                    let got = is_answered(&lab.a, (*to, port).into(), want)?;
                    ensure!(got == want, "{access}: {to} port {port}: answered: {got}");
                }
            }
            let got = is_answered(&lab.a, SocketAddrV6::new(bridge, port, 0, index).into(), gateway)?;
            ensure!(got == gateway, "{access}: {bridge} port {port}: answered: {got}");
            // Whoever may reach all of the device reaches what its routes call local, too.
            for to in &others[4..] {
                let got = is_answered(&lab.a, (*to, port).into(), other)?;
                ensure!(got == other, "{access}: {to} port {port}: answered: {got}");
            }
        }
        // Ping is no service of the gateway alone.
        for to in own.iter().chain(&others[..4]) {
            let got = lab.a.ns.ping(to, 1).is_ok();
            ensure!(got == (access != "none"), "{access}: ping of {to}: {got}");
        }
    }
    // What is said of it is what is done.
    config["network"]["pools"]["internal"]["host_access"] = json!("services");
    lab.reload(&config)?;
    for (to, want) in
        [("10.0.3.1", "allow"), ("fd00:5056:0:3::1", "allow"), ("10.0.4.1", "deny"), ("192.0.2.1", "deny")]
    {
        let said = lab.device.json(&["policy", "explain", "a", to, "udp/53"])?;
        ensure!(said["verdict"] == want, "{to}: {said}");
    }
    Ok(())
}

/// A host's questions to all servers, by MAC and IP packet, and whether a server on the bridge hears them.
fn questions(mac: [u8; 6], [v4, v6]: [IpAddr; 2]) -> Result<Vec<(&'static str, bool, Vec<u8>)>> {
    let own: IpAddr = link_local(mac).into();
    let request = dhcp::request(dhcp::DISCOVER, mac, MARK);
    let zero = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let udp4 = |src: IpAddr, to: [u8; 4]| {
        let packet = frame::udp((src, CLIENT), (IpAddr::from(to), SERVER), &request);
        frame::ethernet(mac, groups::BROADCAST, frame::IPV4, &packet)
    };
    let udp6 = |src: IpAddr, to: &str| -> Result<Vec<u8>> {
        let to: Ipv6Addr = to.parse()?;
        let message = [&[1, 7, 7, 7][..], MARK].concat();
        let packet = frame::udp((src, CLIENT6), (to.into(), SERVER6), &message);
        Ok(frame::ethernet(mac, groups::mac(to.into()), frame::IPV6, &packet))
    };
    let routers: Ipv6Addr = ROUTERS.parse()?;
    // An option of 24 bytes that is skipped.
    let solicitation = [&[133, 0, 0, 0, 0, 0, 0, 0, 200, 3][..], MARK, &[0; 6]].concat();
    let mut solicitation = frame::icmp(own, routers.into(), &solicitation);
    solicitation[7] = 255;
    Ok(vec![
        ("DISCOVER", true, udp4(zero, [255; 4])),
        // The kernel takes it for a martian: no source may be nobody's but to this one.
        ("DISCOVER to the pool's broadcast address", false, udp4(zero, [10, 0, 3, 255])),
        ("REQUEST that rebinds", true, udp4(v4, [255; 4])),
        ("SOLICIT", true, udp6(own, SERVERS6)?),
        ("SOLICIT from its address", true, udp6(v6, SERVERS6)?),
        ("router solicitation", false, frame::ethernet(mac, groups::mac(routers.into()), frame::IPV6, &solicitation)),
    ])
}

/// Sends the questions of a host with a MAC and addresses. Ends when `b` has heard what the host sends to everybody.
fn ask_all(lab: &Lab, who: &str, out: &RawSocket, mac: [u8; 6], addresses: [IpAddr; 2]) -> Result<()> {
    let [four, six] = lab.servers()?;
    // Containers hear all of it, whatever it is addressed to.
    let others = Ear::link(&lab.b.ns, "eth0")?;
    let bridge = RawSocket::open(&lab.device.ns, "pvbr3")?;
    for (what, has_server, question) in questions(mac, addresses)? {
        out.send(&question)?;
        if has_server {
            let server = if question[12..14] == [8, 0] { &four } else { &six };
            let mut buffer = [0; 1500];
            let (len, from) = server.recv_from(&mut buffer).with_context(|| format!("{who}: {what}"))?;
            let is_it = buffer[..len].windows(MARK.len()).any(|w| w == MARK);
            ensure!(is_it, "{who}: {what}: something else from {from}");
        }
        let seen = bridge.receive(SOON, |f| f.windows(MARK.len()).any(|w| w == MARK))?;
        ensure!(seen.is_some(), "{who}: {what}: the device does not hear it");
    }
    // What goes to all does; what was before it on the same way would have come before.
    let packet = frame::udp((addresses[0], 9), (Ipv4Addr::BROADCAST.into(), 9), b"for everybody");
    out.send(&frame::ethernet(mac, groups::BROADCAST, frame::IPV4, &packet))?;
    let mut heard = Vec::new();
    eventually(SOON, || {
        heard.extend(others.heard()?);
        ensure!(heard.iter().any(|f| f.ends_with(b"for everybody")), "{who}: b hears nothing");
        Ok(())
    })?;
    ensure!(!heard.iter().any(|f| f.windows(MARK.len()).any(|w| w == MARK)), "{who}: b hears the questions");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn questions_to_all_servers_reach_the_pools_own_and_no_container() -> Result<()> {
    let lab = Lab::new(&with_access("services"))?;
    let out = RawSocket::open(&lab.a.ns, "eth0")?;
    ask_all(&lab, "a container", &out, lab.a.mac()?, [lab.a.v4.into(), lab.a.v6.into()])?;
    let addresses = ["10.0.3.200/24", "fd00:5056:0:3::c8/64"];
    let lan = Namespace::new("lan")?;
    lab.device.ns.connect(("lan0", &[]), &lan, ("eth0", &addresses))?;
    lab.device.ns.ip("link set lan0 master pvbr3")?;
    let own = ["10.0.3.200".parse()?, "fd00:5056:0:3::c8".parse()?];
    ask_all(&lab, "a LAN port", &RawSocket::open(&lan, "eth0")?, lan.mac("eth0")?, own)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn servers_are_not_asked_where_the_pool_says_none() -> Result<()> {
    let lab = Lab::new(&with_access("none"))?;
    let sockets = lab.servers()?;
    let out = RawSocket::open(&lab.a.ns, "eth0")?;
    let asked = questions(lab.a.mac()?, [lab.a.v4.into(), lab.a.v6.into()])?;
    let asked: Vec<_> = asked.into_iter().filter(|(_, has_server, _)| *has_server).collect();
    let refused = || Ok::<u64, anyhow::Error>(lab.device.counters()?["host-access"]);
    let before = refused()?;
    for (_, _, question) in &asked {
        out.send(question)?;
    }
    eventually(SOON, || {
        let after = refused()?;
        ensure!(after - before == asked.len() as u64, "{} of {} refused", after - before, asked.len());
        Ok(())
    })?;
    for socket in sockets {
        socket.set_nonblocking(true)?;
        ensure!(socket.recv(&mut [0; 64]).is_err(), "a server was asked");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn answers_of_the_pools_own_server_and_router_arrive_whatever_rules_say() -> Result<()> {
    let mut config = with_access("services");
    config["network"]["policies"] = json!([{"from": "host", "to": {"pool": "internal"}, "action": "deny"}]);
    let lab = Lab::new(&config)?;
    let [four, six] = lab.servers()?;
    let (index, _) = lab.bridge()?;
    let b = RawSocket::open(&lab.b.ns, "eth0")?;
    let own = SocketAddrV6::new(link_local(lab.b.mac()?), CLIENT6, 0, index);
    for (what, socket, to) in [
        ("unicast", &four, SocketAddr::from((lab.b.v4, CLIENT))),
        ("broadcast", &four, SocketAddr::from((Ipv4Addr::BROADCAST, CLIENT))),
        ("link-local", &six, own.into()),
    ] {
        socket.send_to(MARK, to)?;
        let seen = b.receive(SOON, |f| f.ends_with(MARK))?;
        ensure!(seen.is_some(), "{what} does not arrive");
    }
    // Another port of a server, or of a client, is nothing of DHCP.
    for (socket, port) in [(&four, 69), (&six, 548)] {
        let to = if port == 69 {
            SocketAddr::from((lab.b.v4, 69))
        } else {
            SocketAddrV6::new(*own.ip(), 548, 0, index).into()
        };
        let before = lab.device.counters()?["policy-denied"];
        // The refusal may be told by the very call.
        let _ = socket.send_to(MARK, to);
        eventually(SOON, || {
            ensure!(lab.device.counters()?["policy-denied"] > before, "port {port}: it passes");
            Ok(())
        })?;
    }
    // An advertisement, as the router on the bridge sends it.
    let advertisement = [&[134, 0, 0, 0, 64, 0, 0, 0][..], &[0; 8], &[200, 3], MARK, &[0; 6]].concat();
    lab.device.ns.run(|| {
        let raw = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet6,
            nix::sys::socket::SockType::Raw,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            nix::sys::socket::SockProtocol::IcmpV6,
        )?;
        nix::sys::socket::setsockopt(&raw, nix::sys::socket::sockopt::Ipv6MulticastHops, &255)?;
        let to = nix::sys::socket::SockaddrIn6::from(SocketAddrV6::new("ff02::1".parse()?, 0, 0, index));
        nix::sys::socket::sendto(raw.as_raw_fd(), &advertisement, &to, nix::sys::socket::MsgFlags::empty())?;
        Ok(())
    })?;
    let seen = b.receive(SOON, |f| f.windows(MARK.len()).any(|w| w == MARK))?;
    ensure!(seen.is_some(), "an advertisement does not arrive");
    Ok(())
}
