//! The case of a container that reaches a host outside behind the device's address (masquerade).

use super::east_west::USUAL;
use crate::case::{Candidate, Case, Metric};
use crate::nets::{self, Edge, Net, OUTSIDE, UPLINK};
use crate::options::Options;
use crate::pvnet::{self, End};
use crate::rules;
use crate::wire::Wire;
use crate::witness::Witness;
use anyhow::Result;
use harness::{Device, configs};
use serde_json::json;

/// The case.
pub struct Masquerade;

impl Case for Masquerade {
    fn name(&self) -> &'static str {
        "masquerade"
    }

    fn about(&self) -> &'static str {
        "from a container to outside, behind the device's address"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft", "iptables", "iptables-restore"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("plain routing", plain),
            Candidate::new("iptables MASQUERADE", iptables),
            Candidate::new("Docker's rules", docker),
            Candidate::new("nftables masquerade", || nft(false, NFT)),
            Candidate::new("netavark's rules", || nft(true, &rules::netavark(None))),
            Candidate::new("pv-net", pv_net),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&USUAL)
    }
}

const NFT: &str = "table inet bench { chain nat { type nat hook postrouting priority srcnat;
    oifname \"eth0\" ip saddr 10.0.3.0/24 counter masquerade
}
}";

fn plain() -> Result<Wire> {
    let net = Edge::new(false)?.open()?.outward();
    let witness = Witness::routed(net.device()?);
    Ok(net.wire(witness))
}

/// A path whose server must see the device's address, and whose NAT rule counts new flows.
fn masqueraded(net: Net, witness: Witness, mark: Witness) -> Wire {
    let mut wire = net.wire(witness);
    wire.seen_as = UPLINK.into();
    wire.marks.push(("the masquerade rule", mark));
    wire
}

fn iptables() -> Result<Wire> {
    let net = Edge::new(false)?.outward();
    let device = net.device()?;
    device.sh("iptables -w -t nat -A POSTROUTING -s 10.0.3.0/24 -o eth0 -j MASQUERADE")?;
    let mark = Witness::iptables(device, "nat", "POSTROUTING", "MASQUERADE");
    let witness = Witness::routed(device);
    Ok(masqueraded(net, witness, mark))
}

fn docker() -> Result<Wire> {
    let net = Edge::new(true)?.outward();
    let device = net.device()?;
    nets::feed(device, "iptables-restore", &rules::docker(&[]))?;
    let mark = Witness::iptables(device, "nat", "POSTROUTING", "MASQUERADE");
    let witness = Witness::iptables(device, "filter", "FORWARD", "ACCEPT");
    Ok(masqueraded(net, witness, mark))
}

fn nft(bridged: bool, rules: &str) -> Result<Wire> {
    let net = Edge::new(bridged)?.outward();
    let device = net.device()?;
    nets::feed(device, "nft -f", rules)?;
    let (witness, mark) = if bridged {
        (Witness::nft(device, "forward"), Witness::nft(device, "network"))
    } else {
        (Witness::routed(device), Witness::nft(device, "nat"))
    };
    Ok(masqueraded(net, witness, mark))
}

fn pv_net() -> Result<Wire> {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["eth0"]);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    let mut device = Device::new(&config)?;
    let outside = device.outside("eth0", &["192.0.2.1/24"], &["192.0.2.2/24"])?;
    device.start()?;
    let container = device.attach("web", "internal")?;
    pvnet::all_in_force(&device)?;
    let server = End { ns: &outside, address: OUTSIDE.into() };
    let mut wire = pvnet::wire(&device, &(&container).into(), &server);
    wire.seen_as = UPLINK.into();
    wire.keep = Box::new((container, outside, device));
    Ok(wire)
}
