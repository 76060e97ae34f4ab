//! A named case for each possible error of a file, and for valid files.

use super::*;
use crate::model::{Container, Device, PairKind};
use serde_json::{Value, json};

mod arbitrary;
mod devices;
mod files;
mod pool_services;
mod revision;
mod start;

/// A name, a file, and for each of its errors the path and a part of the text.
pub(super) type Case = (&'static str, Value, &'static [(&'static str, &'static str)]);

pub(super) fn expect<T: std::fmt::Debug>(name: &str, got: Result<T, Vec<ConfigError>>, want: &[(&str, &str)]) {
    let errors = match got {
        Ok(value) if want.is_empty() => return drop(value),
        Ok(value) => panic!("{name}: no error, but {value:?}"),
        Err(errors) => errors,
    };
    let show = || errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(errors.len(), want.len(), "{name}:\n{}", show());
    for (path, part) in want {
        let text = |e: &ConfigError| format!("{e}; {}", e.help.as_deref().unwrap_or_default());
        assert!(errors.iter().any(|e| e.path == *path && text(e).contains(part)), "{name}: {path} {part}:\n{}", show());
    }
}

/// A device with one pool of these fields.
fn pool(fields: Value) -> Value {
    json!({"network": {"pools": {"p": fields}}})
}

#[test]
fn an_error_is_one_line() {
    let text = "{\"network\": {\"a\\n\\u001b[31m\": 1, \"backend\": \"b\\nc\"}}";
    let errors = parse_device("device.json", text).expect_err("wrong");
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
}

#[test]
fn nobody_reads_more_than_a_thousand_errors() {
    let list = vec![json!({"pool": 1}); 2000];
    let text = json!({"name": "web", "network": {"interfaces": list}}).to_string();
    let errors = parse_run("run.json", &text).expect_err("wrong");
    assert_eq!(errors.len(), 1000);
    assert!(errors[999].to_string().contains("more than 1000 errors"));
}

#[test]
fn containers_that_are_wrong() {
    let run = |network: Value| json!({"name": "web", "network": network});
    let named = |netns: Value| json!({"name": "web", "netns": netns, "network": {"pool": "p"}});
    let two = |a: Value, b: Value| run(json!({"interfaces": [a, b]}));
    let eth = |extra: Value| {
        let mut v = json!({"pool": "p"});
        v.as_object_mut().expect("object").extend(extra.as_object().expect("object").clone());
        v
    };
    let cases: Vec<Case> = vec![
        ("no name", json!({"network": {"pool": "p"}}), &[("", "\"name\"")]),
        ("bad name", json!({"name": "a/b", "network": {"pool": "p"}}), &[("name", "'/'")]),
        (
            "other spec",
            json!({"#spec": "x@9", "name": "web", "network": {"pool": "p"}}),
            &[("#spec", "service-manifest-run@1")],
        ),
        ("no network", json!({"name": "web"}), &[("network", "no pool")]),
        ("empty network", run(json!({})), &[("network", "no pool")]),
        ("no interfaces", run(json!({"interfaces": []})), &[("network", "no pool")]),
        ("host with pool", run(json!({"mode": "host", "pool": "p"})), &[("network.pool", "no interfaces")]),
        (
            "two default routes",
            two(eth(json!({"default_route": true})), eth(json!({"default_route": true}))),
            &[("network.interfaces[1].default_route", "interfaces[0]")],
        ),
        (
            "two of one name",
            two(eth(json!({"name": "x"})), eth(json!({"name": "x"}))),
            &[("network.interfaces[1].name", "one name")],
        ),
        (
            "two of one address",
            two(eth(json!({"ipv4_address": "10.0.3.5"})), eth(json!({"ipv4_address": "10.0.3.5"}))),
            &[("network.interfaces[1].ipv4_address", "eth0")],
        ),
        (
            "name too long",
            run(json!({"interfaces": [{"name": "an-interface-too-long", "pool": "p"}]})),
            &[("network.interfaces[0].name", "15 characters")],
        ),
        (
            "loopback",
            run(json!({"interfaces": [{"name": "lo", "pool": "p"}]})),
            &[("network.interfaces[0].name", "loopback")],
        ),
        ("no pool", run(json!({"interfaces": [{"name": "eth0"}]})), &[("network.interfaces[0]", "\"pool\"")]),
        (
            "multicast MAC",
            run(json!({"interfaces": [{"pool": "p", "mac_address": "01:00:5e:00:00:01"}]})),
            &[("network.interfaces[0].mac_address", "multicast")],
        ),
        (
            "bad address",
            run(json!({"interfaces": [{"pool": "p", "ipv6_address": "fd00:pv::1"}]})),
            &[("network.interfaces[0].ipv6_address", "pv")],
        ),
        ("bad port", run(json!({"pool": "p", "ports": ["80-81:80"]})), &[("network.ports[0]", "2 ports")]),
        (
            "port twice",
            run(json!({"pool": "p", "ports": ["80:80", "0.0.0.0:79-81:79-81"]})),
            &[("network.ports[1]", "shares a port")],
        ),
        (
            "port of an interface that it lacks",
            run(json!({"pool": "p", "ports": ["80:80@eth1"]})),
            &[("network.ports[0]", "no interface eth1")],
        ),
        ("hostname", run(json!({"pool": "p", "hostname": "-web"})), &[("network.hostname", "label")]),
        ("relative namespace", named(json!("web")), &[("netns", "no absolute path")]),
        ("no namespace", named(json!("/")), &[("netns", "names no file")]),
        (
            "namespace of a runtime",
            json!({"name": "web", "type": "lxc", "netns": "/run/netns/web", "network": {"pool": "p"}}),
            &[("netns", "its runtime makes")],
        ),
        (
            "a check that takes no time",
            json!({"name": "web", "network": {"pool": "p"}, "health_check": {"type": "http", "timeout": 0}}),
            &[("health_check.timeout", "between 1 and 3600")],
        ),
        (
            "a check without a command",
            json!({"name": "web", "type": "lxc", "network": {"pool": "p"}, "health_check": {"type": "exec"}}),
            &[("health_check.command", "names no program")],
        ),
        (
            "a check without a program",
            json!({"name": "web", "type": "oci", "network": {"pool": "p"}, "health_check": {"type": "exec", "command": ["", "a\0"]}}),
            &[("health_check.command[1]", "NUL"), ("health_check.command", "names no program")],
        ),
        (
            "a command of another check",
            json!({"name": "web", "type": "lxc", "network": {"pool": "p"}, "health_check": {"type": "tcp", "command": ["true"]}}),
            &[("health_check.command", "only a check of type \"exec\"")],
        ),
        (
            "a command where no programs are",
            json!({"name": "web", "network": {"pool": "p"}, "health_check": {"type": "exec", "command": ["true"]}}),
            &[("health_check.type", "somebody else runs")],
        ),
        (
            "recovery type",
            json!({"name": "web", "network": {"pool": "p"}, "auto_recovery": {"type": "sometimes"}}),
            &[("auto_recovery.type", "unknown variant")],
        ),
    ];
    for (name, value, want) in cases {
        expect(name, parse_run("run.json", &value.to_string()), want);
    }
}

