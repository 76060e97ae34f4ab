//! Tests of whole zones and answers.

mod upstream;
mod watched;

use super::answer::{Answered, Outcome, answer};
use super::cache::{self, Cache};
use super::name;
use super::response::{Left, NoResponse, Response, is_private};
use super::wire::{LARGEST, NoQuery, Query, RecordType, ResponseCode};
use super::zone::{Client, NamedClient, Zone};
use crate::ipam::ClientId;
use crate::ipam::store::ContainerRecord;
use crate::model::{Attachment, Device, Mac, Rule};
use crate::plan::PoolLink;
use crate::snapshot::{Attached, ContainerStatus, Phase, PoolStatus, Snapshot};
use hickory_proto::op::{self, Edns, Message, MessageType, OpCode};
use proptest::prelude::*;
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn attachment(container: &str, interface: &str, pool: &str, n: u8) -> Attachment {
    let net: u8 = if pool == "internal" { 3 } else { 4 };
    Attachment {
        container: container.parse().expect("name"),
        interface: interface.parse().expect("name"),
        pool: pool.parse().expect("name"),
        host_if: format!("v{container}{n}").parse().expect("name"),
        mac: format!("02:00:0a:00:{net:02x}:{n:02x}").parse().expect("MAC"),
        ipv4: Some([10, 0, net, n].into()),
        ipv6: (container != "old").then(|| format!("fd00:{net}::{n}").parse().expect("address")),
        default_route: Some(interface == "eth0"),
        network: None,
    }
}

fn container(identity: u32, attachments: Vec<Attachment>, aliases: &[&str]) -> Arc<ContainerStatus> {
    let name = attachments[0].container.clone();
    let links = vec![Some(identity); attachments.len()];
    let record = Arc::new(ContainerRecord { attachments, ..ContainerRecord::default() });
    let aliases = aliases.iter().map(|a| (*a).to_owned()).collect();
    let attached =
        Attached { identity, record, links, pairs: Vec::new(), aliases, ports: Vec::new(), inactive: Vec::new() };
    Arc::new(ContainerStatus { name, phase: Phase::Attached(attached), is_startable: false, conditions: Vec::new() })
}

/// `web`, `db` and `old` in `internal`, `both` in both pools, `far` in `management`.
fn snapshot(rules: &[Rule]) -> Snapshot {
    let text = json!({"network": {"domain": "pv.test", "pools": {
        "internal": {"subnet": "10.0.3.0/24", "subnet6": "fd00:3::/64",
            "dns": {"zones": {"corp.example": ["10.9.0.53"]}, "private_names": ["lan.example"]}},
        "management": {"subnet": "10.0.4.0/24", "subnet6": "fd00:4::/64"},
    }}});
    let mut device: Device = crate::config::parse_device("device", &text.to_string()).expect("a device");
    device.policies = rules.to_vec();
    let link = |index| PoolStatus {
        link: Some(PoolLink {
            index,
            mac: "02:00:00:00:00:01".parse().expect("MAC"),
            id: 1,
            mtu: 1500,
            borrowed: false,
            on_parent: false,
        }),
        conditions: Vec::new(),
    };
    let pools = [("internal", 7), ("management", 8)].map(|(name, index)| (name.parse().expect("name"), link(index)));
    let mut containers = vec![
        container(1, vec![attachment("web", "eth0", "internal", 2)], &[]),
        container(2, vec![attachment("db", "eth0", "internal", 3)], &["sql", "web"]),
        container(3, vec![attachment("old", "eth0", "internal", 4)], &["sql"]),
        container(4, vec![attachment("far", "eth0", "management", 2)], &["a.b"]),
        container(5, vec![attachment("both", "eth0", "internal", 5), attachment("both", "eth1", "management", 5)], &[]),
    ];
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot {
        device: Arc::new(device),
        pools: Arc::new(pools.into()),
        containers: containers.into(),
        ..Snapshot::default()
    }
}

fn client(zone: &Zone, address: &str) -> Client {
    let address: IpAddr = address.parse().expect("address");
    zone.client(0, address).or_else(|| zone.client(1, address)).expect("somebody")
}

