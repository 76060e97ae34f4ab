//! `policy explain` and real packets always give the same verdict.

use crate::lab::{self, Lab, PORT, PUBLISHED, WEB, beyond, gateway, other_gateway, uplink};
use crate::probe::{Traffic, check};
use anyhow::{Context, Result, ensure};
use harness::{Namespace, echo};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The server ports of DHCP and DHCPv6.
const DHCP: [u16; 2] = [67, 547];

/// The lab, with servers on the DHCP ports too.
fn lab() -> Result<Lab> {
    let lab = Lab::new(&lab::config(json!([])))?;
    for addr in [gateway(), other_gateway(), uplink()].concat() {
        for port in DHCP {
            echo::serve(&lab.device.ns, addr, port)?;
        }
    }
    Ok(lab)
}

/// A random number generator (xorshift): the same seed gives the same numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % sides
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len())]
    }
}

fn rules(dice: &mut Dice) -> Value {
    let parties = [
        json!({"container": "a"}),
        json!({"container": "b"}),
        json!({"container": "c"}),
        json!({"pool": "internal"}),
        json!({"pool": "management"}),
        json!({"cidr": "192.0.2.0/24"}),
        json!({"cidr": "2001:db8:1::9"}),
        json!({"cidr": "10.0.4.0/24"}),
        json!({"cidr": "fd00:5056:0:3::/64"}),
        json!("host"),
        json!("world"),
    ];
    let ports = [
        Value::Null,
        json!(["tcp"]),
        json!(["udp"]),
        json!(["icmp"]),
        json!(["tcp/7000", "udp/53-80"]),
        json!(["udp/7000", "icmp"]),
        json!(["tcp/53-80"]),
        json!(["tcp/8080", "udp/8080"]),
    ];
    let mut rule = |action: &str| {
        let (from, mut to) = (dice.pick(&parties).clone(), dice.pick(&parties).clone());
        // Two networks of different families never meet, and the configuration refuses such a rule.
        while from.get("cidr").is_some() && to.get("cidr").is_some() {
            to = dice.pick(&parties).clone();
        }
        let mut rule = json!({"from": from, "to": to, "action": action});
        // A rule without ports is about all traffic.
        if let ports @ Value::Array(_) = dice.pick(&ports) {
            rule["ports"] = ports.clone();
        }
        rule
    };
    let all: Vec<Value> = ["allow", "deny", "allow", "allow", "deny", "allow", "deny", "allow"].map(&mut rule).to_vec();
    json!(all)
}

/// A sender: its namespace, its addresses, and the addresses to which it sends.
struct Sender<'a> {
    ns: &'a Namespace,
    addresses: [IpAddr; 2],
    targets: Vec<[IpAddr; 2]>,
    /// Whether the sender gets an answer when it is refused: containers and the device do.
    told: bool,
}

fn senders(lab: &Lab) -> Vec<Sender<'_>> {
    let (a, b, c) = (lab.a.addresses(), lab.b.addresses(), lab.c.addresses());
    let of_pool = |who: &'_ harness::Container, at: [IpAddr; 2], others: [[IpAddr; 2]; 2]| {
        ([others[0], others[1], beyond(), at, uplink()].to_vec(), who.addresses())
    };
    let mut all = Vec::new();
    for (who, at, others) in
        [(&lab.a, gateway(), [b, c]), (&lab.b, gateway(), [a, c]), (&lab.c, other_gateway(), [a, b])]
    {
        let (targets, addresses) = of_pool(who, at, others);
        all.push(Sender { ns: &who.ns, addresses, targets, told: true });
    }
    // The device uses the gateway's address as its source in a pool.
    let device = &lab.device.ns;
    all.push(Sender { ns: device, addresses: gateway(), targets: vec![a, b], told: true });
    all.push(Sender { ns: device, addresses: other_gateway(), targets: vec![c], told: true });
    all.push(Sender { ns: &lab.outside, addresses: beyond(), targets: vec![a, b, c, uplink()], told: false });
    all
}

/// The traffic to `to` that something there answers.
fn traffic(to: IpAddr) -> Vec<Traffic> {
    let mut all = vec![Traffic::Ping, Traffic::Tcp(PORT), Traffic::Udp(PORT), Traffic::Tcp(WEB), Traffic::Udp(WEB)];
    let of_device = [gateway(), other_gateway(), uplink()].concat().contains(&to);
    if of_device {
        all.extend([Traffic::Tcp(PUBLISHED), Traffic::Udp(PUBLISHED), Traffic::Tcp(53), Traffic::Udp(53)]);
        all.extend(DHCP.map(Traffic::Udp));
    }
    all
}

