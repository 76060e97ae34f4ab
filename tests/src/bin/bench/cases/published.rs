//! From outside to a published port of a container.

use super::east_west::USUAL;
use crate::case::{Candidate, Case, Metric};
use crate::nets::{self, CLIENT, Edge, PORT, PUBLISHED, UPLINK};
use crate::options::Options;
use crate::pvnet::{self, End};
use crate::rules;
use crate::wire::Wire;
use crate::witness::Witness;
use anyhow::Result;
use harness::{Device, Namespace, Process, configs, eventually};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The case.
pub struct Published;

impl Case for Published {
    fn name(&self) -> &'static str {
        "published"
    }

    fn about(&self) -> &'static str {
        "from outside to a container's published port"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft", "iptables", "iptables-restore", "socat", "ss"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("plain routing", plain),
            Candidate::new("iptables DNAT", iptables),
            Candidate::new("Docker's rules", docker),
            Candidate::new("nftables DNAT", nft),
            Candidate::new("netavark's rules", netavark),
            Candidate::new("socat", socat),
            Candidate::new("pv-net", || Ok(pv_net(false)?.0)),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&USUAL)
    }
}

/// No NAT: the container's own address, as a router would see it.
fn plain() -> Result<Wire> {
    let net = Edge::new(false)?.open()?.inward();
    let witness = Witness::routed(net.device()?);
    Ok(net.wire(witness))
}

/// Makes the client connect to the device's address and the published port.
pub(super) fn published(mut wire: Wire) -> Wire {
    wire.ends.connect = SocketAddr::new(UPLINK.into(), PUBLISHED);
    wire
}

fn iptables() -> Result<Wire> {
    let net = Edge::new(false)?.inward();
    let device = net.device()?;
    for proto in ["tcp", "udp"] {
        let rule =
            format!("-A PREROUTING -i eth0 -p {proto} --dport {PUBLISHED} -j DNAT --to-destination {CLIENT}:{PORT}");
        device.sh(&format!("iptables -w -t nat {rule}"))?;
    }
    let (witness, mark) = (Witness::routed(device), Witness::iptables(device, "nat", "PREROUTING", "DNAT"));
    let mut wire = published(net.wire(witness));
    wire.marks.push(("the DNAT rule", mark));
    Ok(wire)
}

fn docker() -> Result<Wire> {
    let net = Edge::new(true)?.inward();
    let (device, ip) = (net.device()?, CLIENT.to_string());
    nets::feed(device, "iptables-restore", &rules::docker(&[(&ip, "tcp"), (&ip, "udp")]))?;
    let mark = Witness::iptables(device, "nat", "DOCKER", "DNAT");
    let accepted =
        [("FORWARD", "ACCEPT"), ("DOCKER", "ACCEPT")].map(|(c, t)| Witness::iptables(device, "filter", c, t));
    let witness = Witness::new("Docker's ACCEPT rules", move |work| accepted.iter().map(|w| w.count(work)).sum());
    let mut wire = published(net.wire(witness));
    wire.marks.push(("the DNAT rule", mark));
    Ok(wire)
}

fn nft() -> Result<Wire> {
    let net = Edge::new(false)?.inward();
    let device = net.device()?;
    nets::feed(
        device,
        "nft -f",
        &format!(
            "table inet bench {{ chain nat {{ type nat hook prerouting priority dstnat;
                 iifname \"eth0\" meta l4proto {{ tcp, udp }} th dport {PUBLISHED} counter dnat ip to {CLIENT}:{PORT}
}}
}}"
        ),
    )?;
    let (witness, mark) = (Witness::routed(device), Witness::nft(device, "nat"));
    let mut wire = published(net.wire(witness));
    wire.marks.push(("the DNAT rule", mark));
    Ok(wire)
}

fn netavark() -> Result<Wire> {
    let net = Edge::new(true)?.inward();
    let device = net.device()?;
    nets::feed(device, "nft -f", &rules::netavark(Some(CLIENT)))?;
    let (witness, mark) = (Witness::routed(device), Witness::nft(device, "network-dnat"));
    let mut wire = published(net.wire(witness));
    wire.marks.push(("the DNAT rule", mark));
    Ok(wire)
}

/// A proxy in userspace, from the device's published port to the container's.
pub(super) fn start_socat(device: &Namespace) -> Result<Vec<Process>> {
    nets::sysctl(device, "ipv4/ip_forward", "0")?;
    let mut proxies = Vec::new();
    for (from, to) in [("TCP4-LISTEN", "TCP4"), ("UDP4-LISTEN", "UDP4")] {
        let options = "fork,reuseaddr,bind=192.0.2.1";
        let nodelay = if to == "TCP4" { ",nodelay" } else { "" };
        let (listen, connect) =
            (format!("{from}:{PUBLISHED},{options}{nodelay}"), format!("{to}:{CLIENT}:{PORT}{nodelay}"));
        let mut command = device.command("socat");
        // A proxy without its server prints an error for each connection; the path's own check reports that once.
        // Without a time-out the process for a UDP client would never end.
        command.args(["-T", "2", &listen, &connect]).stderr(std::process::Stdio::null());
        proxies.push(Process::start(&mut command)?);
    }
    eventually(Duration::from_secs(5), || {
        let said = device.sh("ss -Hltun")?;
        anyhow::ensure!(said.matches(":8080").count() >= 2, "socat does not listen: {said}");
        Ok(())
    })?;
    Ok(proxies)
}

/// A proxy: the container sees the device as its client.
fn socat() -> Result<Wire> {
    let net = Edge::new(false)?.inward();
    let device = net.device()?;
    let proxies = start_socat(device)?;
    // Nothing is routed on this path: the packets on `c0` come from the proxy, and have its address.
    let sent = crate::witness::Link::new(device, "c0");
    let witness = Witness::proxied(vec![crate::witness::Link::new(device, "eth0"), sent]);
    let carriers = proxies.iter().map(Process::pid).collect();
    let mut wire = published(net.wire(witness));
    wire.seen_as = std::net::Ipv4Addr::new(10, 0, 3, 1).into();
    wire.carriers = carriers;
    wire.keep = Box::new((proxies, wire.keep));
    Ok(wire)
}

/// The path, and the folder with the device's pins. With `filter` there is an XDP program before the stack.
pub(super) fn pv_net(filter: bool) -> Result<(Wire, PathBuf)> {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["eth0"]);
    if filter {
        config["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"]});
    }
    let mut device = Device::new(&config)?;
    let outside = device.outside("eth0", &["192.0.2.1/24"], &["192.0.2.2/24"])?;
    device.start()?;
    let container = device.attach_run(&json!({
        "#spec": "service-manifest-run@1", "name": "web", "type": "netns",
        "network": {"pool": "internal", "ports": [format!("{PUBLISHED}:{PORT}/tcp"), format!("{PUBLISHED}:{PORT}/udp")]},
    }))?;
    pvnet::all_in_force(&device)?;
    let client = End { ns: &outside, address: nets::OUTSIDE.into() };
    let mut wire = published(pvnet::wire(&device, &client, &(&container).into()));
    let pins = device.pins();
    wire.keep = Box::new((container, outside, device));
    Ok((wire, pins))
}