/// A question on the wire, with EDNS.
fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0x0707, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST as u16);
    message.add_query(op::Query::query(name::from_text(name).expect("name").into(), kind)).set_edns(edns);
    message.to_vec().expect("a question")
}

fn ask(zone: &Zone, from: &str, name: &str, kind: RecordType) -> (Outcome, Message) {
    let message = question(name, kind);
    let query = Query::parse(&message).expect("a question");
    let mut out = Vec::new();
    let outcome = answer(zone, client(zone, from), &query, LARGEST, &mut out);
    let read = if out.is_empty() { Message::query() } else { Message::from_vec(&out).expect("an answer") };
    (outcome, read)
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[test]
fn who_asks_decides_what_there_is() {
    let zone = Zone::new(&snapshot(&[]));
    for (from, name, kind, want) in [
        ("10.0.3.2", "db.pv.test", RecordType::A, &["10.0.3.3"][..]),
        ("fd00:3::2", "db.pv.test", RecordType::AAAA, &["fd00:3::3"]),
        ("10.0.3.2", "sql.pv.test", RecordType::A, &["10.0.3.3", "10.0.3.4"]),
        ("10.0.3.2", "web.pv.test", RecordType::A, &["10.0.3.2"]),
        ("10.0.3.2", "both.pv.test", RecordType::A, &["10.0.3.5"]),
        ("10.0.3.5", "both.pv.test", RecordType::A, &["10.0.3.5", "10.0.4.5"]),
        ("10.0.4.5", "both.pv.test", RecordType::A, &["10.0.4.5", "10.0.3.5"]),
        ("10.0.3.5", "far.pv.test", RecordType::A, &["10.0.4.2"]),
        ("10.0.3.5", "far.management.pv.test", RecordType::A, &["10.0.4.2"]),
        ("10.0.4.5", "eth0.both.pv.test", RecordType::A, &["10.0.3.5"]),
        ("10.0.4.2", "a.b.pv.test", RecordType::A, &["10.0.4.2"]),
        ("10.0.4.2", "gateway.pv.test", RecordType::A, &["10.0.4.1"]),
        // Another host in the pool's network.
        ("10.0.3.99", "db.pv.test", RecordType::A, &["10.0.3.3"]),
        ("10.0.3.2", "3.3.0.10.in-addr.arpa", RecordType::PTR, &["db.pv.test."]),
        ("10.0.3.2", "1.3.0.10.in-addr.arpa", RecordType::PTR, &["gateway.pv.test."]),
        ("10.0.3.2", "x.localhost", RecordType::AAAA, &["::1"]),
    ] {
        let (outcome, read) = ask(&zone, from, name, kind);
        assert_eq!(
            (outcome, data(&read)),
            (Outcome::Answered(Answered::Found), want.iter().map(|s| (*s).to_owned()).collect()),
            "{from}: {name}"
        );
        assert_eq!((read.metadata.id, read.metadata.message_type), (0x0707, MessageType::Response));
        assert!(read.metadata.authoritative && read.metadata.recursion_available && !read.metadata.truncation);
        assert!(read.answers.iter().all(|r| r.ttl == 5));
    }
}

/// A machine on a bridge takes no name of a container, also of one that is not attached yet; and a container's share does
/// not go over to another one when the names are made anew.
#[test]
fn names_and_shares_stay_whose_they_are() {
    let mut declared = snapshot(&[]);
    let mut containers: Vec<_> = declared.containers.iter().cloned().collect();
    let phase = Phase::Declared { interfaces: Vec::new(), aliases: vec!["soon".to_owned(), "p.internal".to_owned()] };
    containers.push(Arc::new(ContainerStatus {
        name: "later".parse().expect("name"),
        phase,
        is_startable: false,
        conditions: Vec::new(),
    }));
    declared.containers = containers.into();
    let lent = |hostname: &str, address: &str, client: u8, mac: u8| NamedClient {
        pool: "internal".parse().expect("name"),
        hostname: hostname.to_owned(),
        address: address.parse().expect("address"),
        client: ClientId::new(&[255, client]).expect("an identifier"),
        mac: Some(Mac([2, 0, 0, 0, 0, mac])),
    };
    let named = [
        lent("later", "10.0.3.90", 1, 1),
        lent("web", "10.0.3.91", 2, 2),
        lent("printer", "10.0.3.92", 3, 3),
        // The same machine by its MAC, and two others: one of them says that it is that machine.
        lent("printer", "fd00:3::92", 4, 3),
        lent("printer", "fd00:3::93", 5, 5),
        lent("printer", "fd00:3::96", 3, 6),
        lent("both", "fd00:3::95", 8, 8),
        // Aliases of a container that is not attached yet.
        lent("soon", "10.0.3.97", 9, 9),
        lent("p", "10.0.3.98", 10, 10),
    ];
    let zone = Zone::new(&declared).with_clients("pv.test", &named);
    for (name, kind, want) in [
        ("later.pv.test", RecordType::A, &[][..]),
        ("web.pv.test", RecordType::A, &["10.0.3.2"]),
        ("printer.pv.test", RecordType::A, &["10.0.3.92"]),
        ("printer.pv.test", RecordType::AAAA, &["fd00:3::92"]),
        ("printer.internal.pv.test", RecordType::AAAA, &["fd00:3::92"]),
        ("soon.pv.test", RecordType::A, &[]),
        ("p.pv.test", RecordType::A, &["10.0.3.98"]),
        ("p.internal.pv.test", RecordType::A, &[]),
    ] {
        assert_eq!(data(&ask(&zone, "10.0.3.2", name, kind).1), want, "{name} {kind}");
    }
    let fewer: Vec<_> = declared.containers.iter().filter(|c| c.name.as_str() != "both").cloned().collect();
    let after = Zone::new(&Snapshot { containers: fewer.into(), ..declared });
    for own in ["10.0.3.2", "10.0.3.3", "10.0.4.2"] {
        assert_eq!(client(&zone, own).whose(), client(&after, own).whose(), "{own}");
    }
    assert_ne!(client(&zone, "10.0.3.2").whose(), client(&after, "10.0.3.3").whose());
}

#[test]
fn nothing_has_a_reason_and_a_time() {
    let zone = Zone::new(&snapshot(&[]));
    for (from, name, kind, want, soa) in [
        ("10.0.3.2", "far.pv.test", RecordType::A, Answered::NoName, "pv.test."),
        ("10.0.3.2", "management.pv.test", RecordType::A, Answered::NoData, "pv.test."),
        ("10.0.4.2", "internal.pv.test", RecordType::A, Answered::NoName, "pv.test."),
        ("10.0.4.2", "b.pv.test", RecordType::A, Answered::NoData, "pv.test."),
        ("10.0.3.2", "b.pv.test", RecordType::A, Answered::NoName, "pv.test."),
        ("10.0.3.2", "old.pv.test", RecordType::AAAA, Answered::NoData, "pv.test."),
        ("10.0.3.2", "db.pv.test", RecordType::MX, Answered::NoData, "pv.test."),
        ("10.0.3.2", "pv.test", RecordType::A, Answered::NoData, "pv.test."),
        ("10.0.3.2", "x.db.pv.test", RecordType::A, Answered::NoName, "pv.test."),
        ("10.0.3.2", "2.4.0.10.in-addr.arpa", RecordType::PTR, Answered::NoName, "10.in-addr.arpa."),
        ("10.0.3.2", "3.0.10.in-addr.arpa", RecordType::PTR, Answered::NoData, "10.in-addr.arpa."),
        ("10.0.3.2", "4.0.10.in-addr.arpa", RecordType::PTR, Answered::NoName, "10.in-addr.arpa."),
        ("10.0.3.2", "10.in-addr.arpa", RecordType::PTR, Answered::NoData, "10.in-addr.arpa."),
        // The device's domain is below it (RFC 8020).
        ("10.0.3.2", "test", RecordType::A, Answered::NoData, "test."),
        ("10.0.3.2", "other.test", RecordType::A, Answered::NoName, "test."),
        ("10.0.3.2", "x.home.arpa", RecordType::TXT, Answered::NoName, "home.arpa."),
        ("10.0.3.2", "localhost", RecordType::MX, Answered::NoData, "localhost."),
    ] {
        if name == "management.pv.test" {
            // `both` exists, but a client in `internal` alone does not see that.
            assert_eq!(ask(&zone, from, name, kind).0, Outcome::Answered(Answered::NoName));
            assert_eq!(ask(&zone, "10.0.3.5", name, kind).0, Outcome::Answered(Answered::NoData));
            continue;
        }
        let (outcome, read) = ask(&zone, from, name, kind);
        assert_eq!(outcome, Outcome::Answered(want), "{from}: {name}");
        let code = if want == Answered::NoName { ResponseCode::NXDomain } else { ResponseCode::NoError };
        assert_eq!((read.metadata.response_code, read.answers.len(), read.authorities.len()), (code, 0, 1), "{name}");
        let authority = &read.authorities[0];
        assert_eq!(
            (authority.record_type(), authority.ttl, authority.name.to_string().as_str()),
            (RecordType::SOA, 5, soa)
        );
    }
    // The zones that are only here have what a zone has (RFC 6303 section 3).
    for (name, kind) in [
        ("10.in-addr.arpa", RecordType::SOA),
        ("10.in-addr.arpa", RecordType::NS),
        ("local", RecordType::SOA),
        ("pv.test", RecordType::NS),
    ] {
        let (outcome, read) = ask(&zone, "10.0.3.2", name, kind);
        assert_eq!((outcome, read.answers.len()), (Outcome::Answered(Answered::Found), 1), "{name} {kind}");
    }
    // What is looked for here is told to nobody outside, whatever kind of address is asked for.
    for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        let (outcome, read) = ask(&zone, "10.0.3.2", "printer", kind);
        assert_eq!(outcome, Outcome::Answered(Answered::NoName), "{kind}");
        assert_eq!(read.metadata.response_code, ResponseCode::NXDomain);
        assert!(matches!(ask(&zone, "10.0.3.2", "printer.example", kind).0, Outcome::Upstream(_)), "{kind}");
    }
}

