//! How the number of policy rules changes the speed between two containers.

use super::east_west::nft;
use crate::case::{Candidate, Case, Metric};
use crate::nets::{self, Net};
use crate::options::Options;
use crate::pvnet;
use crate::wire::Wire;
use crate::witness::Witness;
use anyhow::{Context, Result, ensure};
use harness::{Device, configs};
use serde_json::json;
use std::fmt::Write;

/// The case.
pub struct Policy;

impl Case for Policy {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn about(&self) -> &'static str {
        "between two containers of two networks, by the number of rules"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nft", "iptables", "iptables-restore"]
    }

    fn paths(&self, options: &Options) -> Vec<Candidate> {
        let (few, many) = if options.small { (10, 100) } else { (10, 10_000) };
        let mut paths = vec![Candidate::new("routing, no rules", routing)];
        let counts = if options.small { vec![few, many] } else { vec![few, 1000, many] };
        for n in &counts {
            let n = *n;
            paths.push(Candidate::new(format!("nft, {n} rules"), move || counted(nft(&linear(n))?, n, NFT_RULES)));
        }
        paths.push(Candidate::new(format!("nft verdict map, {many}"), move || {
            counted(nft(&verdict_map(many))?, many, NFT_PAIRS)
        }));
        for n in &counts {
            let n = *n;
            paths.push(Candidate::new(format!("iptables, {n} rules"), move || iptables(n)));
        }
        for n in counts {
            paths.push(Candidate::new(format!("pv-net, {n} rules"), move || pv_net(n)));
        }
        paths
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&["rr-same", "crr-same", "udp-same"])
    }
}

/// A command that lists rules, and the words that its output has once for each rule.
type Listing = (&'static str, &'static [&'static str]);
const NFT_RULES: Listing = ("nft list chain inet bench forward", &["dport 99 drop", "accept"]);
const NFT_PAIRS: Listing = ("nft list map inet bench pairs", &[" : drop", " : accept"]);
const IPTABLES_RULES: Listing = ("iptables -w -S FORWARD", &["-A FORWARD"]);

/// The path, after checking that the kernel has `n` rules: with fewer of them the path would be faster.
fn counted(wire: Wire, n: usize, (command, each): Listing) -> Result<Wire> {
    let device = wire.keep.downcast_ref::<Net>().context("no network")?.device()?;
    let said = device.sh(command)?;
    let found: usize = each.iter().map(|word| said.matches(word).count()).sum();
    ensure!(found == n, "{found} rules are loaded, not {n}");
    Ok(wire)
}

fn routing() -> Result<Wire> {
    let net = nets::routed()?;
    let witness = Witness::routed(net.device()?);
    Ok(net.wire(witness))
}

/// An address that nobody here has, a different one for each number.
fn stranger(n: usize) -> String {
    format!("198.18.{}.{}", n / 250, n % 250 + 1)
}

/// `n` rules of which the last two let the packets pass.
fn linear(n: usize) -> String {
    let mut rules = String::new();
    for i in 0..n.saturating_sub(2) {
        let _ = writeln!(rules, "ip saddr {} th dport 99 drop", stranger(i));
    }
    format!(
        "table inet bench {{ chain forward {{ type filter hook forward priority filter; policy drop;
        {rules}
        ip saddr 10.0.3.0/24 ip daddr 10.0.4.0/24 counter accept
        ip saddr 10.0.4.0/24 ip daddr 10.0.3.0/24 counter accept
}}
}}"
    )
}

/// A map of `n` pairs of addresses to their verdicts.
fn verdict_map(n: usize) -> String {
    let mut pairs = String::new();
    for i in 0..n.saturating_sub(2) {
        let _ = write!(pairs, "{} . 10.0.4.2 : drop, ", stranger(i));
    }
    format!(
        "table inet bench {{ map pairs {{ type ipv4_addr . ipv4_addr : verdict
        elements = {{ {pairs} 10.0.3.2 . 10.0.4.2 : accept, 10.0.4.2 . 10.0.3.2 : accept }} }}
        chain forward {{ type filter hook forward priority filter; policy drop;
        counter
        ip saddr . ip daddr vmap @pairs
}}
}}"
    )
}

fn iptables(n: usize) -> Result<Wire> {
    let net = nets::routed()?;
    let device = net.device()?;
    let mut rules = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for i in 0..n.saturating_sub(2) {
        let _ = writeln!(rules, "-A FORWARD -s {}/32 -p tcp -m tcp --dport 99 -j DROP", stranger(i));
    }
    rules += "-A FORWARD -s 10.0.3.0/24 -d 10.0.4.0/24 -j ACCEPT\n";
    rules += "-A FORWARD -s 10.0.4.0/24 -d 10.0.3.0/24 -j ACCEPT\nCOMMIT\n";
    nets::feed(device, "iptables-restore", &rules)?;
    let witness = Witness::iptables(device, "filter", "FORWARD", "ACCEPT");
    counted(net.wire(witness), n, IPTABLES_RULES)
}

/// Pools that are closed to each other, and `n` rules, of which the last allows the packets.
fn pv_net(n: usize) -> Result<Wire> {
    let mut config = configs::two_pools();
    let deny = |i: usize| {
        json!({"name": format!("deny-{i}"), "from": {"container": "a"}, "to": {"cidr": format!("{}/32", stranger(i))},
               "ports": ["tcp/99"], "action": "deny"})
    };
    let mut rules: Vec<_> = (0..n.saturating_sub(1)).map(deny).collect();
    rules.push(json!({"name": "allow", "from": {"container": "a"}, "to": {"container": "b"}, "action": "allow"}));
    config["network"]["policies"] = json!(rules);
    let device = Device::started(&config)?;
    let (client, server) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    pvnet::all_in_force(&device)?;
    let listed = device.json(&["policy", "list"])?;
    let in_force = listed.as_array().into_iter().flatten().filter(|rule| rule["in_force"] == true).count();
    ensure!(in_force == n, "{in_force} rules are in force, not {n}");
    // The last deny rule is in the kernel's maps too.
    let last = n.saturating_sub(2);
    let verdict = device.json(&["policy", "explain", "a", &stranger(last), "tcp/99"])?;
    ensure!(verdict["rule"] == format!("deny-{last}"), "the kernel does not know rule deny-{last}: {verdict}");
    let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
    wire.keep = Box::new((client, server, device));
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_path_without_its_rules_is_none() -> Result<()> {
        counted(nft(&linear(10))?, 10, NFT_RULES)?;
        let why = counted(nft(&linear(9))?, 10, NFT_RULES).err().context("a rule is missing")?.to_string();
        ensure!(why == "9 rules are loaded, not 10", "{why}");
        ensure!(counted(nft(&verdict_map(9))?, 10, NFT_PAIRS).is_err(), "a pair is missing");
        Ok(())
    }
}
