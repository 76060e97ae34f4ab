//! Rules, and what a link needs to work: neighbour discovery and link-local addresses.

use crate::lab::{self, Lab, PORT};
use crate::probe::{Seen, Traffic, check, is_refusal, seen};
use anyhow::{Context, Result, ensure};
use harness::{Container, Namespace, eventually, patience};
use pv_net_common::Ip;
use serde_json::{Value, json};
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::Duration;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn neighbours_are_found_whatever_the_rules_say() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let deny = json!([{"from": {"container": "a"}, "to": {"container": "b"}, "action": "deny"}]);
    lab.set_rules(deny)?;
    for to in lab.a.addresses() {
        for traffic in [Traffic::Ping, Traffic::Tcp(PORT), Traffic::Udp(PORT)] {
            // First the neighbour is unknown and found by broadcast or multicast, then it is known.
            for known in [false, true] {
                if !known {
                    lab.b.ns.ip("neigh flush dev eth0")?;
                    lab.a.ns.ip("neigh flush dev eth0")?;
                }
                check(&lab.b.ns, to, traffic, true, true).with_context(|| format!("neighbours known: {known}"))?;
            }
        }
    }
    for to in lab.b.addresses() {
        for traffic in [Traffic::Ping, Traffic::Tcp(PORT), Traffic::Udp(PORT)] {
            check(&lab.a.ns, to, traffic, false, true).context("the other way")?;
        }
    }
    Ok(())
}

/// The link-local address of a container.
fn link_local(of: &Container) -> Result<Ipv6Addr> {
    match IpAddr::from(Ip::link_local(of.mac()?)) {
        IpAddr::V6(addr) => Ok(addr),
        IpAddr::V4(addr) => anyhow::bail!("{addr}"),
    }
}

/// The address with the scope of the namespace's link.
fn on(ns: &Namespace, link: &str, addr: Ipv6Addr, port: u16) -> Result<SocketAddr> {
    let index = ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?))?;
    Ok(SocketAddrV6::new(addr, port, 0, index).into())
}

fn wait() -> Duration {
    patience(Duration::from_millis(1500))
}

fn connect(ns: &Namespace, at: SocketAddr) -> Result<TcpStream> {
    Ok(ns.run(|| Ok(TcpStream::connect_timeout(&at, wait())))?.and_then(|stream| {
        stream.set_read_timeout(Some(wait()))?;
        (&stream).read_exact(&mut [0])?;
        Ok(stream)
    })?)
}

/// What happens to TCP, UDP and ping from `ns` to the link-local address `to`.
fn reach(ns: &Namespace, link: &str, to: Ipv6Addr) -> Result<[Seen; 3]> {
    let at = on(ns, link, to, PORT)?;
    let tcp = match connect(ns, at).map_err(|e| e.downcast::<std::io::Error>()) {
        Ok(_) => Seen::Passed,
        Err(why) => seen::<()>(Err(why?), "TCP")?,
    };
    let udp = ns.run(|| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(wait()))?;
        socket.send(b"pv")?;
        seen(socket.recv(&mut [0; 100]), "UDP")
    })?;
    Ok([tcp, udp, ping(ns, &format!("{to}%{link}"), None)?])
}

fn ping(ns: &Namespace, to: &str, from: Option<Ipv6Addr>) -> Result<Seen> {
    let source = from.map(|a| vec!["-I".to_owned(), format!("{a}%eth0")]).unwrap_or_default();
    let done = ns.command("ping").args(["-n", "-c1", "-W", "1"]).args(source).arg(to).output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    Ok(match () {
        () if done.status.success() => Seen::Passed,
        () if said.contains("From ") => Seen::Refused,
        () => Seen::Silent,
    })
}

