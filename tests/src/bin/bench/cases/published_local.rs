//! A published port, reached without an uplink: from the device itself, from another container on it, and from the
//! container itself.

use super::published::{published, start_socat};
use crate::case::{Candidate, Case, Metric};
use crate::nets::{self, CLIENT, Edge, PORT, PUBLISHED, UPLINK};
use crate::options::Options;
use crate::pvnet::{self, End};
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use anyhow::Result;
use harness::{Container, Device, Namespace, Process, configs};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The case.
pub struct PublishedLocal;

/// The device's address in the containers' network.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);

impl Case for PublishedLocal {
    fn name(&self) -> &'static str {
        "published-local"
    }

    fn about(&self) -> &'static str {
        "a published port from the device itself, from another container, from its own container"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft", "socat", "ss", "bridge"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("veth, from the device", || of_device(None)),
            Candidate::new("nftables DNAT, from the device", || of_device(Some(OUTPUT_NAT))),
            Candidate::new("socat, from the device", of_device_by_socat),
            Candidate::new("pv-net, device to the container itself", || Ok(pv_net_device(false)?.0)),
            Candidate::new("pv-net, from the device", || Ok(pv_net_device(true)?.0)),
            Candidate::new("nftables DNAT, from a container", hairpin),
            Candidate::new("pv-net, from a container", pv_net_hairpin),
            Candidate::new("nftables DNAT, a container to itself", to_itself),
            Candidate::new("pv-net, a container to itself", pv_net_to_itself),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&["rr-same", "crr-same", "stream1-split", "udp-same"])
    }
}

const OUTPUT_NAT: &str = "table inet bench { chain nat { type nat hook output priority -100;
    ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 8080 counter dnat ip to 10.0.3.2:7001
}
}";

const SELF_NAT: &str = "table inet bench { chain nat { type nat hook prerouting priority dstnat;
    ip daddr 10.0.3.1 meta l4proto { tcp, udp } th dport 8080 counter dnat ip to 10.0.3.2:7001
}
chain back { type nat hook postrouting priority srcnat;
    ip saddr 10.0.3.2 ip daddr 10.0.3.2 masquerade
}
}";

const HAIRPIN_NAT: &str = "table inet bench { chain nat { type nat hook prerouting priority dstnat;
    ip daddr 10.0.3.1 meta l4proto { tcp, udp } th dport 8080 counter dnat ip to 10.0.3.3:7001
}
chain back { type nat hook postrouting priority srcnat;
    ip saddr 10.0.3.0/24 ip daddr 10.0.3.0/24 masquerade
}
}";

/// The links on the way from the device, by `link`, to the only container.
fn by_link(device: &Namespace, link: &str, container: &Namespace) -> Vec<Link> {
    vec![Link::new(device, link), Link::new(container, "eth0")]
}

fn of_device(rules: Option<&str>) -> Result<Wire> {
    let Edge { outside, container, device } = Edge::new(false)?;
    let links = by_link(&device, "c0", &container);
    let witness = Witness::received("the container's link", links.clone());
    let mut wire = nets::between((&device, GATEWAY.into()), (&container, CLIENT.into()), witness);
    wire.links = links;
    if let Some(rules) = rules {
        nets::feed(&device, "nft -f", rules)?;
        wire.marks.push(("the DNAT rule", Witness::nft(&device, "nat")));
        wire = published(wire);
        // The device connects to its own address, and takes it as the source too; the rule does not change the source.
        wire.seen_as = UPLINK.into();
    }
    wire.keep = Box::new((outside, container, device));
    Ok(wire)
}

fn of_device_by_socat() -> Result<Wire> {
    let Edge { outside, container, device } = Edge::new(false)?;
    let proxies = start_socat(&device)?;
    let links = by_link(&device, "c0", &container);
    let witness = Witness::received("the container's link", links.clone());
    let mut wire = published(nets::between((&device, GATEWAY.into()), (&container, CLIENT.into()), witness));
    wire.links = links;
    wire.carriers = proxies.iter().map(Process::pid).collect();
    wire.keep = Box::new((proxies, outside, container, device));
    Ok(wire)
}

