//! Hosts at a LAN port of a pool's bridge, or at a link that is no uplink, which forge addresses of the pool.

use crate::identity::{EITHER, FORGED, ears, of};
use crate::lab::{self, Both, Lab, PORT, both, gateway, link_local, link_local_of, uplink};
use crate::trial::{Proto, Trial};
use anyhow::{Result, ensure};
use harness::{Device, Namespace, echo, frame, groups};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host on a port of the bridge of `internal`.
pub const LAN: Both =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 3, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 0xc8))];

pub fn lan(device: &Device) -> Result<Namespace> {
    lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"])
}

/// The addresses that a stranger at a bridge, or at a link that is no uplink, may forge.
fn insiders(lab: &Lab, denied: Both) -> Result<Vec<(&'static str, IpAddr)>> {
    let pairs = [
        ("b", lab.b.addresses()),
        ("one who is denied", denied),
        ("one of another pool", lab.c.addresses()),
        ("the gateway", gateway(3)),
        ("the device", uplink()),
    ];
    let mut all: Vec<_> = pairs.into_iter().flat_map(|(who, pair)| pair.map(|addr| (who, addr))).collect();
    all.push(("the container itself", lab.a.v4.into()));
    all.push(("the container itself", lab.a.v6.into()));
    all.push(("b's link-local", link_local(lab.b.mac()?).into()));
    all.push(("the bridge's link-local", link_local_of(&lab.device.ns, "pvbr3")?.into()));
    Ok(all)
}

/// Rules: `c` and `denied` may not reach `a`; the network of the link that is no uplink may.
fn rules_of_strangers() -> Value {
    json!([
        {"from": {"container": "denied"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "10.0.3.201/32"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "fd00:5056:0:3::c9/128"}, "to": {"container": "a"}, "action": "deny"},
        {"from": {"cidr": "198.51.100.9/32"}, "to": {"container": "a"}, "action": "allow"},
        {"from": {"cidr": "2001:db8:2::9/128"}, "to": {"container": "a"}, "action": "allow"},
    ])
}

/// A packet that did not come from a container's link is not that container's. The bridge itself checks no address.
#[test]
fn a_lan_port_does_not_speak_as_anybody_of_the_pool() -> Result<()> {
    let (lab, host) = lab::prepared(
        |config| config["network"]["policies"] = rules_of_strangers(),
        |device| lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"]),
        &[],
    )?;
    let denied = lab.device.attach("denied", "internal")?;
    let lan = lab.sender(&host, "pvbr3")?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    let groups = both("224.0.0.251", "ff02::fb");
    for (who, addr) in insiders(&lab, denied.addresses())? {
        let reasons = if addr == IpAddr::from(lab.a.v4) || addr == IpAddr::from(lab.a.v6) { EITHER } else { FORGED };
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {who} ({addr}) to a"), reasons, |twin, mark| {
                let src = twin.pick(addr, of(LAN, addr));
                lan.send_to(lab.a.mac()?, &proto.packet((src, port), (of(lab.a.addresses(), addr), PORT), mark))
            })?;
            trial.dropped(format!("{proto:?} as {who} ({addr}) to the device"), EITHER, |mark| {
                lan.send(&proto.packet((addr, port), (of(gateway(3), addr), PORT), mark))
            })?;
        }
        trial.refused(format!("as {who} ({addr}) to a group"), EITHER, |twin, mark| {
            let (src, to) = (twin.pick(addr, of(LAN, addr)), of(groups, addr));
            lan.send_to(groups::mac(to), &Proto::Udp.packet((src, 5353), (to, 5353), mark))
        })?;
    }
    // With its own address the rules about that address apply.
    for (denied, a) in both("10.0.3.201", "fd00:5056:0:3::c9").into_iter().zip(lab.a.addresses()) {
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {denied}, that is denied"), &["policy-denied"], |twin, mark| {
                let src = twin.pick(denied, of(LAN, denied));
                lan.send_to(lab.a.mac()?, &proto.packet((src, port), (a, PORT), mark))
            })?;
        }
    }
    trial.finish()
}

/// With `rp_filter` 2 the kernel forwards packets by a link to which the route back does not lead.
#[test]
fn a_link_that_is_no_uplink_does_not_speak_as_anybody_of_the_pool() -> Result<()> {
    const OWN: Both =
        [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9))];
    let (lab, second) = lab::prepared(
        |config| config["network"]["policies"] = rules_of_strangers(),
        |device| {
            let host = device.outside(
                "lan1",
                &["198.51.100.1/24", "2001:db8:2::1/64"],
                &["198.51.100.9/24", "2001:db8:2::9/64"],
            )?;
            lab::forwarding(device)?;
            for link in ["all", "lan1"] {
                lab::sysctl(&device.ns, &format!("net/ipv4/conf/{link}/rp_filter"), "2")?;
            }
            Ok(host)
        },
        &[],
    )?;
    let denied = lab.device.attach("denied", "internal")?;
    let host = lab.sender(&second, "lan1")?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let mut port = 10_000;
    for (who, addr) in insiders(&lab, denied.addresses())? {
        // The kernel itself drops packets from a link with a local or a link-local source before it forwards them.
        let kernels = matches!(who, "the gateway" | "the device") && addr.is_ipv4() || who.contains("link-local");
        let reasons = if kernels { &[] } else { EITHER };
        for proto in Proto::ALL {
            port += 1;
            trial.refused(format!("{proto:?} as {who} ({addr}) to a"), reasons, |twin, mark| {
                let src = twin.pick(addr, of(OWN, addr));
                host.send(&proto.packet((src, port), (of(lab.a.addresses(), addr), PORT), mark))
            })?;
        }
    }
    trial.finish()
}

/// A bridge learns from every frame at which port a MAC is (`br_fdb_update`). A single frame with a container's MAC
/// would lead the device's packets for that container to the LAN.
#[test]
fn a_lan_port_does_not_take_a_containers_mac() -> Result<()> {
    let (lab, host) = lab::prepared(|_| (), lan, &[])?;
    let (lan, mac) = (lab.sender(&host, "pvbr3")?, lab.a.mac()?);
    for (own, to) in lab.a.addresses().into_iter().zip(gateway(3)) {
        echo::serve(&lab.a.ns, own, PORT)?;
        // Without a neighbour entry the device would ask, and the container's answer would correct the bridge.
        echo::udp(&lab.device.ns, (own, PORT).into(), b"known")?;
        let packet = frame::udp((own, 9), (to, 9), b"mine");
        lan.socket.send(&frame::ethernet(mac, lan.router, frame::kind(&packet), &packet))?;
        // A broadcast, which no program on the bridge handles before.
        lan.socket.send(&frame::ethernet(mac, [0xff; 6], 0x88b5, &[0; 46]))?;
        echo::udp(&lab.device.ns, (own, PORT).into(), b"yours")?;
    }
    let entries = lab.device.ns.sh("bridge fdb show br pvbr3")?;
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    let at_lan = entries.lines().find(|line| line.starts_with(&text) && line.contains("lan0"));
    ensure!(at_lan.is_none(), "the bridge has the container at the LAN port: {at_lan:?}");
    Ok(())
}