fn agree(lab: &Lab, sender: &Sender<'_>, to: [IpAddr; 2], what: impl Fn(&[Traffic]) -> Vec<Traffic>) -> Result<bool> {
    let mut denied = false;
    for (from, to) in sender.addresses.into_iter().zip(to) {
        for traffic in what(&traffic(to)) {
            let may = lab.explains(from, to, &traffic.to_string())?;
            denied |= !may;
            check(sender.ns, to, traffic, may, sender.told).with_context(|| {
                let said =
                    lab.device.cli(&["policy", "explain", &from.to_string(), &to.to_string(), &traffic.to_string()]);
                format!("from {from}; explained as {}", said.stdout)
            })?;
        }
    }
    Ok(denied)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn random_policies_do_what_explain_says() -> Result<()> {
    let lab = lab()?;
    for seed in 1..=6u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rules = rules(&mut dice);
        lab.set_rules(rules.clone())?;
        let senders = senders(&lab);
        for _ in 0..8 {
            let sender = dice.pick(&senders);
            let to = *dice.pick(&sender.targets);
            let choice = dice.roll(100);
            agree(&lab, sender, to, |all| vec![all[choice % all.len()]])
                .with_context(|| format!("seed {seed}: {rules}"))?;
        }
    }
    Ok(())
}

/// Compares all traffic of `sender` with `policy explain`; true when any of it is denied.
fn all_of(lab: &Lab, sender: &Sender<'_>) -> Result<bool> {
    let mut denied = false;
    for to in &sender.targets {
        // `WEB` differs from `PORT` only where it is published.
        let published = sender.addresses == beyond() && *to == lab.a.addresses();
        let few = |all: &[Traffic]| {
            let of_web = [Traffic::Tcp(WEB), Traffic::Udp(WEB)];
            all.iter().copied().filter(|t| published || !of_web.contains(t)).collect()
        };
        denied |= agree(lab, sender, *to, few)?;
    }
    Ok(denied)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn defaults_do_what_explain_says() -> Result<()> {
    let lab = lab()?;
    for (isolated, access, nat) in [
        ([true, true], ["services", "services"], [true, false]),
        ([true, false], ["none", "all"], [false, true]),
        ([false, false], ["all", "none"], [true, true]),
        ([false, true], ["services", "none"], [false, false]),
    ] {
        let mut config = lab::config(json!([]));
        for (i, pool) in ["internal", "management"].into_iter().enumerate() {
            let settings = &mut config["network"]["pools"][pool];
            settings["isolated"] = json!(isolated[i]);
            settings["host_access"] = json!(access[i]);
            settings["nat"] = json!(nat[i]);
        }
        lab.reload(&config)?;
        let mut senders = senders(&lab);
        // `b` differs from `a` only in the published port, so only its traffic to the pool and the device adds
        // something.
        senders[1].targets.retain(|to| *to == lab.a.addresses() || *to == gateway());
        // Most of the time is spent waiting, so all send at the same time.
        let denied: Vec<Result<bool>> = std::thread::scope(|scope| {
            let all: Vec<_> = senders.iter().map(|sender| scope.spawn(|| all_of(&lab, sender))).collect();
            let ended = |one: std::thread::ScopedJoinHandle<'_, _>| {
                one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a sender panicked")))
            };
            all.into_iter().map(ended).collect()
        });
        let mut any = false;
        for one in denied {
            any |= one.with_context(|| format!("isolated {isolated:?}, host_access {access:?}, nat {nat:?}"))?;
        }
        ensure!(any, "nothing was refused");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_name_is_behind_its_published_ports_and_an_address_is_not() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    for ((to, by), from) in lab.a.addresses().into_iter().zip(uplink()).zip(beyond()) {
        let (from, own) = (from.to_string(), to.to_string());
        for (web, published, port) in [
            (Traffic::Tcp(WEB), Traffic::Tcp(PUBLISHED), Traffic::Tcp(PORT)),
            (Traffic::Udp(WEB), Traffic::Udp(PUBLISHED), Traffic::Udp(PORT)),
        ] {
            let explain =
                |to: &str, what: Traffic| lab.device.json(&["policy", "explain", &from, to, &what.to_string()]);
            let all = if to.is_ipv4() { "0.0.0.0:8080" } else { "[::]:8080" };
            let named = explain("a", web)?;
            ensure!(named["verdict"] == "allow" && named["via"] == all, "by name: {named}");
            let device = explain(&by.to_string(), published)?;
            let way = std::net::SocketAddr::new(by, PUBLISHED).to_string();
            ensure!(device["verdict"] == "allow" && device["via"].as_str() == Some(&way), "by the device: {device}");
            check(&lab.outside, by, published, true, false)?;
            let straight = explain(&own, web)?;
            let hint = straight["reason"].as_str().is_some_and(|why| why.contains(all));
            ensure!(straight["verdict"] == "deny" && straight["via"].is_null() && hint, "by address: {straight}");
            check(&lab.outside, to, web, false, false)?;
            let other = explain("a", port)?;
            ensure!(other["verdict"] == "deny" && other["via"].is_null(), "not published: {other}");
            check(&lab.outside, to, port, false, false)?;
        }
    }
    Ok(())
}
