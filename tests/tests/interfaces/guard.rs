//! Each interface has a guard of its own, and rules by the container's name hold on all of them.

use super::*;
use harness::{Ear, frame, raw::RawSocket};
use std::net::Ipv6Addr;

const MARK: &[u8] = b"sent by the wrong interface";

/// The container's own address of the other interface, and a neighbour's of there, are forgeries here.
#[test]
fn an_address_belongs_to_its_interface() -> Result<()> {
    let lab = lab()?;
    let (a, b) = (lab.device.attach("a", "internal")?, lab.device.attach("b", "management")?);
    let ear = Ear::link(&b.ns, "eth0")?;
    let socket = RawSocket::open(&lab.web.ns, "eth1")?;
    let (me, to) = (lab.web.ns.mac("eth1")?, b.mac()?);
    let eth0 = addresses(&lab.device, "web", "eth0")?;
    let own = addresses(&lab.device, "web", "eth1")?;
    for (what, from) in
        [("its own of eth0", eth0), ("a peer's of eth0's pool", a.addresses()), ("a peer's", b.addresses())]
    {
        for ((src, dst), (kind, reason)) in
            from.into_iter().zip(b.addresses()).zip([(frame::IPV4, "spoofed-ipv4"), (frame::IPV6, "spoofed-ipv6")])
        {
            let packet = frame::ethernet(me, to, kind, &frame::udp((src, 9), (dst, 9), MARK));
            let grew = lab.device.counted(|| socket.send(&packet))?;
            ensure!(grew.get(reason) == Some(&1), "{what}: {src}: {grew:?}");
        }
    }
    let heard = |what: &[u8]| anyhow::Ok(ear.heard()?.iter().any(|f| f.windows(what.len()).any(|w| w == what)));
    ensure!(!heard(MARK)?, "a forged packet arrived");
    // The same from its own address arrives.
    for ((src, dst), kind) in own.into_iter().zip(b.addresses()).zip([frame::IPV4, frame::IPV6]) {
        socket.send(&frame::ethernet(me, to, kind, &frame::udp((src, 9), (dst, 9), b"its own")))?;
        harness::eventually(harness::SOON, || {
            ensure!(heard(b"its own")?, "{src}: what it may send does not arrive");
            Ok(())
        })?;
    }
    Ok(())
}

/// Peers of two closed pools use it as a router; nothing arrives.
#[test]
fn it_is_no_router_around_the_pools_borders() -> Result<()> {
    let lab = lab()?;
    let (a, b) = (lab.device.attach("a", "internal")?, lab.device.attach("b", "management")?);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.web.ns.run(|| Ok(std::fs::write(format!("/proc/sys/{key}"), "1")?))?;
    }
    let [[to4, to6], [via4, via6]] = [b.addresses(), addresses(&lab.device, "web", "eth0")?];
    a.ns.ip(&format!("route add {to4}/32 via {via4}"))?;
    a.ns.ip(&format!("-6 route add {to6}/128 via {via6}"))?;
    let back = addresses(&lab.device, "web", "eth1")?;
    b.ns.ip(&format!("route add {}/32 via {}", a.v4, back[0]))?;
    b.ns.ip(&format!("-6 route add {}/128 via {}", a.v6, back[1]))?;
    // What leads through it reaches it: it is the router that both have chosen.
    a.ns.ping(via4, 1)?;
    b.ns.ping(back[1], 1)?;
    let ear = Ear::link(&b.ns, "eth0")?;
    let router = RawSocket::open(&lab.web.ns, "eth1")?;
    let (sender, me, to) = (RawSocket::open(&a.ns, "eth0")?, lab.web.ns.mac("eth1")?, b.mac()?);
    let first_hop = lab.web.ns.mac("eth0")?;
    for (src, dst, kind) in [(IpAddr::from(a.v4), to4, frame::IPV4), (a.v6.into(), to6, frame::IPV6)] {
        let packet = frame::udp((src, 9), (dst, 9), MARK);
        sender.send(&frame::ethernet(a.mac()?, first_hop, kind, &packet))?;
        // And as the router would forward it, had it come through.
        router.send(&frame::ethernet(me, to, kind, &packet))?;
        ensure!(a.ns.ping(dst, 1).is_err(), "{dst} answers through the container");
    }
    let heard = ear.heard()?.iter().filter(|f| f.windows(MARK.len()).any(|w| w == MARK)).count();
    ensure!(heard == 0, "{heard} packets came around the border");
    Ok(())
}

#[test]
fn rules_by_name_hold_on_all_interfaces() -> Result<()> {
    let mut config = configs::open_pools();
    config["network"]["policies"] = json!([
        {"name": "not-web", "from": {"container": "web"}, "to": {"container": "db"}, "action": "deny"},
        {"name": "not-to-web", "from": {"container": "db"}, "to": {"container": "web"}, "action": "deny"},
    ]);
    // web has one interface first: the other one comes under the rules when it comes.
    let lab = lab_of(config, &json!({"name": "web", "network": {"pool": "internal"}}))?;
    let (db, free) = (lab.device.attach("db", "management")?, lab.device.attach("free", "management")?);
    echo::serve(&db.ns, Ipv6Addr::UNSPECIFIED.into(), INNER)?;
    echo::serve(&free.ns, Ipv6Addr::UNSPECIFIED.into(), INNER)?;
    lab.device.cli(&["attach", "web", "--interface", "eth1", "--pool", "management"]).ok()?;
    serve(&lab.device, &lab.web, &["eth0", "eth1"])?;
    for interface in ["eth0", "eth1"] {
        for (i, own) in addresses(&lab.device, "web", interface)?.into_iter().enumerate() {
            let from = |to: IpAddr| {
                lab.web.ns.run(|| {
                    let socket = std::net::UdpSocket::bind(SocketAddr::new(own, 0))?;
                    socket.set_read_timeout(Some(harness::AT_ONCE))?;
                    socket.send_to(b"hello", SocketAddr::new(to, INNER))?;
                    Ok(socket.recv(&mut [0; 99]).is_ok())
                })
            };
            ensure!(from(free.addresses()[i])?, "{interface}: {own} does not reach one that the rules allow");
            ensure!(!from(db.addresses()[i])?, "{interface}: {own} reaches one that the rules deny");
            let at = SocketAddr::new(own, INNER);
            reaches(&free.ns, at, free.addresses()[i])?;
            ensure!(echo::connect(&db.ns, at).is_err(), "{interface}: {at} is reached by one that the rules deny");
        }
    }
    Ok(())
}
