//! What a link needs, and rules about it: neighbour discovery, link-local addresses.

use crate::lab::{self, Lab, PORT};
use crate::probe::{Traffic, check};
use anyhow::{Context, Result};
use serde_json::json;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn neighbours_are_found_whatever_the_rules_say() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let deny = json!([{"from": {"container": "a"}, "to": {"container": "b"}, "action": "deny"}]);
    lab.set_rules(deny)?;
    for to in lab.a.addresses() {
        for traffic in [Traffic::Ping, Traffic::Tcp(PORT), Traffic::Udp(PORT)] {
            // Asked for by a broadcast, or a group; and, once known, from one to the other.
            for known in [false, true] {
                if !known {
                    lab.b.ns.ip("neigh flush dev eth0")?;
                    lab.a.ns.ip("neigh flush dev eth0")?;
                }
                check(&lab.b.ns, to, traffic, true, true).with_context(|| format!("neighbours known: {known}"))?;
            }
        }
    }
    for to in lab.b.addresses() {
        for traffic in [Traffic::Ping, Traffic::Tcp(PORT), Traffic::Udp(PORT)] {
            check(&lab.a.ns, to, traffic, false, true).context("the other way")?;
        }
    }
    Ok(())
}
