//! A named case for each possible error of a rule, and for valid rules.

use crate::config::parse_device;
use crate::config::tests::{Case, expect};
use crate::model::{Action, PortMatch, Selector};
use serde_json::{Value, json};

/// A device with pool `p` and these rules.
fn device(rules: Value) -> Value {
    json!({"network": {"pools": {"p": {"subnet": "10.0.3.0/24"}}, "policies": rules}})
}

/// A rule from a container to the world, with these fields set or replaced.
fn rule(fields: Value) -> Value {
    let mut rule = json!({"from": {"container": "web"}, "to": "world", "action": "deny"});
    rule.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
    rule
}

#[test]
fn rules_that_are_wrong() {
    let one = |fields: Value| device(json!([rule(fields)]));
    let cases: Vec<Case> = vec![
        ("unknown pool", one(json!({"to": {"pool": "q"}})), &[("network.policies[0].to.pool", "the pools are p")]),
        (
            "no pools at all",
            json!({"network": {"policies": [rule(json!({"to": {"pool": "q"}}))]}}),
            &[("network.policies[0].to.pool", "declare it")],
        ),
        ("bad pool name", one(json!({"to": {"pool": "a b"}})), &[("network.policies[0].to.pool", "' '")]),
        (
            "a pool that is wrong itself is said once",
            json!({"network": {"pools": {"q": {}}, "policies": [rule(json!({"to": {"pool": "q"}}))]}}),
            &[("network.pools.q", "no addresses")],
        ),
        (
            "bad container name",
            one(json!({"from": {"container": "a/b"}})),
            &[("network.policies[0].from.container", "'/'")],
        ),
        ("bad network", one(json!({"to": {"cidr": "10.0.300.0/24"}})), &[("network.policies[0].to.cidr", "\"300\"")]),
        ("bad prefix", one(json!({"to": {"cidr": "10.0.0.0/33"}})), &[("network.policies[0].to.cidr", "0 to 32")]),
        ("bad prefix, IPv6", one(json!({"to": {"cidr": "fd00::/+9"}})), &[("network.policies[0].to.cidr", "128")]),
        ("host bits", one(json!({"to": {"cidr": "10.0.0.7/24"}})), &[("network.policies[0].to.cidr", "10.0.0.0/24")]),
        (
            "IPv4 as IPv6",
            one(json!({"to": {"cidr": "::ffff:10.0.0.0/120"}})),
            &[("network.policies[0].to.cidr", "write it as IPv4")],
        ),
        (
            "two families",
            one(json!({"from": {"cidr": "10.0.0.0/8"}, "to": {"cidr": "fd00::/8"}})),
            &[("network.policies[0]", "different families")],
        ),
        ("unknown word", one(json!({"to": "moon"})), &[("network.policies[0].to", "\"host\" or \"world\"")]),
        ("unknown selector", one(json!({"to": {"contaner": "x"}})), &[("network.policies[0].to", "a selector is")]),
        ("two selectors", one(json!({"to": {"pool": "p", "cidr": "::/0"}})), &[("network.policies[0].to", "selector")]),
        ("a word as an object", one(json!({"to": {"host": true}})), &[("network.policies[0].to", "\"host\"")]),
        (
            "nothing at all",
            device(json!([{}])),
            &[
                ("network.policies[0]", "\"from\""),
                ("network.policies[0]", "\"to\""),
                ("network.policies[0]", "\"action\""),
            ],
        ),
        ("another action", one(json!({"action": "reject"})), &[("network.policies[0].action", "unknown variant")]),
        ("no ports", one(json!({"ports": []})), &[("network.policies[0].ports", "leave \"ports\" out")]),
        ("a port alone", one(json!({"ports": ["80"]})), &[("network.policies[0].ports[0]", "tcp/5432")]),
        (
            "two bad ports of three",
            one(json!({"ports": ["tcp/80", "udp/9-8", 53]})),
            &[("network.policies[0].ports[1]", "backwards"), ("network.policies[0].ports[2]", "string")],
        ),
        (
            "a name twice",
            device(json!([rule(json!({"name": "x"})), rule(json!({})), rule(json!({"name": "x"}))])),
            &[("network.policies[2].name", "of network.policies[0]")],
        ),
        ("bad name", one(json!({"name": "no lan"})), &[("network.policies[0].name", "' '")]),
        ("unknown field", one(json!({"port": ["tcp"]})), &[("network.policies[0].port", "did you mean \"ports\"")]),
        (
            "errors of several rules",
            device(json!([rule(json!({"from": "moon"})), rule(json!({"ports": ["sctp"]})), 7])),
            &[("network.policies[0].from", ""), ("network.policies[1].ports[0]", ""), ("network.policies[2]", "")],
        ),
    ];
    for (name, value, want) in cases {
        expect(name, parse_device("device.json", &value.to_string()), want);
    }
}

#[test]
fn rules_that_are_right() {
    let value = device(json!([
        {"name": "web-to-db", "from": {"container": "web"}, "to": {"container": "not-there-yet"},
         "ports": ["tcp/5432", "udp/1000-2000", "icmp"], "action": "allow"},
        {"from": {"pool": "p"}, "to": {"cidr": "192.0.2.0/24"}, "action": "deny"},
        {"from": {"cidr": "fd00::5"}, "to": "host", "action": "deny"},
        {"from": "world", "to": {"cidr": "0.0.0.0/0"}, "action": "allow"},
    ]));
    let device = parse_device("device.json", &value.to_string()).expect("valid");
    let [first, second, third, fourth] = device.policies.as_slice() else { panic!("{:?}", device.policies) };
    assert_eq!(first.name.as_ref().map(|n| n.as_str()), Some("web-to-db"));
    assert_eq!(first.from, Selector::Container("web".parse().expect("name")));
    assert_eq!(first.ports, [PortMatch::Tcp(Some(5432..=5432)), PortMatch::Udp(Some(1000..=2000)), PortMatch::Icmp]);
    assert_eq!(first.action, Action::Allow);
    assert_eq!((&second.name, second.from.to_string().as_str()), (&None, "pool p"));
    assert_eq!(second.to, Selector::Cidr("192.0.2.0/24".parse().expect("net")));
    assert_eq!((third.from.to_string().as_str(), &third.to), ("fd00::5/128", &Selector::Host));
    assert_eq!((&fourth.from, fourth.action), (&Selector::World, Action::Allow));
}
