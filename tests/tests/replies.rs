//! Replies to a connection by an uplink leave by the same link, to the router that the kernel knows.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Device, Namespace, echo, frame, raw::RawSocket};
use serde_json::json;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// A published port, and the container's port.
const PORT: (u16, u16) = (8080, 80);
/// The second uplink: addresses of the device, and of its neighbour.
const SECOND: [[&str; 2]; 2] = [["198.51.100.1/24", "2001:db8:2::1/64"], ["198.51.100.9/24", "2001:db8:2::9/64"]];
/// Addresses of the device on the second uplink, and clients far away; the default routes lead over the first uplink.
const FAR: [(&str, &str); 2] = [("198.51.100.1", "203.0.113.7"), ("2001:db8:2::1", "2001:db8:f::7")];
/// Addresses of the device on the first uplink, and clients behind routers there.
const NEAR: [(&str, &str); 2] = [("192.0.2.1", "203.0.113.8"), ("2001:db8:1::1", "2001:db8:f::8")];
const ROUTERS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

struct Lab {
    device: Device,
    _hosts: [Namespace; 2],
    _web: harness::Container,
    first: RawSocket,
    second: RawSocket,
}

fn lab() -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["uplinks"] = json!(["up0", "up1"]);
    let mut device = Device::new(&config)?;
    let hosts = [device.outside("up0", &DEVICE, &HOST)?, device.outside("up1", &SECOND[0], &SECOND[1])?];
    device.ns.ip("route add default via 192.0.2.9")?;
    device.ns.ip("-6 route add default via 2001:db8:1::9")?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), PORT.1)?;
    let (first, second) = (RawSocket::open(&hosts[0], "eth0")?, RawSocket::open(&hosts[1], "eth0")?);
    Ok(Lab { device, _hosts: hosts, _web: web, first, second })
}

/// Sends a datagram of the client as a router would; gives the answer's frame.
fn asks(device: &Device, link: &str, router: [u8; 6], (to, client): (IpAddr, IpAddr), text: &str) -> Result<Vec<u8>> {
    let kind = if to.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
    let datagram = frame::udp((client, 5000), (to, PORT.0), text.as_bytes());
    Ok(frame::ethernet(router, device.ns.mac(link)?, kind, &datagram))
}

fn pair((device, client): (&str, &str)) -> Result<(IpAddr, IpAddr)> {
    Ok((device.parse()?, client.parse()?))
}

#[test]
fn they_leave_by_the_link_that_the_flow_came_in_on() -> Result<()> {
    let lab = lab()?;
    for ends in FAR {
        let ends = pair(ends)?;
        // The first packet takes the slow path, the last one the fast path.
        for round in 0..4 {
            let text = format!("round {round} from {}", ends.1);
            lab.second.send(&asks(&lab.device, "up1", ROUTERS[0], ends, &text)?)?;
            let answer =
                lab.second.receive(echo::PATIENCE, |f| f[..6] == ROUTERS[0] && f.ends_with(text.as_bytes()))?;
            answer.with_context(|| format!("{text}: no answer by the same link"))?;
            let astray = lab.first.receive(Duration::from_millis(20), |f| f.ends_with(text.as_bytes()))?;
            ensure!(astray.is_none(), "{text}: an answer by the other link");
        }
    }
    Ok(())
}

#[test]
fn they_follow_a_router_that_takes_over() -> Result<()> {
    let lab = lab()?;
    for ends in NEAR {
        let ends = pair(ends)?;
        for (round, router) in [0, 0, 0, 1, 1, 0].into_iter().enumerate() {
            let text = format!("round {round} from {}", ends.1);
            // The frame's MAC does not decide where answers go: the kernel must know the router as the next hop.
            let [a, b, c, d, e, f] = ROUTERS[router];
            for hop in ["192.0.2.9", "2001:db8:1::9"] {
                let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
                lab.device.ns.ip(&format!("neigh replace {hop} lladdr {mac} dev up0 nud permanent"))?;
            }
            lab.first.send(&asks(&lab.device, "up0", ROUTERS[router], ends, &text)?)?;
            // Not the question, which this socket sees too.
            let is_answer = |f: &[u8]| f[6..12] != ROUTERS[router] && f.ends_with(text.as_bytes());
            let answer = lab.first.receive(echo::PATIENCE, is_answer)?;
            let answer = answer.with_context(|| format!("{text}: no answer"))?;
            ensure!(answer[..6] == ROUTERS[router], "{text}: to {:02x?}, not to the router that asked", &answer[..6]);
        }
    }
    Ok(())
}