#[test]
fn rules_show_names_and_the_rest_goes_on() {
    let rule =
        json!([{"from": {"container": "far"}, "to": {"container": "db"}, "ports": ["tcp/80"], "action": "allow"}]);
    let text = json!({"network": {"pools": {"p": {"subnet": "10.1.0.0/16"}}, "policies": rule}});
    let rules = crate::config::parse_device("device", &text.to_string()).expect("rules").policies;
    let zone = Zone::new(&snapshot(&rules));
    assert_eq!(data(&ask(&zone, "10.0.4.2", "db.pv.test", RecordType::A).1), ["10.0.3.3"]);
    assert_eq!(data(&ask(&zone, "10.0.4.2", "sql.pv.test", RecordType::A).1), ["10.0.3.3"], "not those of old");
    assert_eq!(ask(&zone, "10.0.4.2", "old.pv.test", RecordType::A).0, Outcome::Answered(Answered::NoName));
    assert_eq!(ask(&zone, "10.0.3.3", "far.pv.test", RecordType::A).0, Outcome::Answered(Answered::NoName), "one way");
    let route = |from: &str, name: &str| match ask(&zone, from, name, RecordType::A).0 {
        Outcome::Upstream(route) => (route.servers.map(|s| s[0].to_string()), route.may_be_private),
        Outcome::Answered(how) => panic!("{name}: {how:?}"),
    };
    assert_eq!(route("10.0.3.2", "www.corp.example"), (Some("10.9.0.53:53".to_owned()), true));
    assert_eq!(route("10.0.4.2", "www.corp.example"), (None, false));
    assert_eq!(route("10.0.3.2", "nas.lan.example"), (None, true));
    assert_eq!(route("10.0.3.2", "example.com"), (None, false));
    for name in ["host", "x.local", "x.home.arpa", "9.9.9.10.in-addr.arpa", "_dns.resolver.arpa"] {
        assert_eq!(ask(&zone, "10.0.3.2", name, RecordType::A).0, Outcome::Answered(Answered::NoName), "{name}");
    }
    assert_eq!(zone.client(0, "10.0.9.9".parse().expect("address")), None);
}

