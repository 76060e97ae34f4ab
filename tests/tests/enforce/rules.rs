//! What single rules allow and deny.

use crate::lab::{self, Lab, PORT, PUBLISHED, beyond, gateway, uplink};
use crate::probe::{Traffic, check};
use anyhow::{Context, Result, ensure};
use harness::echo;
use serde_json::{Value, json};
use std::net::IpAddr;

const ALL: [Traffic; 3] = [Traffic::Tcp(PORT), Traffic::Udp(PORT), Traffic::Ping];
const WEB_PORT: [Traffic; 2] = [Traffic::Tcp(PUBLISHED), Traffic::Udp(PUBLISHED)];

fn rule(from: Value, to: Value, action: &str) -> Value {
    json!({"from": from, "to": to, "action": action})
}

fn container(name: &str) -> Value {
    json!({"container": name})
}

/// Fails unless all of `traffic` passes, or none of it, as `may` says.
fn all(ns: &harness::Namespace, to: [IpAddr; 2], traffic: &[Traffic], may: bool, local: bool) -> Result<()> {
    for to in to {
        for one in traffic {
            check(ns, to, *one, may, local)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_allow_opens_what_is_closed() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let (a, c) = (lab.a.addresses(), lab.c.addresses());
    let closed = |what: &str| -> Result<()> {
        all(&lab.a.ns, c, &ALL, false, true).with_context(|| format!("{what}: an isolated pool"))?;
        all(&lab.a.ns, gateway(), &ALL[..2], false, true).with_context(|| format!("{what}: the device"))?;
        all(&lab.outside, c, &ALL, false, false).with_context(|| format!("{what}: from outside"))
    };
    closed("without rules")?;
    let allows = [
        rule(container("a"), container("c"), "allow"),
        rule(json!({"pool": "internal"}), json!("host"), "allow"),
        rule(json!("world"), container("c"), "allow"),
    ];
    lab.set_rules(json!(allows))?;
    all(&lab.a.ns, c, &ALL, true, true).context("an isolated pool")?;
    all(&lab.c.ns, a, &ALL, false, true).context("the other way")?;
    all(&lab.a.ns, gateway(), &ALL, true, true).context("the device")?;
    all(&lab.outside, c, &ALL, true, false).context("a routed container from outside")?;
    // A deny has precedence, whatever the order.
    for at_the_front in [false, true] {
        let mut rules = allows.to_vec();
        let denies = [
            rule(json!({"pool": "internal"}), json!({"pool": "management"}), "deny"),
            rule(container("a"), json!("host"), "deny"),
            rule(json!({"cidr": "192.0.2.0/24"}), json!({"pool": "management"}), "deny"),
            rule(json!({"cidr": "2001:db8::/32"}), json!({"pool": "management"}), "deny"),
        ];
        let at = if at_the_front { 0 } else { rules.len() };
        rules.splice(at..at, denies);
        lab.set_rules(json!(rules))?;
        closed("a deny beside the allow")?;
    }
    lab.set_rules(json!([]))?;
    closed("without rules again")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_deny_closes_what_is_open() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let (a, b) = (lab.a.addresses(), lab.b.addresses());
    let (world, host) = (json!("world"), json!("host"));
    let network = |from: Value, to: Value| (from, to);
    let (v4, v6) = (json!({"cidr": "192.0.2.0/24"}), json!({"cidr": "2001:db8:1::/64"}));
    let dns = [Traffic::Tcp(53), Traffic::Udp(53), Traffic::Ping];
    let cases = [
        ("in a pool", vec![network(container("a"), container("b"))], &lab.a.ns, b, &ALL[..], true),
        (
            "masquerade",
            vec![(container("a"), v4.clone()), (container("a"), v6.clone())],
            &lab.a.ns,
            beyond(),
            &ALL,
            true,
        ),
        ("published, world", vec![(world, container("a"))], &lab.outside, uplink(), &WEB_PORT, false),
        (
            "published, network",
            vec![(v4, container("a")), (v6, container("a"))],
            &lab.outside,
            uplink(),
            &WEB_PORT,
            false,
        ),
        ("published, peer", vec![(container("b"), container("a"))], &lab.b.ns, gateway(), &WEB_PORT, true),
        ("to the device", vec![(container("a"), host.clone())], &lab.a.ns, gateway(), &dns, true),
        ("from the device", vec![(host, container("a"))], &lab.device.ns, a, &ALL, true),
    ];
    for (name, pairs, from, to, traffic, local) in cases {
        all(from, to, traffic, true, local).with_context(|| format!("{name}: without the rule"))?;
        let denies: Vec<Value> = pairs.into_iter().map(|(from, to)| rule(from, to, "deny")).collect();
        lab.set_rules(json!(denies))?;
        all(from, to, traffic, false, local).with_context(|| format!("{name}: with the rule"))?;
        lab.set_rules(json!([]))?;
        all(from, to, traffic, true, local).with_context(|| format!("{name}: the rule is gone"))?;
    }
    Ok(())
}

/// 169.254.0.0/16 is routed like any other network: a cloud's metadata service has an address there, and for IPv6 a
/// unique local one.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_route_to_a_metadata_service_is_no_way_round_the_rules() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    let service = lab::both("169.254.169.254", "fd00:ec2::254");
    for (addr, link) in [("169.254.169.254/32", ""), ("fd00:ec2::254/128", "-6 ")] {
        lab.outside.ip(&format!("{link}addr add {addr} dev eth0"))?;
        let via = if link.is_empty() { "192.0.2.9" } else { "2001:db8:1::9" };
        lab.device.ns.ip(&format!("{link}route add {addr} via {via} dev up0"))?;
    }
    const METADATA: u16 = 7100;
    for (to, masked) in service.into_iter().zip(uplink()) {
        echo::serve(&lab.outside, to, METADATA)?;
        for seen in [
            echo::udp(&lab.a.ns, (to, METADATA).into(), b"instance-id")?,
            echo::tcp(&lab.a.ns, (to, METADATA).into(), b"instance-id")?,
        ] {
            ensure!(seen.ip() == masked, "{to} saw {seen}");
        }
        ensure!(
            lab.explains(lab.a.addresses()[usize::from(to.is_ipv6())], to, "udp/7100")?,
            "{to}: explained as denied"
        );
    }
    let to = |cidr: &str| rule(json!({"pool": "internal"}), json!({"cidr": cidr}), "deny");
    lab.set_rules(json!([to("169.254.0.0/16"), to("fd00:ec2::/64")]))?;
    let denied = [Traffic::Tcp(METADATA), Traffic::Udp(METADATA), Traffic::Ping];
    all(&lab.a.ns, service, &denied, false, true).context("with the rules")
}
