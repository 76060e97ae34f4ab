//! The case of two containers on one device.

use crate::case::{Candidate, Case, Metric};
use crate::options::Options;
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use crate::{nets, pvnet, rules};
use anyhow::Result;
use harness::{Device, configs};

/// The case.
pub struct EastWest;

/// What every case with a path between two ends measures.
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
            Candidate::new("bridge, Docker's rules and br_netfilter", docker_netfilter),
            Candidate::new("routed, nft stateful", || nft(STATEFUL)),
            Candidate::new("pv-net, one pool", || pv_net("internal")),
            Candidate::new("pv-net, two open pools", || pv_net("management")),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&USUAL)
    }
}

/// One veth pair; the receiving end counts the packets.
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

/// A bridge as Docker sets it up: its rules exist, but packets between ports of the bridge do not pass them.
fn docker() -> Result<Wire> {
    let net = nets::bridged(false)?;
    nets::feed(net.device()?, "iptables-restore", &rules::docker(&[]))?;
    let witness = nets::bridge_ports(&net)?;
    Ok(net.wire(witness))
}

/// The same, where packets between ports of the bridge pass the rules.
fn docker_netfilter() -> Result<Wire> {
    let net = nets::bridged(true)?;
    let device = net.device()?;
    nets::feed(device, "iptables-restore", &rules::docker(&[]))?;
    let witness = Witness::iptables(device, "filter", "FORWARD", "ACCEPT");
    Ok(net.wire(witness))
}

/// The rules of a stateful firewall, for a device that routes.
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

/// From a container in `internal` to one in `pool`.
fn pv_net(pool: &str) -> Result<Wire> {
    let device = Device::started(&configs::open_pools())?;
    let (client, server) = (device.attach("a", "internal")?, device.attach("b", pool)?);
    let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
    wire.keep = Box::new((client, server, device));
    Ok(wire)
}