fn offer(name: &str, kind: &str, port: u16) -> crate::model::Offer {
    let transport = if kind == "udp" { crate::model::Transport::Udp } else { crate::model::Transport::Tcp };
    crate::model::Offer { name: name.to_owned(), kind: kind.to_owned(), transport, port }
}

#[test]
fn services_have_names_of_their_own() {
    let offers = [
        ("both", vec![offer("api", "http", 8080)]),
        ("db", vec![offer("api", "http", 80), offer("db", "tcp", 5432), offer("log", "udp", 514)]),
        ("far", vec![offer("web", "tcp", 1), offer("secret", "tcp", 2), offer("sql", "tcp", 3)]),
    ];
    let offers = offers.map(|(name, list)| (name.parse().expect("name"), list));
    let zone = Zone::new(&Snapshot { offers: Arc::new(offers.into()), ..snapshot(&[]) });
    let added = |read: &Message| {
        let line = |r: &hickory_proto::rr::Record| format!("{} {}", r.name, r.data);
        read.additionals.iter().map(line).collect::<Vec<_>>()
    };
    let (_, read) = ask(&zone, "10.0.3.2", "_api._tcp.pv.test", RecordType::SRV);
    assert_eq!(data(&read), ["0 0 8080 both.pv.test.", "0 0 80 db.pv.test."]);
    // Only what the client may see.
    assert_eq!(
        added(&read),
        ["both.pv.test. 10.0.3.5", "both.pv.test. fd00:3::5", "db.pv.test. 10.0.3.3", "db.pv.test. fd00:3::3"]
    );
    for (name, kind, want) in [
        ("api.pv.test", RecordType::A, &["10.0.3.5", "10.0.3.3"][..]),
        ("_API._tcp.pv.test", RecordType::TXT, &["type=http", "type=http"]),
        ("db.pv.test", RecordType::TXT, &["type=tcp"]),
        ("db.pv.test", RecordType::A, &["10.0.3.3"]),
        ("_db._tcp.pv.test", RecordType::SRV, &["0 0 5432 db.pv.test."]),
        ("_log._udp.pv.test", RecordType::SRV, &["0 0 514 db.pv.test."]),
        ("web.pv.test", RecordType::A, &["10.0.3.2"]),
    ] {
        assert_eq!(data(&ask(&zone, "10.0.3.2", name, kind).1), want, "{name}");
    }
    for (name, kind, want) in [
        ("_api._tcp.pv.test", RecordType::A, Answered::NoData),
        ("api.pv.test", RecordType::SRV, Answered::NoData),
        ("_tcp.pv.test", RecordType::SRV, Answered::NoData),
        ("_api._udp.pv.test", RecordType::SRV, Answered::NoName),
        ("_secret._tcp.pv.test", RecordType::SRV, Answered::NoName),
        ("secret.pv.test", RecordType::A, Answered::NoName),
        ("_web._tcp.pv.test", RecordType::SRV, Answered::NoName),
        ("web.pv.test", RecordType::TXT, Answered::NoData),
    ] {
        assert_eq!(ask(&zone, "10.0.3.2", name, kind).0, Outcome::Answered(want), "{name}");
    }
    let [first, second] = zone.clashes() else { panic!("{:?}", zone.clashes()) };
    assert!(first.contains("service web of container far") && first.contains("a container's"), "{first}");
    assert!(second.contains("service sql of container far") && second.contains("an alias"), "{second}");
    // Where the name is an alias, the record is still the service's.
    let far = "far".parse().expect("name");
    let names = |name: &str, port| zone.names_of(&far, &offer(name, "tcp", port));
    assert_eq!(names("sql", 3), [None, Some("_sql._tcp.pv.test".to_owned())]);
    assert_eq!(names("secret", 2), ["secret.pv.test", "_secret._tcp.pv.test"].map(|name| Some(name.to_owned())));
    assert_eq!(names("web", 1), [None, None]);
}

