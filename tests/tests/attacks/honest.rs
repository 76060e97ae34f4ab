//! What honest programs do still works.

use crate::lab::{self, Both, Lab, PORT, PUBLISHED, WEB, both, gateway, host, uplink};
use anyhow::{Context, Result, ensure};
use harness::configs::UPLINK;
use harness::{Device, Namespace, SOON, dhcp, echo, eventually, frame, groups, patience};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// A DHCP server on every link of `ns`. It offers `yours` in the name of `server`, and answers by broadcast. It ends
/// with the process.
fn serve_dhcp(ns: &Namespace, server: Ipv4Addr, yours: Ipv4Addr) -> Result<()> {
    let socket = ns.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, dhcp::SERVER))?))?;
    socket.set_broadcast(true)?;
    let [a, b, c, _] = server.octets();
    let everybody = SocketAddr::from(([a, b, c, 255], dhcp::CLIENT));
    std::thread::spawn(move || {
        let mut buffer = [0u8; 2000];
        while let Ok((n, _)) = socket.recv_from(&mut buffer) {
            let message = &buffer[..n];
            let (Some(id), Some(mac)) = (message.get(4..8), message.get(28..34)) else { continue };
            // The options follow the magic number; option 53 is the kind of message (RFC 2132 section 9.6).
            let kind = message.windows(3).find(|w| w[0] == 53 && w[1] == 1).map(|w| w[2]);
            let answer = if kind == Some(dhcp::DISCOVER) { dhcp::OFFER } else { dhcp::ACK };
            let (id, mac) = (id.try_into().unwrap_or_default(), mac.try_into().unwrap_or_default());
            let _ = socket.send_to(&dhcp::answer(answer, mac, id, yours, server, b""), everybody);
        }
    });
    Ok(())
}

/// A DHCP client on `link`; it checks that nobody else has its address (RFC 5227).
fn get_lease(ns: &Namespace, link: &str, want: Ipv4Addr) -> Result<()> {
    let words = ["udhcpc", "-i", link, "-n", "-q", "-f", "-a", "-t", "8", "-T", "2", "-s", "/bin/true"];
    let said = ns.command("busybox").args(words).output().context("busybox")?;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    ensure!(said.status.success() && text.contains(&format!("lease of {want} obtained")), "{text}");
    Ok(())
}

#[test]
fn a_container_gets_its_address_by_dhcp_on_its_pools_bridge() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    serve_dhcp(&lab.device.ns, Ipv4Addr::new(10, 0, 3, 1), lab.a.v4)?;
    get_lease(&lab.a.ns, "eth0", lab.a.v4)
}

#[test]
fn the_device_is_dhcp_client_and_server_on_its_uplink() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    serve_dhcp(&lab.out, Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::new(192, 0, 2, 50))?;
    get_lease(&lab.device.ns, UPLINK, Ipv4Addr::new(192, 0, 2, 50))?;
    let lab = lab::lab(|_| ())?;
    serve_dhcp(&lab.device.ns, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 60))?;
    get_lease(&lab.out, "eth0", Ipv4Addr::new(192, 0, 2, 60))
}

/// Groups with their ports: mDNS (RFC 6762) and SSDP.
const SPOKEN: [(IpAddr, u16); 4] = [
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 5353),
    (IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)), 5353),
    (IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900),
    (IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc)), 1900),
];

/// A container's socket that is a member of a group, and the address to send to all members.
fn member(ns: &Namespace, own: Ipv4Addr, (group, port): (IpAddr, u16)) -> Result<(UdpSocket, SocketAddr)> {
    ns.run(|| {
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let (socket, to) = match group {
            IpAddr::V4(group) => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
                socket.join_multicast_v4(&group, &own)?;
                (socket, SocketAddr::from((group, port)))
            }
            IpAddr::V6(group) => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
                socket.join_multicast_v6(&group, index)?;
                (socket, SocketAddrV6::new(group, port, 0, index).into())
            }
        };
        socket.set_read_timeout(Some(patience(Duration::from_millis(500))))?;
        Ok((socket, to))
    })
}

/// Waits for the datagram `want`, and gives its sender.
fn receive(socket: &UdpSocket, want: &[u8]) -> Result<SocketAddr> {
    let mut buffer = [0u8; 200];
    loop {
        let (n, from) = socket.recv_from(&mut buffer)?;
        if &buffer[..n] == want {
            return Ok(from);
        }
    }
}

