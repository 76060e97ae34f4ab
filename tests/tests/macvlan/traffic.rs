//! What passes and what does not: between containers, from and to the LAN, by rules, in each mode.

use crate::lab::{LAN4, LAN6, Lab, config, lan};
use anyhow::{Result, ensure};
use harness::{Container, SOON, echo, eventually};
use serde_json::json;
use std::net::SocketAddr;

fn reach(from: &Container, to: &Container, port: u16) -> Result<()> {
    for addr in to.addresses() {
        echo::tcp(&from.ns, SocketAddr::new(addr, port), b"tcp")?;
        echo::udp(&from.ns, SocketAddr::new(addr, port), b"udp")?;
        from.ns.ping(addr, 1)?;
    }
    Ok(())
}

fn serve(on: &Container, port: u16) -> Result<()> {
    on.addresses().into_iter().try_for_each(|addr| echo::serve(&on.ns, addr, port))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn containers_of_a_pool_reach_each_other() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    serve(&web, 5000)?;
    serve(&db, 5000)?;
    reach(&web, &db, 5000)?;
    reach(&db, &web, 5000)?;
    let flows = lab.device.json(&["flows"])?;
    let mut all = flows.as_array().into_iter().flatten();
    ensure!(all.any(|f| f["container"] == "web" && f["dport"] == 5000 && f["interface"] == web.host_if()), "{flows}");
    let view = lab.device.json(&["policy", "explain", "web", "db", "tcp/5000"])?;
    ensure!(view["verdict"] == "allow", "{view}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn other_modes_keep_containers_apart() -> Result<()> {
    for mode in ["private", "vepa"] {
        let lab = Lab::new(mode, json!([]))?;
        let (web, db) = (lab.attach("web", &["80/tcp"])?, lab.attach("db", &[])?);
        let link = web.ns.ip("-d link show eth0")?;
        ensure!(link.contains(&format!("mode {mode}")), "{link}");
        ensure!(crate::device::device_if(&lab).is_err(), "{mode}: the device has an interface for these");
        serve(&web, 80)?;
        for (own, peer) in web.addresses().into_iter().zip(lan()) {
            db.ns.ping(peer, 1)?;
            echo::tcp(&lab.lan, SocketAddr::new(own, 80), b"in")?;
            // In mode vepa only a switch that sends frames back to where they came from would connect them.
            ensure!(db.ns.sh(&format!("ping -c 1 -W 1 {own}")).is_err(), "{mode}: {own} is reached");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn rules_decide() -> Result<()> {
    let rules = json!([
        {"name": "no-db", "from": {"container": "web"}, "to": {"container": "db"}, "ports": ["tcp/5000"], "action": "deny"},
        {"name": "no-router", "from": {"container": "db"}, "to": {"cidr": "10.77.0.1/32"}, "action": "deny"},
        {"name": "no-router6", "from": {"container": "db"}, "to": {"cidr": "fd00:77::1/128"}, "action": "deny"},
        {"name": "in", "from": "world", "to": {"container": "web"}, "ports": ["udp/6000"], "action": "allow"},
    ]);
    let lab = Lab::new("bridge", rules)?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &["5000/tcp"])?);
    for port in [5000, 6000] {
        serve(&web, port)?;
        serve(&db, port)?;
    }
    for addr in db.addresses() {
        ensure!(echo::tcp(&web.ns, SocketAddr::new(addr, 5000), b"x").is_err(), "{addr} is reached");
        echo::tcp(&web.ns, SocketAddr::new(addr, 6000), b"x")?;
        echo::tcp(&lab.lan, SocketAddr::new(addr, 5000), b"published")?;
    }
    for (own, peer) in web.addresses().into_iter().zip(lan()) {
        ensure!(db.ns.sh(&format!("ping -c 1 -W 1 {peer}")).is_err(), "{peer} is reached");
        web.ns.ping(peer, 1)?;
        echo::udp(&lab.lan, SocketAddr::new(own, 6000), b"x")?;
        ensure!(echo::tcp(&lab.lan, SocketAddr::new(own, 6000), b"x").is_err(), "{own}");
    }
    for (from, to, port, want) in [
        ("web", "db", "tcp/5000", "deny"),
        ("web", "db", "tcp/6000", "allow"),
        ("world", "web", "udp/6000", "allow"),
        ("world", "web", "tcp/6000", "deny"),
        ("10.77.0.9", "web", "tcp/6000", "deny"),
        ("10.77.0.9", "db", "tcp/5000", "allow"),
        ("db", "10.77.0.1", "tcp/80", "deny"),
        ("db", "10.77.0.9", "tcp/80", "allow"),
    ] {
        let view = lab.device.json(&["policy", "explain", from, to, port])?;
        ensure!(view["verdict"] == want, "{from} {to} {port}: {view}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rule_that_comes_stops_a_flow_that_is() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let web = lab.attach("web", &[])?;
    for peer in lan() {
        echo::serve(&lab.lan, peer, 7000)?;
    }
    let mut streams = Vec::new();
    for peer in lan() {
        let stream = echo::connect(&web.ns, SocketAddr::new(peer, 7000))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
        streams.push(stream);
    }
    let exchange = |mut stream: &std::net::TcpStream| {
        use std::io::{Read, Write};
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        // The server says more than it was told.
        while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
        Ok::<(), std::io::Error>(())
    };
    for stream in &streams {
        exchange(stream)?;
    }
    let deny = json!([{"name": "no", "from": {"container": "web"}, "to": "world", "action": "deny"}]);
    lab.device.configure(&config("bridge", deny))?;
    lab.device.cli(&["reload"]).ok()?;
    for stream in &streams {
        ensure!(exchange(stream).is_err(), "it goes on");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn errors_and_fragments_arrive() -> Result<()> {
    let lab = Lab::new("bridge", json!([]))?;
    let (web, db) = (lab.attach("web", &[])?, lab.attach("db", &[])?);
    for peer in lan().into_iter().chain(db.addresses()) {
        web.ns.sh(&format!("ping -c 1 -W 2 -s 4000 {peer}"))?;
        // Nobody listens there, so the peer answers with an ICMP error.
        let refused = web.ns.run(|| {
            let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = std::net::UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
            socket.connect(SocketAddr::new(peer, 9999))?;
            socket.send(b"x")?;
            Ok(socket.recv(&mut [0; 8]).map_err(|e| e.kind()))
        })?;
        ensure!(refused == Err(std::io::ErrorKind::ConnectionRefused), "{peer}: {refused:?}");
    }
    // Nor does an error about nothing.
    let grown = lab.device.counted(|| {
        let quote = harness::frame::udp((web.v4.into(), 1), (LAN4.into(), 2), b"x");
        let error = harness::frame::icmp(LAN4.into(), web.v4.into(), &[&[3, 1, 0, 0, 0, 0, 0, 0][..], &quote].concat());
        let socket = harness::raw::RawSocket::open(&lab.lan, "eth0")?;
        socket.send(&harness::frame::ethernet(lab.lan.mac("eth0")?, web.mac()?, harness::frame::IPV4, &error))?;
        eventually(SOON, || {
            web.ns.ping(LAN6, 1)?;
            Ok(())
        })
    })?;
    ensure!(grown["forged-icmp"] > 0, "{grown:?}");
    Ok(())
}