#[test]
fn names_that_are_not_what_they_seem_are_said() {
    let mut all = snapshot(&[]);
    let more = [("Web", 9), ("Gateway", 10)];
    let more = more.map(|(name, n)| container(n.into(), vec![attachment(name, "eth0", "internal", n)], &[]));
    let mut containers: Vec<_> = all.containers.iter().cloned().chain(more).collect();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    all.containers = containers.into();
    let zone = Zone::new(&all);
    let [gateway, case] = zone.clashes() else { panic!("{:?}", zone.clashes()) };
    assert!(gateway.contains("container Gateway: that name is the gateway's"), "{gateway}");
    assert!(case.contains("containers Web and web: names have no case"), "{case}");
    assert_eq!(data(&ask(&zone, "10.0.3.2", "gateway.pv.test", RecordType::A).1), ["10.0.3.1"]);
}

/// A device of the largest size: each attach makes the zone anew.
#[test]
fn a_thousand_containers_have_their_names() {
    let mut all = snapshot(&[]);
    let one = |n: u32| {
        let mut attachment = attachment(&format!("c{n}"), "eth0", "internal", 9);
        attachment.ipv4 = Some([10, 0, 3, (n % 250) as u8].into());
        attachment.ipv6 = Some(format!("fd00:3::{n:x}").parse().expect("address"));
        container(n, vec![attachment], &["everybody"])
    };
    let mut containers: Vec<_> = (1000..2000).map(one).collect();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    all.containers = containers.into();
    let begun = Instant::now();
    let zone = Zone::new(&all);
    println!("1000 containers: {:?}", begun.elapsed());
    assert_eq!(data(&ask(&zone, "10.0.3.99", "c1999.pv.test", RecordType::AAAA).1), ["fd00:3::7cf"]);
    // The answer is larger than a datagram, so it comes by TCP.
    let (_, read) = ask(&zone, "10.0.3.99", "everybody.pv.test", RecordType::AAAA);
    assert!(read.metadata.truncation && read.answers.is_empty());
}

