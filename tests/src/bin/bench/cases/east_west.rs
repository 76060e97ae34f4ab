//! Between two containers on one device.

use crate::case::{Candidate, Case, Metric};
use crate::options::Options;
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use crate::{nets, pvnet};
use anyhow::Result;
use harness::{Device, configs};

/// The case.
pub struct EastWest;

/// What every case about paths between two ends measures.
pub const USUAL: [&str; 7] =
    ["rr-same", "rr-split", "crr-same", "crr-split", "stream1-split", "stream4-split", "udp-same"];

impl Case for EastWest {
    fn name(&self) -> &'static str {
        "east-west"
    }

    fn about(&self) -> &'static str {
        "between two containers on one device"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft", "iptables", "iptables-restore", "bridge"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("direct veth pair", direct),
            Candidate::new("Linux bridge", bridge),
            Candidate::new("bridge, Docker's rules", docker),
            Candidate::new("routed, nft stateful", || nft(STATEFUL)),
            Candidate::new("pv-net, one pool", || pv_net("internal")),
            Candidate::new("pv-net, two open pools", || pv_net("management")),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&USUAL)
    }
}

/// One veth pair; the other end counts what it receives.
pub fn direct() -> Result<Wire> {
    let net = nets::direct()?;
    let ends = vec![Link::new(&net.client.0, "eth0"), Link::new(&net.server.0, "eth0")];
    let witness = Witness::received("the other end of the pair", ends);
    Ok(net.wire(witness))
}

/// A bridge without rules.
pub fn bridge() -> Result<Wire> {
    let net = nets::bridged(false)?;
    let witness = nets::bridge_ports(&net)?;
    Ok(net.wire(witness))
}

/// A bridge as Docker leaves it.
pub fn docker() -> Result<Wire> {
    let net = nets::bridged(true)?;
    let device = net.device()?;
    nets::feed(device, "iptables-restore", &docker_rules(&[]))?;
    let witness = Witness::iptables(device, "filter", "FORWARD", "ACCEPT");
    Ok(net.wire(witness))
}

/// A device that routes, with a stateful firewall.
pub const STATEFUL: &str = "table inet bench { chain forward { type filter hook forward priority filter; policy drop;
    ct state established,related counter accept
    ct state invalid drop
    ip saddr 10.0.3.0/24 ip daddr 10.0.4.0/24 counter accept
}
}";

/// A device that routes, with these rules; their `forward` chain counts what it accepts.
pub fn nft(rules: &str) -> Result<Wire> {
    let net = nets::routed()?;
    let device = net.device()?;
    nets::feed(device, "nft -f", rules)?;
    let witness = Witness::nft(device, "forward");
    Ok(net.wire(witness))
}

/// Docker's rule set (28, bridge `docker0`) for containers whose port is published: address and protocol of each.
pub fn docker_rules(published: &[(&str, &str)]) -> String {
    let (port, to) = (nets::PUBLISHED, nets::PORT);
    let filter = |(ip, proto): &(&str, &str)| {
        format!("-A DOCKER -d {ip}/32 ! -i docker0 -o docker0 -p {proto} -m {proto} --dport {to} -j ACCEPT\n")
    };
    let hairpin = |(ip, proto): &(&str, &str)| {
        format!("-A POSTROUTING -s {ip}/32 -d {ip}/32 -p {proto} -m {proto} --dport {to} -j MASQUERADE\n")
    };
    let nat = |(ip, proto): &(&str, &str)| {
        format!("-A DOCKER ! -i docker0 -p {proto} -m {proto} --dport {port} -j DNAT --to-destination {ip}:{to}\n")
    };
    format!(
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
{}-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.0.3.0/24 ! -o docker0 -j MASQUERADE
{}-A DOCKER -i docker0 -j RETURN
{}COMMIT
",
        published.iter().map(filter).collect::<String>(),
        published.iter().map(hairpin).collect::<String>(),
        published.iter().map(nat).collect::<String>(),
    )
}

/// From a container in `internal` to one in `pool`.
fn pv_net(pool: &str) -> Result<Wire> {
    let device = Device::started(&configs::open_pools())?;
    let (client, server) = (device.attach("a", "internal")?, device.attach("b", pool)?);
    let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
    wire.keep = Box::new((client, server, device));
    Ok(wire)
}
