//! Attacks on the kernel's neighbour table, which the whole machine shares.

use crate::lab::{self, PORT, Sender};
use crate::trial::{Proto, Trial};
use anyhow::{Context, Result, ensure};
use harness::configs::UPLINK;
use harness::ear::Ear;
use harness::{Namespace, echo, eventually, frame};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// How many neighbours with one of these prefixes the device knows or looks for.
fn looked_for(ns: &Namespace, prefixes: &[&str]) -> Result<usize> {
    let said = ns.ip("neigh show nud all")?;
    Ok(said.lines().filter(|line| prefixes.iter().any(|p| line.starts_with(p)) && !line.contains("PERMANENT")).count())
}

const UNUSED: u16 = 200;

/// Sends a datagram to each of 200 addresses that nobody has.
fn sweep(from: &Sender, src: IpAddr, to: impl Fn(u16) -> IpAddr) -> Result<()> {
    (0..UNUSED).try_for_each(|n| from.send(&frame::udp((src, 5000 + n), (to(n), PORT), b"anybody?")))
}

fn unused(network: [&'static str; 2], family: usize) -> impl Fn(u16) -> IpAddr {
    move |n| {
        let text =
            if family == 0 { format!("{}{}", network[0], 40 + n) } else { format!("{}{:x}", network[1], 0x4000 + n) };
        text.parse().expect("an address")
    }
}

/// `net.ipv4.neigh.default.gc_thresh3` limits the neighbours of all namespaces together (net/core/neighbour.c). Some
/// hundred unanswered requests fill the table, and then nobody can look for a new neighbour.
#[test]
fn a_container_does_not_fill_the_neighbour_table() -> Result<()> {
    let lab = lab::lab(|config| {
        config["network"]["policies"] = json!([
            {"from": {"container": "denied"}, "to": {"cidr": "192.0.2.0/24"}, "action": "deny"},
            {"from": {"container": "denied"}, "to": {"cidr": "2001:db8:1::/64"}, "action": "deny"},
        ]);
    })?;
    let denied = lab.device.attach("denied", "internal")?;
    let (a, d) = (lab.sender(&lab.a.ns, "pvbr3")?, lab.sender(&denied.ns, "pvbr3")?);
    let outside = ["192.0.2.", "2001:db8:1::"];
    let other = ["10.0.4.", "fd00:5056:0:4::"];
    let own = ["10.0.3.", "fd00:5056:0:3::"];
    for family in [0, 1] {
        for (what, from, src, network, most) in [
            ("what a rule denies", &d, denied.addresses(), outside, 0),
            ("another pool", &a, lab.a.addresses(), other, 0),
            ("its own pool", &a, lab.a.addresses(), own, 64),
            ("the uplink's network", &a, lab.a.addresses(), outside, 64),
        ] {
            let count = || looked_for(&lab.device.ns, &[network[family]]);
            let before = count()?;
            let grown = lab::grown(&lab.device, || sweep(from, src[family], unused(network, family)))?;
            let asked = count()?.saturating_sub(before);
            ensure!(asked <= most, "{what}, family {family}: {asked} neighbours are looked for: {grown:?}");
            if what == "the uplink's network" {
                ensure!(lab::count(&grown, "neighbour-limit") > 0, "{what}, family {family}: {grown:?}");
            }
        }
        // Another container still finds a neighbour that the device does not know yet.
        let new = unused(outside, family)(UNUSED + u16::try_from(family)?);
        let (family_word, length) = if family == 0 { ("-4", 24) } else { ("-6", 64) };
        lab.out.ip(&format!("{family_word} addr add {new}/{length} dev eth0"))?;
        lab.out.settle()?;
        echo::serve(&lab.out, new, PORT)?;
        echo::udp(&lab.b.ns, (new, PORT).into(), b"found").context("b does not find a new neighbour")?;
    }
    Ok(())
}

/// Packets from outside to unpublished addresses do not make the kernel look for a neighbour, even where it forwards.
#[test]
fn outside_does_not_fill_the_neighbour_table() -> Result<()> {
    let allow = |config: &mut Value| {
        config["network"]["policies"] = json!([
            {"from": {"cidr": "192.0.2.9/32"}, "to": {"pool": "management"}, "action": "allow"},
            {"from": {"cidr": "2001:db8:1::9/128"}, "to": {"pool": "management"}, "action": "allow"},
        ]);
    };
    let (lab, ()) = lab::prepared(allow, lab::forwarding, &[])?;
    let out = lab.outsider()?;
    for (network, what) in [
        (["10.0.3.", "fd00:5056:0:3::"], "a pool that nothing of is published"),
        (["10.0.4.", "fd00:5056:0:4::"], "a pool that rules open"),
    ] {
        for family in [0, 1] {
            let before = looked_for(&lab.device.ns, &[network[family]])?;
            let grown = lab::grown(&lab.device, || sweep(&out, lab::host()[family], unused(network, family)))?;
            let asked = looked_for(&lab.device.ns, &[network[family]])?.saturating_sub(before);
            ensure!(asked <= 64, "{what}, family {family}: {asked} neighbours are looked for: {grown:?}");
        }
    }
    // A container that exists is reached by those that may.
    let mut trial = Trial::new(&lab.device, vec![Ear::link(&lab.c.ns, "eth0")?]);
    for (src, dst) in lab::host().into_iter().zip(lab.c.addresses()) {
        trial.passes(format!("{src} to {dst}"), |mark| out.send(&Proto::Udp.packet((src, 9), (dst, PORT), mark)))?;
    }
    trial.finish()
}

/// Every container still finds an existing neighbour on the uplink, again and again.
#[test]
fn a_sweep_of_one_container_does_not_stop_others() -> Result<()> {
    let lab = lab::lab(|_| ())?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    for addr in lab::host() {
        echo::serve(&lab.out, addr, PORT)?;
    }
    for round in 0..3 {
        lab.device.ns.ip(&format!("neigh flush dev {UPLINK}"))?;
        for (family, to) in lab::host().into_iter().enumerate() {
            sweep(&a, lab.a.addresses()[family], unused(["192.0.2.", "2001:db8:1::"], family))?;
            let found = eventually(Duration::from_secs(10), || echo::udp(&lab.b.ns, (to, PORT).into(), b"there?"));
            found.with_context(|| format!("round {round}: b does not reach {to}"))?;
            // The container that swept still reaches a neighbour that is known.
            echo::udp(&lab.a.ns, (to, PORT).into(), b"there?").with_context(|| format!("round {round}: a, {to}"))?;
        }
    }
    Ok(())
}