#[test]
fn questions_are_read_or_refused() {
    let good = question("www.example", RecordType::A);
    let changed = |at: usize, to: u8| {
        let mut message = good.clone();
        message[at] = to;
        Query::parse(&message).map(|q| q.rtype()).map_err(|e| e == NoQuery::Silent)
    };
    assert_eq!(changed(2, 1), Ok(RecordType::A));
    for (at, to, silent) in [
        (2, 0x81, true),
        (2, 0x28, false),
        (5, 0, false),
        (5, 2, false),
        (11, 2, false),
        (12, 0xc0, false),
        (12, 64, false),
    ] {
        assert_eq!(changed(at, to), Err(silent), "{at}: {to}");
    }
    assert_eq!(Query::parse(&good[..11]).map(|_| ()), Err(NoQuery::Silent));
    let refused = |message: &[u8]| Query::parse(message).map(|_| ()) == Err(NoQuery::Refused(ResponseCode::FormErr));
    let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    assert!(refused(&[&head[..], &[0xc0, 4, 0, 1, 0, 1]].concat()), "a name in the header");
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4];
    let many = |n: u8| {
        let mut message = good[..29].to_vec();
        (message[7], message[11]) = (n, 0);
        message.extend(record.repeat(n.into()));
        message
    };
    assert!(!refused(&many(8)) && refused(&many(9)));
    let mut twice = [&good[..], &good[29..]].concat();
    twice[11] = 2;
    assert!(refused(&twice), "EDNS twice");
}

proptest! {
    /// Whatever the message, the answer can be read and repeats the question.
    #[test]
    fn any_bytes_are_answered_well(mut bytes in prop::collection::vec(any::<u8>(), 0..120), head in any::<bool>()) {
        if head && bytes.len() > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let zone = Zone::new(&snapshot(&[]));
        if let Ok(query) = Query::parse(&bytes) {
            let mut out = Vec::new();
            if let Outcome::Answered(_) = answer(&zone, client(&zone, "10.0.3.2"), &query, query.datagram(), &mut out) {
                let read = Message::from_vec(&out).expect("an answer");
                prop_assert_eq!(read.queries.len(), 1);
                prop_assert!(out.len() <= query.datagram());
            }
        }
    }
}
