//! Which address of an uplink masqueraded flows use as their source (RFC 6724), and how long they keep it.

use crate::lab::lab;
use anyhow::{Context, Result, ensure};
use harness::configs::{HOSTS, UPLINK};
use harness::{Namespace, SOON, echo, eventually, patience};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

const PORT: u16 = 7000;

/// Other addresses of the host beyond the uplink.
const ELSEWHERE: [&str; 5] =
    ["198.51.100.9/24", "203.0.113.9/32", "2001:db8:77::9/64", "fd00:7::9/64", "2002:c633:6401::9/64"];

/// A connection that is open, its greeting read.
fn connected(ns: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = echo::connect(ns, to)?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

fn lives(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    let mut back = vec![0; word.len()];
    stream.write_all(word)?;
    stream.read_exact(&mut back)?;
    ensure!(back == word, "{back:?} came back");
    Ok(())
}

/// The source address that the kernel chooses for a socket of the device.
fn of_the_kernel(device: &Namespace, to: SocketAddr) -> Result<IpAddr> {
    device.run(|| {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to).with_context(|| to.to_string())?;
        Ok(socket.local_addr()?.ip())
    })
}

/// A second address, or deprecation of the first one, ends no connection: by RFC 4862 section 5.5.4 established
/// communication goes on. New flows use the preferred address. A connection ends only when its own address is removed.
#[test]
fn a_second_address_ends_no_connection() -> Result<()> {
    let lab = lab(|_| ())?;
    echo::serve(&lab.out, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    let ip = |line: &str| lab.device.ns.ip(line).map(drop);
    for ((host, first), (old, new)) in
        HOSTS.into_iter().zip([("192.0.2.1/24", "192.0.2.77/24"), ("2001:db8:1::1/64", "2001:db8:1::77/64")])
    {
        let to = SocketAddr::new(host, PORT);
        let seen = |want: IpAddr| {
            eventually(SOON, || {
                let seen = echo::udp(&lab.a.ns, to, b"from where")?.ip();
                ensure!(seen == want, "{to}: {seen}, not {want}");
                Ok(())
            })
        };
        let mut stream = connected(&lab.a.ns, to)?;
        lives(&mut stream, b"before")?;
        let nodad = if host.is_ipv6() { "nodad" } else { "" };
        ip(&format!("addr add {new} dev {UPLINK} {nodad}"))?;
        if host.is_ipv6() {
            // From now on the kernel chooses another address; the daemon knows both.
            ip(&format!("addr change {old} dev {UPLINK} preferred_lft 0"))?;
            seen("2001:db8:1::77".parse()?)?;
        } else {
            seen(first)?;
        }
        lives(&mut stream, b"beside another address").with_context(|| format!("{to}, with {new}"))?;
        ip(&format!("addr del {old} dev {UPLINK}"))?;
        stream.set_read_timeout(Some(patience(SOON)))?;
        let end = stream.read(&mut [0]).err().map(|e| e.kind());
        ensure!(end == Some(std::io::ErrorKind::ConnectionReset), "{to}: {end:?} without its address");
    }
    Ok(())
}

/// With unique local, 6to4, deprecated, duplicate and temporary addresses, and several networks, a container's flow has
/// the same source address that the kernel would choose for the device (`ipv6_dev_get_saddr`, `inet_select_addr`).
#[test]
fn masquerade_takes_the_address_that_the_kernel_would() -> Result<()> {
    let lab = lab(|_| ())?;
    echo::serve(&lab.out, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    let (device, out) = (&lab.device.ns, &lab.out);
    for line in ["route add default via 192.0.2.9", "-6 route add default via 2001:db8:1::9"] {
        device.ip(line)?;
    }
    let mut hosts: Vec<IpAddr> = HOSTS.map(|(host, _)| host).to_vec();
    for text in ELSEWHERE {
        out.ip(&format!("addr add {text} dev eth0 {}", if text.contains(':') { "nodad" } else { "" }))?;
        hosts.push(text.split('/').next().context("address")?.parse()?);
    }
    out.ip("-6 route add default via 2001:db8:1::1")?;
    let alike = |what: &str| {
        for host in &hosts {
            let to = SocketAddr::new(*host, PORT);
            let same = || {
                let (kernel, ours) = (of_the_kernel(device, to)?, echo::tcp(&lab.a.ns, to, b"from where")?.ip());
                ensure!(ours == kernel, "from {ours}, the kernel's own from {kernel}");
                Ok(())
            };
            eventually(SOON, same).with_context(|| format!("{what}: to {host}"))?;
        }
        anyhow::Ok(())
    };
    alike("one address")?;
    for (what, line) in [
        ("a unique local one", "addr add fd00:1::1/64 dev up0 nodad"),
        ("a secondary one", "addr add 192.0.2.2/24 dev up0"),
        ("another network", "addr add 198.51.100.1/24 dev up0"),
        ("a second prefix", "addr add 2001:db8:77::1/64 dev up0 nodad"),
        ("6to4", "addr add 2002:c633:6401::1/64 dev up0 nodad"),
        ("the first one deprecated", "addr change 2001:db8:1::1/64 dev up0 preferred_lft 0"),
        ("the second one too", "addr change 2001:db8:77::1/64 dev up0 preferred_lft 0"),
        ("the first one preferred again", "addr change 2001:db8:1::1/64 dev up0 preferred_lft forever"),
    ] {
        device.ip(line)?;
        alike(what)?;
    }
    let set = |key: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/up0/{key}");
        device.run(|| Ok(std::fs::write(&path, value)?))
    };
    set("accept_dad", "1")?;
    out.ip("addr add 2001:db8:78::1/64 dev eth0 nodad")?;
    device.ip("addr add 2001:db8:78::1/64 dev up0")?;
    let flagged = |flag: &str| {
        eventually(SOON, || {
            let found = device.ip(&format!("-6 addr show dev up0 {flag}"))?;
            ensure!(!found.is_empty(), "no address is {flag}");
            Ok(())
        })
    };
    flagged("dadfailed")?;
    alike("a duplicate")?;
    for prefers in ["1", "2"] {
        set("use_tempaddr", prefers)?;
        device.ip(&format!("addr add 2001:db8:{prefers}::2/64 dev up0 mngtmpaddr nodad"))?;
        flagged("temporary")?;
        alike("a temporary one")?;
    }
    Ok(())
}
