//! Compares the compiled policy with the meaning of the rules.

pub(super) mod random;
mod reference;

use super::*;
use crate::model::{Action, Peer, PortMatch, Rule, Selector, Sockets};
use proptest::prelude::*;
use pv_net_common::policy::{POLICY_ALLOW, POLICY_DENY, POLICY_NO_RULE, POLICY_NOTHING};
use pv_net_common::{PolicySide, PolicyVerdict};
use random::{limited, name, packet, rules, sockets, topology};
use reference::Packet;
use std::time::{Duration, Instant};

fn expected(said: Option<(usize, Action)>) -> PolicyVerdict {
    match said {
        None => PolicyVerdict::NOTHING,
        Some((rule, action)) => PolicyVerdict {
            rule: u32::try_from(rule).expect("few"),
            action: if action == Action::Allow { POLICY_ALLOW } else { POLICY_DENY },
        },
    }
}

fn sides(p: &Packet) -> (PolicySide, PolicySide) {
    let side = |identity, addr: IpAddr| PolicySide { identity, addr: addr.into() };
    (side(p.src_identity, p.src), side(p.dst_identity, p.dst))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_maps_say_what_the_rules_mean(rules in rules(), packets in prop::collection::vec(packet(), 60)) {
        let topology = topology();
        let evaluator = compile(&rules, &topology).expect("small").evaluator();
        for p in &packets {
            let (src, dst) = sides(p);
            let want = expected(reference::verdict(&rules, &topology, p));
            prop_assert_eq!(evaluator.verdict(&src, &dst, p.proto, p.port), want, "{:?}\n{:#?}", p, rules);
        }
    }

    #[test]
    fn the_order_of_rules_changes_no_action(rules in rules(), packets in prop::collection::vec(packet(), 20)) {
        let topology = topology();
        let mut turned = rules.clone();
        turned.reverse();
        let [one, other] = [&rules, &turned].map(|r| compile(r, &topology).expect("small").evaluator());
        for p in &packets {
            let (src, dst) = sides(p);
            let [a, b] = [&one, &other].map(|e| e.verdict(&src, &dst, p.proto, p.port).action);
            prop_assert_eq!(a, b);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_not_granted_is_refused(
        one in sockets(), other in sockets(), rules in prop::option::of(rules()),
        packets in prop::collection::vec(packet(), 60),
    ) {
        let (topology, rules) = (limited(one, other), rules.unwrap_or_default());
        let evaluator = compile(&rules, &topology).expect("small").evaluator();
        for p in &packets {
            let (src, dst) = sides(p);
            let want = expected(reference::verdict(&rules, &topology, p));
            prop_assert_eq!(evaluator.verdict(&src, &dst, p.proto, p.port), want, "{:?}\n{:#?}\n{:#?}", p, rules, topology);
        }
    }
}

fn rule(from: &str, to: &str, ports: &[&str], action: Action) -> Rule {
    let selector = |text: &str| match text.split_once(' ') {
        Some(("container", n)) => Selector::Container(name(n)),
        Some(("pool", n)) => Selector::Pool(name(n)),
        _ if text == "host" => Selector::Host,
        _ if text == "world" => Selector::World,
        _ => Selector::Cidr(name(text)),
    };
    let ports = ports.iter().map(|p| p.parse().expect("ports")).collect();
    Rule { name: None, from: selector(from), to: selector(to), ports, action }
}

#[test]
fn without_rules_there_is_nothing() {
    let compiled = compile(&[], &topology()).expect("empty");
    assert_eq!(compiled, Compiled::default());
    let side = PolicySide { identity: 99, addr: name::<IpAddr>("10.0.1.9").into() };
    assert_eq!(compiled.evaluator().verdict(&side, &side, 6, 80).action, POLICY_NOTHING);
}

#[test]
fn a_container_that_came_later_waits() {
    let rules = [rule("container c1", "world", &[], Action::Deny)];
    let evaluator = compile(&rules, &topology()).expect("small").evaluator();
    let side = |identity, a: &str| PolicySide { identity, addr: name::<IpAddr>(a).into() };
    let world = side(0, "8.8.8.8");
    for (src, dst, want) in [
        (side(99, "10.0.1.2"), world, PolicyVerdict::UNKNOWN),
        (world, side(99, "10.0.1.2"), PolicyVerdict::UNKNOWN),
        (side(12, "10.0.1.3"), world, PolicyVerdict::NOTHING),
        (side(11, "10.0.1.2"), world, PolicyVerdict { rule: 0, action: POLICY_DENY }),
        // Another container reuses the address, but does not get the rights.
        (side(12, "10.0.1.2"), world, PolicyVerdict::NOTHING),
    ] {
        assert_eq!(evaluator.verdict(&src, &dst, 17, 53), want, "{src:?} {dst:?}");
    }
    assert_eq!(PolicyVerdict::UNKNOWN.rule, POLICY_NO_RULE);
}

#[test]
fn what_is_the_same_is_one_class() {
    let members = (1..=100u32).map(|i| Member {
        name: name(&format!("c{i}")),
        identity: i,
        pools: std::iter::once(name("a")).collect(),
        addresses: vec![IpAddr::from([10, 0, 1, u8::try_from(i).expect("small")])],
        link_local: Vec::new(),
        sockets: None,
        name_servers: Vec::new(),
    });
    let topology = Topology { containers: members.collect(), ..topology() };
    let rules = [rule("pool a", "192.0.2.0/24", &[], Action::Deny)];
    let compiled = compile(&rules, &topology).expect("small");
    assert_eq!((compiled.ids.len(), compiled.pairs.len()), (100, 1));
    // Both outermost networks, and the network of the rule. The pools and the device itself need no entries of their
    // own.
    assert_eq!(compiled.cidrs.len(), 3, "{:?}", compiled.cidrs);
}

#[test]
fn limits_are_named_and_keep_names_of_other_pools_apart() {
    let grant = |text: &str| serde_json::from_str::<Sockets>(text).expect("sockets");
    let one = grant(r#"{"listen": ["tcp/80"], "connect": [{"to": {"container": "c2"}, "ports": ["tcp/5432"]}]}"#);
    let topology = limited(one, Sockets::default());
    let compiled = compile(&[], &topology).expect("small");
    let names: Vec<_> = compiled.rules.iter().map(|rule| rule.name.as_deref()).collect();
    assert_eq!(names, [Some("container c1: sockets"), Some("container c3: sockets")]);
    let evaluator = compiled.evaluator();
    let side = |identity, a: &str| PolicySide { identity, addr: name::<IpAddr>(a).into() };
    let (c1, c2, c3) = (side(11, "10.0.1.2"), side(12, "10.0.1.3"), side(13, "10.0.2.4"));
    let world = side(0, "8.8.8.8");
    let refused = |rule| PolicyVerdict { rule, action: POLICY_DENY };
    for (src, dst, proto, port, want) in [
        (c1, c2, 6, 5432, PolicyVerdict::NOTHING),
        (c1, c2, 6, 5433, refused(0)),
        (c1, c2, 17, 5432, refused(0)),
        (c1, c2, 1, 0, refused(0)),
        (c1, c2, 132, 5432, refused(0)),
        (world, c1, 6, 80, PolicyVerdict::NOTHING),
        (world, c1, 6, 81, refused(0)),
        (c2, c3, 6, 80, refused(1)),
        (c3, world, 17, 53, refused(1)),
        (c2, world, 6, 81, PolicyVerdict::NOTHING),
    ] {
        assert_eq!(evaluator.verdict(&src, &dst, proto, port), want, "{src:?} {dst:?} {proto}/{port}");
    }
    assert!(evaluator.reaches(&c1, &c2, true) && !evaluator.reaches(&c1, &c2, false));
    assert!(!evaluator.reaches(&c1, &c3, true), "nothing is granted");
}

/// Containers with limits, in a pool of their own, each of which may reach all others outside, or networks of its own.
fn limited_to(count: u32, own_networks: bool) -> Topology {
    let net4 = |offset: u32| std::net::Ipv4Addr::from(0xc612_0000 + offset);
    let granted = |i: u32| {
        let network = |text: String| Peer { to: Selector::Cidr(name(&text)), ports: vec![name("tcp/443")] };
        let own = || vec![network(format!("{}/24", net4(i << 8))), network(format!("2001:db8:{i:x}::/48"))];
        let world = || vec![Peer { to: Selector::World, ports: vec![name("tcp/443")] }];
        Sockets {
            listen: vec![name("tcp/80"), name("udp/5000-5010")],
            connect: if own_networks { own() } else { world() },
            resolve: false,
        }
    };
    let members = (1..=count).map(|i| Member {
        name: name(&format!("c{i}")),
        identity: i,
        pools: std::iter::once(name("a")).collect(),
        addresses: vec![IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0100 + i)), name(&format!("fd00:1::1:{i:x}"))],
        link_local: Vec::new(),
        sockets: Some(Arc::new(granted(i))),
        name_servers: Vec::new(),
    });
    Topology { containers: members.collect(), ..topology() }
}

/// The entries that the limits of many containers need.
#[test]
fn many_limits_fit() {
    for (count, own_networks) in [(300, false), (150, true)] {
        let begun = Instant::now();
        let compiled = compile(&[], &limited_to(count, own_networks)).expect("it fits");
        eprintln!("{count}: {} pairs in {:?}", compiled.pairs.len(), begun.elapsed());
    }
    let e = compile(&[], &limited_to(250, true)).expect_err("too many");
    assert_eq!(e.of(), Source::Limits);
    assert!(e.help().contains("fewer containers"), "{e}");
}

/// Different kinds of ten thousand rules: the entries that they need, and the time that compiling may take.
#[test]
fn ten_thousand_rules_compile_at_once() {
    let cidrs: Vec<Rule> = (0..10_000u32)
        .map(|i| rule("container c1", &format!("172.{}.{}.0/24", 16 + i / 256, i % 256), &["tcp/443"], Action::Deny))
        .collect();
    let two_hundred = Topology {
        containers: (1..=200u32)
            .map(|i| Member {
                name: name(&format!("c{i}")),
                identity: i,
                pools: std::iter::once(name("a")).collect(),
                addresses: vec![IpAddr::from([10, 0, 1, u8::try_from(i).expect("small")])],
                link_local: Vec::new(),
                sockets: None,
                name_servers: Vec::new(),
            })
            .collect(),
        ..topology()
    };
    let hundred_by_hundred: Vec<Rule> = (0..10_000)
        .map(|i| {
            let (from, to, port) = (i / 100 + 1, i / 100 + 101, format!("tcp/{}", 1000 + 2 * (i % 100)));
            rule(&format!("container c{from}"), &format!("container c{to}"), &[&port], Action::Allow)
        })
        .collect();
    let one_pair: Vec<Rule> =
        (0..10_000).map(|i| rule("world", "pool a", &[&format!("udp/{}", i + 1)], Action::Deny)).collect();
    for (shape, rules, pairs) in [
        ("networks", cidrs, 10_000),
        ("containers and ports", hundred_by_hundred, 10_000),
        ("one pair", one_pair, 10_000),
    ] {
        let start = Instant::now();
        let compiled = compile(&rules, &two_hundred).expect("fits");
        let took = start.elapsed();
        println!("{shape}: {took:?}, {} cidrs, {} pairs", compiled.cidrs.len(), compiled.pairs.len());
        assert_eq!(compiled.pairs.len(), pairs, "{shape}");
        assert!(took < Duration::from_secs(5), "{shape}: {took:?}, and this is an unoptimised build");
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let nets = |n: u32, first: u32| (0..n).map(move |i| format!("{}/32", std::net::Ipv4Addr::from(first + i)));
    let many: Vec<Rule> = nets(40_000, 0xac10_0000).map(|net| rule("host", &net, &[], Action::Deny)).collect();
    let error = compile(&many, &topology()).expect_err("too many networks");
    assert!(matches!(error, PolicyError::TooLarge { limit: 32_768, of: Source::Rules, .. }), "{error}");
    let mut square: Vec<Rule> = nets(1100, 0xac10_0000).map(|net| rule(&net, "host", &[], Action::Allow)).collect();
    square.extend(nets(1100, 0xac20_0000).map(|net| rule("host", &net, &[], Action::Allow)));
    square.push(rule("0.0.0.0/0", "0.0.0.0/0", &["icmp"], Action::Deny));
    let error = compile(&square, &topology()).expect_err("each with each");
    assert_eq!(error, PolicyError::TooManyPairs { limit: 1 << 20, of: Source::Rules });
}