#[test]
fn files_that_are_no_json() {
    for (name, text, part) in [
        ("empty", "", "EOF"),
        ("cut off", "{\"network\": {", "EOF"),
        ("a comment", "// hello\n{}", "expected value"),
        ("two documents", "{} {}", "trailing"),
        ("a list", "[]", "invalid type"),
        ("a key twice", r#"{"network": {"pools": {"a": {"subnet": "10.0.0.0/24"}, "a": {}}}}"#, "\"a\" stands twice"),
        ("deep", &"[".repeat(100_000), "recursion limit"),
    ] {
        expect(name, parse_device("device.json", text), &[("", part)]);
        assert!(parse_run("run.json", text).is_err(), "{name}");
    }
}

fn device(value: Value) -> Device {
    parse_device("device.json", &value.to_string()).expect("valid")
}

fn container(value: Value) -> Container {
    parse_run("run.json", &value.to_string()).expect("valid")
}

#[test]
fn what_is_left_out_has_a_default() {
    let d = device(pool(json!({"subnet": "10.0.3.0/24", "subnet6": "fd00:5056::0/64"})));
    let p = d.pools.values().next().expect("one");
    assert_eq!((d.domain.as_str(), d.flow_table), ("pv.local", 16_384));
    assert_eq!(p.v4.as_ref().map(|s| s.gateway), Some([10, 0, 3, 1].into()));
    assert_eq!(p.v6.as_ref().map(|s| s.gateway), "fd00:5056::1".parse().ok());
    assert_eq!((p.isolated, p.nat, p.mtu, p.big_tcp), (true, false, None, true));
    assert_eq!((p.max_flows, p.link), (2048, PairKind::Veth));
    for (link, kind) in [("auto", PairKind::Veth), ("veth", PairKind::Veth), ("netkit", PairKind::Netkit)] {
        let chosen = device(pool(json!({"subnet": "10.0.3.0/24", "link": link})));
        assert_eq!(chosen.pools.values().next().map(|p| p.link), Some(kind), "{link}");
    }
    let zero = device(pool(json!({"subnet": "10.0.3.0/24", "max_flows": 0})));
    assert_eq!(zero.pools.values().next().map(|p| p.max_flows), Some(2048));
    assert_eq!(p.bridge().map(|b| b.as_str()), Some("pv-p"));
    let c = container(json!({"name": "web", "network": {"pool": "p"}}));
    let i = &c.interfaces[0];
    assert_eq!((i.name.as_str(), i.pool.as_str(), i.default_route), ("eth0", "p", None));
    assert_eq!(c.hostname, "web");
    assert_eq!(c.netns, Some("/run/netns/web".into()));
    let c = container(json!({"name": "web", "netns": "/run/docker/netns/1f", "network": {"pool": "p"}}));
    assert_eq!(c.netns, Some("/run/docker/netns/1f".into()));
    let c = container(json!({"name": "web", "type": "lxc", "network": {"pool": "p"}}));
    assert_eq!(c.netns, None);
    assert!(device(json!({})).pools.is_empty());
}

#[test]
fn interfaces_claim_the_default_route_or_leave_it() {
    let routes = |interfaces: Value| {
        let c = container(json!({"name": "web", "network": {"pool": "p", "interfaces": interfaces}}));
        c.interfaces.iter().map(|i| i.default_route).collect::<Vec<_>>()
    };
    assert_eq!(routes(json!([{}, {}])), [None, None]);
    assert_eq!(routes(json!([{}, {"default_route": true}])), [None, Some(true)]);
    assert_eq!(routes(json!([{"default_route": false}, {}])), [Some(false), None]);
}

#[test]
fn what_is_accepted_but_not_acted_on_is_said() {
    let d = device(json!({"network": {"pools": {
        "m": {"type": "macvlan", "parent": "eth0", "subnet": "10.0.4.0/24", "dns": {}, "nat": true, "max_flows": 9},
        "i": {"type": "ipvlan", "parent": "eth1", "subnet": "10.0.5.0/24", "nat": true},
        "p": {"subnet": "10.0.3.0/24", "nat": true, "dhcp": {}},
    }, "policies": []}}));
    assert_eq!(
        d.inactive,
        ["network.pools.i.nat", "network.pools.m.dns", "network.pools.m.max_flows", "network.pools.m.nat"]
    );
    let c = container(json!({"name": "web", "network": {"pool": "p", "ports": ["80"]}, "health_check": {}}));
    assert_eq!(c.inactive, ["health_check"]);
    assert_eq!(c.health, None);
    let exec = |check: Value| {
        container(json!({"name": "web", "type": "lxc", "network": {"pool": "p"}, "health_check": check}))
    };
    let c = exec(json!({"type": "exec", "command": ["wget", "http://[::1]/"], "timeout": 5}));
    let health = c.health.expect("a command");
    assert_eq!((health.command, health.timeout.as_secs()), (vec!["wget".to_owned(), "http://[::1]/".to_owned()], 5));
    let c = exec(json!({"type": "exec", "command": ["true"]}));
    assert_eq!(c.health.map(|health| health.timeout.as_secs()), Some(30));
}

#[test]
fn containers_are_checked_against_the_device() {
    let d = device(json!({"network": {"pools": {
        "p": {"subnet": "10.0.3.0/24"},
        "direct": {"type": "ipvlan", "parent": "eth1", "subnet": "10.9.0.0/24"},
        "lan": {"type": "macvlan", "parent": "eth0", "subnet": "10.0.8.0/24"},
    }}}));
    for (name, interface, path, part) in [
        ("unknown pool", json!({"pool": "q"}), "pool", "the pools are direct, lan, p"),
        ("outside", json!({"pool": "p", "ipv4_address": "10.0.4.7"}), "ipv4_address", "outside 10.0.3.0/24"),
        ("gateway", json!({"pool": "p", "ipv4_address": "10.0.3.1"}), "ipv4_address", "gateway"),
        ("no such family", json!({"pool": "p", "ipv6_address": "fd00::7"}), "ipv6_address", "no IPv6"),
        (
            "a MAC where it is the parent's",
            json!({"pool": "direct", "mac_address": "02:00:00:00:00:07"}),
            "mac_address",
            "have the MAC of their parent",
        ),
    ] {
        let c = container(json!({"name": "web", "network": {"interfaces": [interface]}}));
        let path = format!("network.interfaces[0].{path}");
        expect(name, Err::<(), _>(check_container("run.json", &c, &d)), &[(&path, part)]);
    }
    for (ports, part) in
        [("8080:80/tcp", "the container's own address"), ("127.0.0.1:80:80", "no address of the device")]
    {
        let c = container(json!({"name": "web", "network": {"pool": "lan", "ports": [ports]}}));
        expect(ports, Err::<(), _>(check_container("run.json", &c, &d)), &[("network.ports[0]", part)]);
    }
    let c = container(json!({"name": "web", "network": {"pool": "p", "ports": ["80", "[fd00::1]:81:80"]}}));
    let part = "the container has no IPv6";
    expect("no such family", Err::<(), _>(check_container("run.json", &c, &d)), &[("network.ports[1]", part)]);
    for pool in ["lan", "direct"] {
        let c = container(json!({"name": "web", "network": {"pool": pool, "ports": ["80", "90-99/udp"]}}));
        assert_eq!(check_container("run.json", &c, &d), []);
    }
    let c = container(json!({"name": "web", "network": {"pool": "direct", "ports": ["8080:80"]}}));
    expect("ipvlan", Err::<(), _>(check_container("run.json", &c, &d)), &[("network.ports[0]", "type ipvlan")]);
    let uplink = ("eth0".parse().expect("name"), "10.0.0.5/16".parse().expect("net"));
    // A macvlan pool is meant to be in the network of its parent, which may be an uplink.
    let errors = check_uplinks("device.json", &d, &[uplink]);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("10.0.0.0/16 of uplink eth0"), "{}", errors[0]);
}