fn web(device: &Device) -> Result<Container> {
    let ports = ["tcp", "udp"].map(|proto| format!("{PUBLISHED}:{PORT}/{proto}"));
    device.attach_run(&json!({
        "#spec": "service-manifest-run@1", "name": "web", "type": "netns",
        "network": {"pool": "internal", "ports": ports},
    }))
}

/// The path, and the folder with the device's pins.
pub(super) fn pv_net_device(by_port: bool) -> Result<(Wire, PathBuf)> {
    let device = Device::started(&configs::two_pools())?;
    let container = web(&device)?;
    pvnet::all_in_force(&device)?;
    let links = by_link(&device.ns, container.host_if(), &container.ns);
    let client = End { ns: &device.ns, address: GATEWAY.into() };
    let mut wire = pvnet::wire(&device, &client, &(&container).into());
    // The connection is redirected to the container before its first packet; its packets are the stack's.
    wire.witness = Witness::received("the container's link", links.clone());
    wire.shares.clear();
    wire.links = links;
    if by_port {
        wire.ends.connect = SocketAddr::new(GATEWAY.into(), PUBLISHED);
    }
    let pins = device.pins();
    wire.keep = Box::new((container, device));
    Ok((wire, pins))
}

fn hairpin() -> Result<Wire> {
    let net = nets::bridged(false)?;
    let device = net.device()?;
    nets::feed(device, "nft -f", HAIRPIN_NAT)?;
    let (witness, mark) = (Witness::routed(device), Witness::nft(device, "nat"));
    let mut wire = net.wire(witness);
    wire.marks.push(("the DNAT rule", mark));
    wire.ends.connect = SocketAddr::new(GATEWAY.into(), PUBLISHED);
    wire.seen_as = GATEWAY.into();
    Ok(wire)
}

fn pv_net_hairpin() -> Result<Wire> {
    let device = Device::started(&configs::two_pools())?;
    let (client, server) = (device.attach("client", "internal")?, web(&device)?);
    pvnet::all_in_force(&device)?;
    let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
    wire.ends.connect = SocketAddr::new(GATEWAY.into(), PUBLISHED);
    wire.keep = Box::new((client, server, device));
    Ok(wire)
}

/// Hairpin: packets leave by the container's link and come back by it.
fn to_itself() -> Result<Wire> {
    let Edge { outside, container, device } = Edge::new(false)?;
    // The device sends packets back by the link that they came from, and must not send redirects because of that.
    nets::sysctl(&device, "ipv4/conf/all/send_redirects", "0")?;
    nets::sysctl(&device, "ipv4/conf/c0/send_redirects", "0")?;
    nets::feed(&device, "nft -f", SELF_NAT)?;
    let (witness, mark) = (Witness::routed(&device), Witness::nft(&device, "nat"));
    let mut wire = nets::between((&container, CLIENT.into()), (&container, CLIENT.into()), witness);
    wire.keep = Box::new((outside, device));
    wire.marks.push(("the DNAT rule", mark));
    Ok(by_itself(wire, container))
}

/// Both ends are one container, which sees the gateway as its client.
fn by_itself(mut wire: Wire, keep: impl Sized + 'static) -> Wire {
    wire.links.truncate(1);
    wire.ends.connect = SocketAddr::new(GATEWAY.into(), PUBLISHED);
    wire.seen_as = GATEWAY.into();
    wire.keep = Box::new((wire.keep, keep));
    wire
}

fn pv_net_to_itself() -> Result<Wire> {
    let device = Device::started(&configs::two_pools())?;
    let container = web(&device)?;
    pvnet::all_in_force(&device)?;
    let wire = pvnet::wire(&device, &(&container).into(), &(&container).into());
    Ok(by_itself(wire, (container, device)))
}