fn deny(from: Value, to: Value) -> Value {
    json!([{"from": from, "to": to, "action": "deny"}])
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn rules_bind_link_local_addresses() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let (a, b) = (link_local(&lab.a)?, link_local(&lab.b)?);
    eventually(Duration::from_secs(10), || {
        for (ns, to) in [(&lab.a.ns, b), (&lab.b.ns, a)] {
            let seen = reach(ns, "eth0", to)?;
            ensure!(seen == [Seen::Passed; 3], "without rules, to {to}: {seen:?}");
        }
        Ok(())
    })?;
    let (of_a, of_b) = (json!({"container": "a"}), json!({"container": "b"}));
    // Rules select the container by name, by pool, and by the interface's other address.
    for (from, to) in [
        (of_a.clone(), of_b.clone()),
        (of_a.clone(), json!({"cidr": lab.b.v6.to_string()})),
        (json!({"cidr": lab.a.v6.to_string()}), of_b.clone()),
        (json!({"cidr": format!("{a}/128")}), json!({"cidr": "fe80::/10"})),
    ] {
        let rules = deny(from, to);
        // An existing connection is checked again.
        let stream = connect(&lab.a.ns, on(&lab.a.ns, "eth0", b, PORT)?)?;
        lab.set_rules(rules.clone())?;
        let case = rules.to_string();
        std::io::Write::write_all(&mut &stream, b"more").context(case.clone())?;
        let ended = std::io::copy(&mut &stream, &mut std::io::sink());
        ensure!(ended.as_ref().is_err_and(|e| is_refusal(e.kind())), "{case}: the connection goes on: {ended:?}");
        let seen = reach(&lab.a.ns, "eth0", b)?;
        ensure!(seen == [Seen::Refused; 3], "{case}: {seen:?}");
        for traffic in [format!("tcp/{PORT}"), format!("udp/{PORT}"), "icmp".to_owned()] {
            ensure!(!lab.explains(a.into(), b.into(), &traffic)?, "{case}: explained as allowed: {traffic}");
            ensure!(lab.explains(b.into(), a.into(), &traffic)?, "{case}: explained as denied: {traffic}");
        }
        lab.b.ns.ip("neigh flush dev eth0")?;
        let seen = reach(&lab.b.ns, "eth0", a)?;
        ensure!(seen == [Seen::Passed; 3], "{case}: the other way: {seen:?}");
        lab.set_rules(json!([]))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn link_local_addresses_stay_on_their_link() -> Result<()> {
    let mut config = lab::config(json!([]));
    for pool in ["internal", "management"] {
        config["network"]["pools"][pool]["isolated"] = json!(false);
    }
    let lab = Lab::new(&config)?;
    let (a, c) = (link_local(&lab.a)?, link_local(&lab.c)?);
    let [_, gateway] = lab::gateway();
    eventually(Duration::from_secs(10), || {
        let seen = ping(&lab.a.ns, &gateway.to_string(), Some(a))?;
        ensure!(seen == Seen::Passed, "the device from a link-local address: {seen:?}");
        Ok(())
    })?;
    let seen = reach(&lab.a.ns, "eth0", c)?;
    ensure!(
        seen == [Seen::Silent; 3] || !seen.contains(&Seen::Passed),
        "a link-local address of another pool: {seen:?}"
    );
    ensure!(!lab.explains(a.into(), c.into(), "icmp")?, "explained as allowed");
    for to in [IpAddr::from(lab.c.v6), lab::beyond()[1]] {
        check(&lab.a.ns, to, Traffic::Ping, true, true)?;
        let seen = ping(&lab.a.ns, &to.to_string(), Some(a))?;
        ensure!(seen == Seen::Refused, "{to} from a link-local address: {seen:?}");
        ensure!(!lab.explains(a.into(), to, "icmp")?, "{to}: explained as allowed");
    }
    // To the pool it is an address like any other.
    let to = lab.b.v6;
    let seen = ping(&lab.a.ns, &to.to_string(), Some(a))?;
    ensure!(seen == Seen::Passed && lab.explains(a.into(), to.into(), "icmp")?, "in the pool: {seen:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn rules_about_the_device_bind_link_local_addresses() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let a = link_local(&lab.a)?;
    eventually(Duration::from_secs(10), || {
        let seen = reach(&lab.device.ns, "pvbr3", a)?;
        ensure!(seen == [Seen::Passed; 3], "without rules: {seen:?}");
        Ok(())
    })?;
    lab.set_rules(deny(json!("host"), json!({"container": "a"})))?;
    let seen = reach(&lab.device.ns, "pvbr3", a)?;
    ensure!(!seen.contains(&Seen::Passed), "with the rule: {seen:?}");
    Ok(())
}
