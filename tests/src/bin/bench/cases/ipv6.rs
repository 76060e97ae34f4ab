//! The fast paths over IPv6: between two containers, by a published port, and masqueraded.

use crate::case::{Candidate, Case, Metric};
use crate::nets::{self, Net, PORT, PUBLISHED};
use crate::options::Options;
use crate::pvnet::{self, End};
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use anyhow::Result;
use harness::{Container, Device, Namespace, configs};
use serde_json::json;
use std::net::{Ipv6Addr, SocketAddr};

/// The case.
pub struct OverIpv6;

const LOADS: [&str; 4] = ["rr-same", "crr-same", "stream1-split", "udp-same"];

/// The device's address on its uplink; the host beyond has the next one.
const UPLINK: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// The container of the paths without pv-net.
const CONTAINER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 2);
const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 3);

impl Case for OverIpv6 {
    fn name(&self) -> &'static str {
        "ipv6"
    }

    fn about(&self) -> &'static str {
        "over IPv6: between two containers, by a published port, behind the device's address"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("direct veth pair", direct),
            Candidate::new("Linux bridge", bridge),
            Candidate::new("pv-net, one pool", pv_net_pool),
            Candidate::new("plain routing", || edge()?.inward().wire_routed()),
            Candidate::new("nftables DNAT", nft_dnat),
            Candidate::new("pv-net, published port", pv_net_published),
            Candidate::new("nftables masquerade", nft_masquerade),
            Candidate::new("pv-net, masquerade", pv_net_masquerade),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&LOADS)
    }
}

fn direct() -> Result<Wire> {
    let (client, server) = (Namespace::new("a")?, Namespace::new("b")?);
    client.connect(("eth0", &[&format!("{CONTAINER}/64")]), &server, ("eth0", &[&format!("{PEER}/64")]))?;
    let ends = vec![Link::new(&client, "eth0"), Link::new(&server, "eth0")];
    let net = Net { client: (client, CONTAINER.into()), server: (server, PEER.into()), device: None };
    Ok(net.wire(Witness::received("the other end of the pair", ends)))
}

fn bridge() -> Result<Wire> {
    let mut net = nets::bridged(false)?;
    for (end, address) in [(&mut net.client, CONTAINER), (&mut net.server, PEER)] {
        end.0.ip(&format!("addr add {address}/64 dev eth0 nodad"))?;
        end.1 = address.into();
    }
    let witness = nets::bridge_ports(&net)?;
    Ok(net.wire(witness))
}

/// A host beyond the uplink of a device that routes, and a container.
struct Edge {
    outside: Namespace,
    container: Namespace,
    device: Namespace,
}

fn edge() -> Result<Edge> {
    let (outside, container, device) = (Namespace::new("out")?, Namespace::new("c")?, Namespace::new("dev")?);
    device.connect(("eth0", &[&format!("{UPLINK}/64")]), &outside, ("eth0", &[&format!("{OUTSIDE}/64")]))?;
    device.connect(("c0", &["fd00:5056:0:3::1/64"]), &container, ("eth0", &[&format!("{CONTAINER}/64")]))?;
    container.ip("-6 route add default via fd00:5056:0:3::1")?;
    outside.ip(&format!("-6 route add fd00:5056:0:3::/64 via {UPLINK}"))?;
    nets::sysctl(&device, "ipv6/conf/all/forwarding", "1")?;
    Ok(Edge { outside, container, device })
}

impl Edge {
    fn inward(self) -> Path {
        let client = (self.outside, OUTSIDE.into());
        Path(Net { client, server: (self.container, CONTAINER.into()), device: Some(self.device) })
    }

    fn outward(self) -> Path {
        let server = (self.outside, OUTSIDE.into());
        Path(Net { client: (self.container, CONTAINER.into()), server, device: Some(self.device) })
    }
}

/// A network whose device routes.
struct Path(Net);

impl Path {
    fn wire_routed(self) -> Result<Wire> {
        let witness = Witness::routed6(self.0.device()?);
        Ok(self.0.wire(witness))
    }

    /// With rules, whose chain `nat` counts new flows.
    fn wire_translated(self, rules: &str) -> Result<Wire> {
        let device = self.0.device()?;
        nets::feed(device, "nft -f", rules)?;
        let mark = Witness::nft(device, "nat");
        let mut wire = self.wire_routed()?;
        wire.marks.push(("the NAT rule", mark));
        Ok(wire)
    }
}

fn nft_dnat() -> Result<Wire> {
    let rules = format!(
        "table inet bench {{ chain nat {{ type nat hook prerouting priority dstnat;
            iifname \"eth0\" meta l4proto {{ tcp, udp }} th dport {PUBLISHED} counter dnat ip6 to [{CONTAINER}]:{PORT}
        }}\n}}"
    );
    let mut wire = edge()?.inward().wire_translated(&rules)?;
    wire.ends.connect = SocketAddr::new(UPLINK.into(), PUBLISHED);
    Ok(wire)
}

fn nft_masquerade() -> Result<Wire> {
    let rules = "table inet bench { chain nat { type nat hook postrouting priority srcnat;
            oifname \"eth0\" ip6 saddr fd00:5056:0:3::/64 counter masquerade
        }\n}";
    let mut wire = edge()?.outward().wire_translated(rules)?;
    wire.seen_as = UPLINK.into();
    Ok(wire)
}

fn end(container: &Container) -> End<'_> {
    End { ns: &container.ns, address: container.v6.into() }
}

fn pv_net_pool() -> Result<Wire> {
    let device = Device::started(&configs::open_pools())?;
    let (client, server) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let mut wire = pvnet::wire(&device, &end(&client), &end(&server));
    wire.keep = Box::new((client, server, device));
    Ok(wire)
}

/// A device with an uplink, the host beyond it, and a container that publishes a port.
fn pv_net() -> Result<(Device, Namespace, Container)> {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["eth0"]);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    let mut device = Device::new(&config)?;
    let outside = device.outside("eth0", &[&format!("{UPLINK}/64")], &[&format!("{OUTSIDE}/64")])?;
    device.start()?;
    let ports = ["tcp", "udp"].map(|proto| format!("{PUBLISHED}:{PORT}/{proto}"));
    let container = device.attach_run(&json!({
        "#spec": "service-manifest-run@1", "name": "web", "type": "netns",
        "network": {"pool": "internal", "ports": ports},
    }))?;
    pvnet::all_in_force(&device)?;
    Ok((device, outside, container))
}

fn pv_net_published() -> Result<Wire> {
    let (device, outside, container) = pv_net()?;
    let host = End { ns: &outside, address: OUTSIDE.into() };
    let mut wire = pvnet::wire(&device, &host, &end(&container));
    wire.ends.connect = SocketAddr::new(UPLINK.into(), PUBLISHED);
    wire.keep = Box::new((container, outside, device));
    Ok(wire)
}

fn pv_net_masquerade() -> Result<Wire> {
    let (device, outside, container) = pv_net()?;
    let host = End { ns: &outside, address: OUTSIDE.into() };
    let mut wire = pvnet::wire(&device, &end(&container), &host);
    wire.seen_as = UPLINK.into();
    wire.keep = Box::new((container, outside, device));
    Ok(wire)
}