/// RFC 6762 section 6: answers go to the group, or to the host that asked.
#[test]
fn mdns_and_ssdp_work_within_a_pool() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    for group in SPOKEN {
        let (asks, to) = member(&lab.a.ns, lab.a.v4, group)?;
        let (answers, back) = member(&lab.b.ns, lab.b.v4, group)?;
        eventually(SOON, || {
            asks.send_to(b"who is there", to)?;
            let from = receive(&answers, b"who is there").context("the question")?;
            answers.send_to(b"I am, to you", from)?;
            receive(&asks, b"I am, to you").context("the answer")?;
            answers.send_to(b"I am, to all", back)?;
            receive(&asks, b"I am, to all").context("the answer to all").map(drop)
        })
        .with_context(|| format!("{group:?}"))?;
    }
    Ok(())
}

#[test]
fn a_ping_of_the_broadcast_is_answered_where_the_kernel_does() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    for ns in [&lab.b.ns, &lab.device.ns] {
        lab::sysctl(ns, "net/ipv4/icmp_echo_ignore_broadcasts", "0")?;
    }
    lab.a.ns.settle()?;
    let bridge = lab::link_local_of(&lab.device.ns, "pvbr3")?.to_string();
    let b = lab::link_local(lab.b.mac()?).to_string();
    let (b4, gateway4) = (lab.b.v4.to_string(), "10.0.3.1".to_owned());
    for (to, answers) in [("10.0.3.255", [b4, gateway4]), ("ff02::1%eth0", [b, bridge])] {
        eventually(SOON, || {
            let done = lab.a.ns.command("ping").args(["-n", "-b", "-c2", "-i0.3", "-W2", to]).output()?;
            let said = String::from_utf8_lossy(&done.stdout);
            for answer in &answers {
                ensure!(said.contains(&format!("from {answer}")), "{answer} does not answer: {said}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

const FAR: Both =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9))];
const NARROW: u32 = 1300;

/// A lab in which the host outside is a router, and another host is behind a link with a small MTU.
fn with_far_host() -> Result<(Lab, Namespace)> {
    let lab = lab::published(|_| ())?;
    let far = Namespace::new("far")?;
    lab.out.connect(
        ("eth1", &["203.0.113.1/24", "2001:db8:9::1/64"]),
        &far,
        ("eth0", &["203.0.113.9/24", "2001:db8:9::9/64"]),
    )?;
    lab.out.ip(&format!("link set eth1 mtu {NARROW}"))?;
    far.ip(&format!("link set eth0 mtu {NARROW}"))?;
    lab::sysctl(&lab.out, "net/ipv4/ip_forward", "1")?;
    lab::sysctl(&lab.out, "net/ipv6/conf/all/forwarding", "1")?;
    far.ip("route add default via 203.0.113.1")?;
    far.ip("-6 route add default via 2001:db8:9::1")?;
    lab.device.ns.ip("route add default via 192.0.2.9")?;
    lab.device.ns.ip("-6 route add default via 2001:db8:1::9")?;
    Ok((lab, far))
}

/// RFC 1191 and RFC 8201: the errors of a router on the path reach the sender, in both directions.
#[test]
fn path_mtu_is_found() -> Result<()> {
    let (lab, far) = with_far_host()?;
    echo::serve(&lab.a.ns, Ipv6Addr::UNSPECIFIED.into(), WEB)?;
    let blob: Vec<u8> = (0..300_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for (far_addr, device) in FAR.into_iter().zip(uplink()) {
        echo::serve(&far, far_addr, PORT)?;
        eventually(SOON, || echo::tcp(&lab.a.ns, (far_addr, PORT).into(), &blob)).context("out")?;
        eventually(SOON, || echo::tcp(&far, (device, PUBLISHED).into(), &blob)).context("in")?;
        // The first datagram that is too large gives an error; afterwards the socket knows the MTU.
        eventually(SOON, || {
            let _ = lab.a.ns.sh(&format!("ping -n -c1 -W1 -M do -s 1400 {far_addr}"));
            let said = lab.a.ns.ip(&format!("route get {far_addr}"))?;
            ensure!(said.contains(&format!("mtu {NARROW}")), "{said}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn traceroute_sees_the_way() -> Result<()> {
    let (lab, _far) = with_far_host()?;
    for family in [0, 1] {
        for kind in ["", "-I ", "-T "] {
            eventually(SOON, || {
                let said = lab.a.ns.sh(&format!("traceroute -n -q 2 -w 2 -N 1 {kind}{}", FAR[family]))?;
                for hop in [gateway(3)[family], host()[family], FAR[family]] {
                    ensure!(said.contains(&hop.to_string()), "{hop} is not on the way: {said}");
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The kernels find their neighbours by ARP and neighbour discovery after their tables were flushed.
#[test]
fn neighbours_are_found_anew() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let namespaces = [&lab.a.ns, &lab.b.ns, &lab.device.ns];
    for round in 0..3 {
        for ns in namespaces {
            ns.ip("neigh flush all")?;
        }
        for to in lab.b.addresses().into_iter().chain(gateway(3)).chain(host()) {
            eventually(SOON, || lab.a.ns.ping(to, 1)).with_context(|| format!("round {round}: {to}"))?;
        }
        lab.a.ns.sh(&format!("arping -c 2 -w 5 -I eth0 {}", lab.b.v4))?;
    }
    Ok(())
}

/// As keepalived does it: a further address, announced to all. It is refused under a drop reason that tells why.
#[test]
fn an_extra_address_is_refused_by_name() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    // The neighbours are known already, so that not only ARP is tried.
    for to in lab.b.addresses() {
        eventually(SOON, || lab.a.ns.ping(to, 1))?;
    }
    lab.a.ns.ip("addr add 10.0.3.50/24 dev eth0")?;
    lab.a.ns.ip("-6 addr add fd00:5056:0:3::50/64 dev eth0 nodad")?;
    let grown = lab::grown(&lab.device, || {
        let _ = lab.a.ns.sh("arping -U -c 2 -w 3 -I eth0 -s 10.0.3.50 10.0.3.50");
        for (from, to) in both("10.0.3.50", "fd00:5056:0:3::50").into_iter().zip(lab.b.addresses()) {
            let (from, to) = (from.to_string(), to.to_string());
            let said = lab.a.ns.command("ping").args(["-n", "-c1", "-W1", "-I", &from, &to]).output()?;
            ensure!(!said.status.success(), "{from} is answered");
        }
        Ok(())
    })?;
    for reason in ["spoofed-arp", "spoofed-ipv4", "spoofed-ipv6"] {
        ensure!(lab::count(&grown, reason) > 0, "{reason}: {grown:?}");
    }
    // The container's own addresses still work.
    lab.a.ns.ping(format!("-I {} {}", lab.a.v4, lab.b.v4), 1)?;
    lab.a.ns.ping(format!("-I {} {}", lab.a.v6, lab.b.v6), 1)
}

const LAN: [&str; 2] = ["10.0.3.200/24", "fd00:5056:0:3::c8/64"];

/// A host at a bridge that existed before pv-net may reach the containers on it, with its own address, and the device.
#[test]
fn a_lan_host_talks_with_containers_as_itself() -> Result<()> {
    let (lab, lan) = lab::prepared(|_| (), |device: &Device| lab::lan_port(device, "pvbr3", "lan0", &LAN), &[])?;
    let own = both("10.0.3.200", "fd00:5056:0:3::c8");
    for ns in [&lab.a.ns, &lan] {
        echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    }
    for (family, (own, a)) in own.into_iter().zip(lab.a.addresses()).enumerate() {
        echo::serve(&lab.device.ns, gateway(3)[family], PORT)?;
        for _ in 0..2 {
            eventually(SOON, || lan.ping(a, 1))?;
            eventually(SOON, || lab.a.ns.ping(own, 1))?;
            let seen = [echo::tcp(&lan, (a, PORT).into(), &[7; 100_000])?, echo::udp(&lan, (a, PORT).into(), b"pv")?];
            ensure!(seen.iter().all(|seen| seen.ip() == own), "the LAN host is seen as {seen:?}");
            let seen = echo::tcp(&lab.a.ns, (own, PORT).into(), &[7; 100_000])?;
            ensure!(seen.ip() == a, "the container is seen as {seen}");
            echo::udp(&lab.a.ns, (own, PORT).into(), &[7; 5000]).context("in fragments")?;
            echo::udp(&lan, (a, PORT).into(), &[7; 5000]).context("in fragments")?;
            // The device on the same bridge.
            echo::tcp(&lan, (gateway(3)[family], PORT).into(), &[7; 100_000]).context("the device")?;
            echo::udp(&lan, (gateway(3)[family], PORT).into(), &[7; 5000]).context("the device, in fragments")?;
            echo::tcp(&lab.device.ns, (own, PORT).into(), &[7; 100_000]).context("from the device")?;
            lan.ip("neigh flush all")?;
            lab.a.ns.ip("neigh flush all")?;
        }
    }
    Ok(())
}

/// Traffic of the device on its uplink passes, also when the device forwards for others, and in fragments.
#[test]
fn the_devices_own_traffic_on_its_uplink_is_its_own() -> Result<()> {
    let (lab, ()) = lab::prepared(|_| (), lab::forwarding, &["8080:80/tcp", "8080:80/udp"])?;
    for (host, device) in host().into_iter().zip(uplink()) {
        echo::serve(&lab.out, host, PORT)?;
        echo::serve(&lab.device.ns, device, PORT)?;
        for _ in 0..3 {
            for size in [1, 1400, 5000, 20_000] {
                echo::udp(&lab.device.ns, (host, PORT).into(), &vec![5; size])
                    .with_context(|| format!("{size} out"))?;
                echo::udp(&lab.out, (device, PORT).into(), &vec![5; size]).with_context(|| format!("{size} in"))?;
            }
            echo::tcp(&lab.device.ns, (host, PORT).into(), &[5; 300_000])?;
            echo::tcp(&lab.out, (device, PORT).into(), &[5; 300_000])?;
            lab.device.ns.sh(&format!("ping -n -q -c1 -W5 -s 4000 {host}"))?;
            lab.out.sh(&format!("ping -n -q -c1 -W5 -s 4000 {device}"))?;
            lab.device.ns.ip(&format!("neigh flush dev {UPLINK}"))?;
            lab.out.ip("neigh flush dev eth0")?;
        }
    }
    Ok(())
}

/// RFC 4861 section 6: the device solicits routers, and receives their advertisements.
#[test]
fn the_device_hears_routers_on_its_uplink() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    for (name, value) in [("accept_ra", "2"), ("autoconf", "1")] {
        lab::sysctl(&lab.device.ns, &format!("net/ipv6/conf/{UPLINK}/{name}"), value)?;
    }
    let out = lab.outsider()?;
    let all: Ipv6Addr = "ff02::1".parse()?;
    let source = lab::link_local_of(&lab.out, "eth0")?;
    // A prefix for addresses with lifetimes of one hour (RFC 4861 section 4.6.2); the router's lifetime is half an
    // hour.
    let prefix = "2001:db8:5::".parse::<Ipv6Addr>()?;
    let hour = 3600u32.to_be_bytes();
    let option = [&[3, 4, 64, 0xc0][..], &hour, &hour, &[0; 4], &prefix.octets()].concat();
    let message = [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &option].concat();
    let mut packet = frame::icmp(source.into(), all.into(), &message);
    packet[7] = 255;
    eventually(SOON, || {
        out.send_to(groups::mac(all.into()), &packet)?;
        let said = lab.device.ns.ip(&format!("-6 addr show dev {UPLINK}"))?;
        ensure!(said.contains("2001:db8:5:"), "{said}");
        let said = lab.device.ns.ip("-6 route show default")?;
        ensure!(said.contains(&source.to_string()), "{said}");
        Ok(())
    })?;
    // Router solicitations leave the device.
    let seen = harness::raw::RawSocket::open(&lab.out, "eth0")?;
    lab.device.ns.ip(&format!("link set {UPLINK} down"))?;
    lab.device.ns.ip(&format!("link set {UPLINK} up"))?;
    let is_solicitation =
        |f: &[u8]| f.get(12..14) == Some(&[0x86, 0xdd]) && f.get(20) == Some(&58) && f.get(54) == Some(&133);
    ensure!(seen.receive(Duration::from_secs(10), is_solicitation)?.is_some(), "no router solicitation");
    Ok(())
}

/// The services that `host_access` allows are reached.
#[test]
fn services_of_the_gateway_are_reached() -> Result<()> {
    let lab = lab::lab(|config| {
        let pool = &mut config["network"]["pools"]["internal"];
        // Another program answers there instead of pv-net's DNS.
        (pool["host_access"], pool["dns"]) = (json!("services"), json!(false));
    })?;
    for gateway in gateway(3) {
        echo::serve(&lab.device.ns, gateway, 53)?;
        for _ in 0..2 {
            echo::udp(&lab.a.ns, (gateway, 53).into(), b"a question")?;
            echo::udp(&lab.a.ns, (gateway, 53).into(), &[7; 4000]).context("a question in fragments")?;
            echo::tcp(&lab.a.ns, (gateway, 53).into(), &[7; 100_000])?;
            lab.a.ns.ping(gateway, 1)?;
        }
    }
    Ok(())
}
