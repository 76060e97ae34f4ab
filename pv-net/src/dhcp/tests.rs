//! The server, message by message, with a lease book that takes what it is given.

mod limits;
mod messages;
mod probes;

use super::message::{Kind, Query, Unread, read};
use super::*;
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use crate::model::{Mac, PoolDhcp};
use dhcproto::v4::borrowed::Message;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
const TIME: u32 = 600;

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 3, last)
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 9, number])
}

/// Addresses 100 to 107, 6 behind a port, and one container: 10.0.3.2.
fn config() -> Config {
    let settings = PoolDhcp {
        lease_time: TIME,
        leases_per_port: 6,
        ntp: vec![address(1)],
        routes: vec![("10.9.128.0/17".parse().expect("net"), address(5))],
        captive_portal: Some("https://portal.example/api".to_owned()),
        options: BTreeMap::from([(43, vec![1, 2]), (66, b"boot.example".to_vec())]),
    };
    let web = Interface { address: address(2), hostname: Some("web".to_owned()), has_default_route: false };
    Config {
        pool: "internal".parse().expect("name"),
        link: 7,
        net: "10.0.3.0/24".parse().expect("net"),
        server: SERVER,
        range: Some((address(100), address(107))),
        settings: Arc::new(settings),
        has_dns: true,
        domain: "pv.local".to_owned(),
        mtu: 1400,
        managed: HashMap::from([(Mac([2, 0, 10, 0, 3, 2]), web)]),
    }
}

fn query(kind: Kind, mac: Mac) -> Query {
    Query {
        kind,
        xid: 7,
        flags: 0,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        mac,
        client: None,
        requested: None,
        server: None,
        hostname: None,
        wants: Some((1..=254).collect()),
        most: Some(1500),
        lease_time: None,
    }
}

/// A server with its clocks, and what the book has.
struct Lab {
    server: Server,
    now: Now,
    book: BTreeMap<String, Arc<ClientLease>>,
}

/// What a message says back: its type, the address in it, and its options.
struct Said {
    kind: Sent,
    yours: Ipv4Addr,
    options: BTreeMap<u8, Vec<u8>>,
    reply: Reply,
}

impl Said {
    fn of(reply: Reply) -> Self {
        let message = Message::new(&reply.message).expect("a message");
        assert!(reply.message.len() >= 300 && message.xid() == 7);
        let options = message.opts().map(|o| (u8::from(o.code()), o.data().to_vec())).collect();
        Self { kind: reply.kind, yours: message.yiaddr(), options, reply }
    }
}

impl Lab {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: Config) -> Self {
        let now = Now { unix: 1_000_000, at: Instant::now() };
        let mut lab = Self { server: Server::new(config, &[], now), now, book: BTreeMap::new() };
        lab.wait(Duration::from_millis(150));
        lab
    }

    fn wait(&mut self, time: Duration) {
        self.now.at += time;
        self.now.unix += time.as_secs();
    }

    /// What comes of a message from this port: an answer, or why there is none. Probes are answered by nobody, and the
    /// book takes all.
    fn say(&mut self, port: u32, query: Query) -> Result<Said, Silence> {
        let from = Origin { mac: query.mac, port };
        let act = self.server.receive(query, from, self.now);
        self.follow(act)
    }

    fn follow(&mut self, act: Act) -> Result<Said, Silence> {
        match act {
            Act::Silent(why) => Err(why),
            Act::Send(reply) => {
                // The client takes a moment to answer an offer.
                self.wait(Duration::from_millis(if reply.kind == Sent::Offer { 10 } else { 0 }));
                Ok(Said::of(reply))
            }
            Act::Wait => {
                self.wait(Duration::from_millis(150));
                let mut acts = self.server.tick(self.now);
                assert_eq!(acts.len(), 1);
                self.follow(acts.remove(0))
            }
            Act::Write(client, steps) => {
                for step in steps {
                    match step {
                        Step::Lend(lease) => drop(self.book.insert(lease.client.to_string(), lease)),
                        Step::End(key) => assert!(self.book.remove(&key.client.to_string()).is_some()),
                        other => panic!("{other:?}"),
                    }
                }
                let addresses: std::collections::BTreeSet<_> = self.book.values().map(|lease| lease.address).collect();
                assert_eq!(addresses.len(), self.book.len(), "one address twice");
                let written = self.server.written(&client, Outcome::Done, self.now);
                written.reply.map(Said::of).ok_or(Silence::Done)
            }
        }
    }

    fn select(&mut self, port: u32, query: Query, address: Ipv4Addr) -> Result<Said, Silence> {
        let query = Query { kind: Kind::Request, requested: Some(address), server: Some(SERVER), ..query };
        self.say(port, query)
    }

    /// All of an exchange.
    fn get(&mut self, port: u32, query: Query) -> Result<Ipv4Addr, Silence> {
        let offer = self.say(port, query.clone())?;
        assert_eq!(offer.kind, Sent::Offer);
        let ack = self.select(port, query, offer.yours)?;
        assert_eq!((ack.kind, ack.yours), (Sent::Ack, offer.yours));
        Ok(ack.yours)
    }
}

fn discover(number: u8) -> Query {
    query(Kind::Discover, mac(number))
}

/// A request of a client that starts again with an address that it had.
fn reboot(number: u8, address: Ipv4Addr) -> Query {
    Query { requested: Some(address), ..query(Kind::Request, mac(number)) }
}

/// One of a client that uses its address.
fn renew(number: u8, address: Ipv4Addr) -> Query {
    Query { ciaddr: address, ..query(Kind::Request, mac(number)) }
}

#[test]
fn a_client_gets_an_address_and_all_that_it_asks_for() {
    let mut lab = Lab::new();
    let asks = Query { hostname: Some("laptop".to_owned()), ..discover(1) };
    let offer = lab.say(3, asks.clone()).expect("an offer");
    assert_eq!((offer.kind, offer.yours), (Sent::Offer, address(100)));
    assert!(lab.book.is_empty(), "it is only offered");
    let ack = lab.select(3, asks, offer.yours).expect("an answer");
    for (code, octets) in [
        (1, &[255, 255, 255, 0][..]),
        (3, &[10, 0, 3, 1]),
        (6, &[10, 0, 3, 1]),
        (12, b"laptop"),
        (15, b"pv.local"),
        (26, &[5, 120]),
        (28, &[10, 0, 3, 255]),
        (42, &[10, 0, 3, 1]),
        (43, &[1, 2]),
        (51, &[0, 0, 2, 88]),
        (53, &[5]),
        (54, &[10, 0, 3, 1]),
        (58, &[0, 0, 1, 44]),
        (59, &[0, 0, 2, 13]),
        (66, b"boot.example"),
        (114, b"https://portal.example/api"),
        (119, b"\x02pv\x05local\0"),
        // The way out is among them (RFC 3442).
        (121, &[0, 10, 0, 3, 1, 17, 10, 9, 128, 10, 0, 3, 5]),
    ] {
        assert_eq!(ack.options.get(&code).map(Vec::as_slice), Some(octets), "option {code}");
    }
    assert_eq!(ack.options.len(), 18);
    let lease = lab.book.values().next().expect("one");
    assert_eq!((lease.address, lease.expires), (IpAddr::V4(address(100)), lab.now.unix + u64::from(TIME)));
    assert_eq!((lease.mac, lease.hostname.as_deref()), (Some(mac(1)), Some("laptop")));
    assert_eq!(lease.client, ClientId::of_mac(mac(1)));
}

#[test]
fn options_are_told_as_asked_and_as_far_as_they_fit() {
    let mut lab = Lab::new();
    let few = Query { wants: Some(vec![3, 43]), ..discover(1) };
    let offer = lab.say(3, few).expect("an offer");
    assert_eq!(offer.options.keys().copied().collect::<Vec<_>>(), [1, 3, 43, 51, 53, 54, 58, 59]);
    // Who asks for nothing gets what all understand.
    let plain = lab.say(3, Query { wants: None, ..discover(2) }).expect("an offer");
    assert_eq!(plain.options.keys().copied().collect::<Vec<_>>(), [1, 3, 6, 15, 28, 51, 53, 54, 58, 59]);
    // What is asked for last is left out first; what a message is about never.
    let mut config = config();
    let large = BTreeMap::from([(200, vec![7; 200]), (201, vec![8; 200]), (202, vec![9; 200])]);
    config.settings = Arc::new(PoolDhcp { options: large, ..PoolDhcp::clone(&config.settings) });
    let mut lab = Lab::with(config);
    let wants = Some(vec![202, 1, 3, 200, 201]);
    let offer = lab.say(3, Query { wants: wants.clone(), most: None, ..discover(1) }).expect("an offer");
    assert!(offer.reply.message.len() <= 548);
    assert!(offer.options.contains_key(&202) && !offer.options.contains_key(&200) && !offer.options.contains_key(&201));
    assert!([1, 3, 51, 53, 54].iter().all(|code| offer.options.contains_key(code)));
    let offer = lab.say(3, Query { wants, most: Some(1500), ..discover(2) }).expect("an offer");
    assert!(offer.options.contains_key(&200) && offer.options.contains_key(&201));
}

#[test]
fn replies_go_where_the_client_hears_them() {
    let mut lab = Lab::new();
    let everybody = Mac([0xff; 6]);
    let offer = lab.say(3, discover(1)).expect("an offer");
    assert_eq!((offer.reply.to, offer.reply.mac), (address(100), mac(1)));
    let broadcast = Query { flags: 0x8000, ..discover(1) };
    let offer = lab.say(3, broadcast).expect("an offer");
    assert_eq!((offer.reply.to, offer.reply.mac), (Ipv4Addr::BROADCAST, everybody));
    assert_eq!(u16::from(Message::new(&offer.reply.message).expect("a message").flags()), 0x8000);
    lab.select(3, discover(1), address(100)).expect("an answer");
    let ack = lab.say(3, Query { flags: 0x8000, ..renew(1, address(100)) }).expect("an answer");
    assert_eq!((ack.reply.to, ack.reply.mac), (address(100), mac(1)), "it uses its address");
    let nak = lab.say(3, renew(1, address(101))).expect("an answer");
    assert_eq!((nak.kind, nak.reply.to, nak.reply.mac), (Sent::Nak, Ipv4Addr::BROADCAST, everybody));
    assert_eq!(nak.options.keys().copied().collect::<Vec<_>>(), [53, 54]);
}

#[test]
fn the_states_of_a_request() {
    let mut lab = Lab::new();
    lab.get(3, discover(1)).expect("an address");
    let (own, other) = (address(100), address(101));
    // RFC 2131 section 4.3.2, for each state of a client.
    for (what, query, expected) in [
        ("renewing", renew(1, own), Ok(Sent::Ack)),
        ("renewing what it has not", renew(1, other), Ok(Sent::Nak)),
        ("rebooting", reboot(1, own), Ok(Sent::Ack)),
        ("rebooting with another one", reboot(1, other), Ok(Sent::Nak)),
        ("rebooting from another network", reboot(2, Ipv4Addr::new(192, 168, 1, 9)), Ok(Sent::Nak)),
        ("rebooting with what is another's", reboot(2, own), Ok(Sent::Nak)),
        ("rebooting, and nothing is known", reboot(2, other), Err(Silence::Unknown)),
        ("renewing, and nothing is known", renew(2, other), Err(Silence::Unknown)),
        ("about nothing", query(Kind::Request, mac(1)), Err(Silence::Senseless)),
    ] {
        assert_eq!(lab.say(3, query).map(|said| said.kind), expected, "{what}");
    }
    // Selecting: what was not offered, and another server.
    lab.say(3, discover(2)).expect("an offer");
    assert_eq!(lab.select(3, discover(2), address(107)).map(|s| s.kind), Ok(Sent::Nak));
    let elsewhere = Query { server: Some(address(9)), requested: Some(other), ..query(Kind::Request, mac(2)) };
    assert_eq!(lab.say(3, elsewhere).err(), Some(Silence::OtherServer));
    assert_eq!(lab.get(3, Query { requested: Some(other), ..discover(3) }), Ok(other), "it is free again");
}

#[test]
fn a_client_gets_the_same_again_and_a_new_one_what_nobody_had() {
    let mut lab = Lab::new();
    assert_eq!(lab.get(3, discover(1)), Ok(address(100)));
    assert_eq!(lab.get(4, discover(2)), Ok(address(101)));
    // Released or over, it stays its client's while there are others.
    let release = Query { ciaddr: address(100), server: Some(SERVER), ..query(Kind::Release, mac(1)) };
    assert_eq!(lab.say(3, release).err(), Some(Silence::Done));
    assert!(lab.book.values().any(|lease| lease.address == IpAddr::V4(address(100)) && lease.is_over(lab.now.unix)));
    assert_eq!(lab.get(5, discover(3)), Ok(address(102)));
    assert_eq!(lab.get(3, discover(1)), Ok(address(100)));
    lab.wait(Duration::from_secs(3600));
    assert_eq!(lab.get(3, discover(2)), Ok(address(101)));
    for (number, last) in (4..).zip(103..=107) {
        assert_eq!(lab.get(u32::from(number), discover(number)), Ok(address(last)));
    }
    // Then it goes to whoever comes, the one that is over for the longest to the first.
    assert_eq!(lab.get(50, discover(50)), Ok(address(100)));
    assert_eq!(lab.get(51, discover(51)), Ok(address(102)));
    assert!(!lab.server.is_exhausted());
    assert_eq!(lab.get(52, discover(52)), Err(Silence::Exhausted));
    assert!(lab.server.is_exhausted());
    // And who had it gets another one, as soon as there is one.
    assert_eq!(lab.say(3, renew(1, address(100))).map(|said| said.kind), Ok(Sent::Nak));
    lab.wait(Duration::from_secs(3600));
    assert!(lab.get(3, discover(1)).is_ok() && !lab.server.is_exhausted());
}

#[test]
fn who_says_who_it_is_is_known_by_that() {
    let mut lab = Lab::new();
    let id = ClientId::of_association(7, &[0, 4, 1, 2, 3]).expect("short");
    let asks = |number| Query { client: Some(id.clone()), ..discover(number) };
    let first = lab.get(3, asks(1)).expect("an address");
    // RFC 6842.
    assert_eq!(lab.say(3, asks(1)).expect("an offer").options[&61], id.octets());
    // With another MAC it may be a copy of the machine: it gets an address of its own, as long as the first has its.
    assert_eq!(lab.get(4, asks(2)), Ok(address(101)));
    assert_eq!(lab.say(4, Query { client: Some(id.clone()), ..renew(2, address(101)) }).map(|s| s.kind), Ok(Sent::Ack));
    assert_eq!(lab.say(3, Query { client: Some(id.clone()), ..renew(1, first) }).map(|s| s.kind), Ok(Sent::Ack));
    lab.wait(Duration::from_secs(3600));
    assert_eq!(lab.get(5, asks(3)), Ok(first), "another card of the same machine");
    // Only who has a lease ends it.
    let release = |number| Query { ciaddr: first, client: Some(id.clone()), ..query(Kind::Release, mac(number)) };
    assert_eq!(lab.say(4, release(9)).err(), Some(Silence::Unknown));
    // Anybody on the bridge may have heard its MAC and identifier.
    assert_eq!(lab.say(6, release(3)).err(), Some(Silence::Unknown), "by another port");
    let decline = Query { requested: Some(first), client: Some(id.clone()), ..query(Kind::Decline, mac(3)) };
    assert_eq!(lab.say(6, decline).err(), Some(Silence::Unknown));
    assert_eq!(lab.say(5, release(3)).err(), Some(Silence::Done));
}

#[test]
fn a_container_gets_its_own_and_nothing_else() {
    let mut lab = Lab::new();
    let web = Mac([2, 0, 10, 0, 3, 2]);
    let asks = |kind| query(kind, web);
    let offer = lab.say(0, Query { requested: Some(address(100)), ..asks(Kind::Discover) }).expect("an offer");
    assert_eq!((offer.kind, offer.yours), (Sent::Offer, address(2)));
    assert_eq!(offer.options.get(&12).map(Vec::as_slice), Some(&b"web"[..]));
    // Its way out is another pool's.
    assert!(!offer.options.contains_key(&3) && !offer.options[&121].starts_with(&[0]));
    let id = ClientId::new(b"somebody else");
    for (client, requested, server, kind) in [
        (None, address(2), Some(SERVER), Ok(Sent::Ack)),
        (id, address(2), None, Ok(Sent::Ack)),
        (None, address(3), None, Ok(Sent::Nak)),
        (None, address(100), Some(SERVER), Ok(Sent::Nak)),
        (None, address(2), Some(address(9)), Err(Silence::OtherServer)),
    ] {
        let query = Query { client, requested: Some(requested), server, ..asks(Kind::Request) };
        assert_eq!(lab.say(0, query).map(|said| said.kind), kind);
    }
    assert_eq!(lab.say(0, Query { ciaddr: address(2), ..asks(Kind::Release) }).err(), Some(Silence::Done));
    assert_eq!(lab.say(0, Query { requested: Some(address(2)), ..asks(Kind::Decline) }).err(), Some(Silence::Done));
    assert!(lab.book.is_empty(), "its lease is not one of the range");
    // Without a range only containers are answered.
    let mut lab = Lab::with(Config { range: None, ..config() });
    assert!(lab.say(0, asks(Kind::Discover)).is_ok());
    assert_eq!(lab.say(3, discover(1)).err(), Some(Silence::NoRange));
}

#[test]
fn who_has_an_address_is_told_the_rest() {
    let mut lab = Lab::new();
    let said = lab.say(3, Query { ciaddr: address(50), ..query(Kind::Inform, mac(1)) }).expect("an answer");
    assert_eq!((said.kind, said.yours, said.reply.to), (Sent::Ack, Ipv4Addr::UNSPECIFIED, address(50)));
    assert!([51, 58, 59].iter().all(|code| !said.options.contains_key(code)) && said.options.contains_key(&6));
    assert_eq!(lab.say(3, query(Kind::Inform, mac(1))).err(), Some(Silence::Senseless));
    assert!(lab.book.is_empty());
}

#[test]
fn leases_are_known_again_after_a_start_and_follow_the_configuration() {
    let mut lab = Lab::new();
    let first = lab.get(3, Query { hostname: Some("box".to_owned()), ..discover(1) }).expect("an address");
    let clients: Vec<_> = lab.book.values().cloned().collect();
    lab.server = Server::new(config(), &clients, lab.now);
    assert_eq!(lab.get(4, Query { hostname: Some("box".to_owned()), ..discover(2) }), Ok(address(101)));
    assert_eq!(lab.say(3, renew(1, first)).map(|said| said.kind), Ok(Sent::Ack));
    // Another range: who has an address outside is told to look for another one.
    let moved = Config { range: Some((address(200), address(203))), ..config() };
    lab.server.follow(moved);
    assert_eq!(lab.say(3, renew(1, first)).map(|said| said.kind), Ok(Sent::Nak));
    assert_eq!(lab.get(3, discover(1)), Ok(address(200)));
    let wanted = Query { lease_time: Some(61), ..renew(1, address(200)) };
    assert_eq!(lab.say(3, wanted).expect("an answer").options[&51], 61u32.to_be_bytes());
    let wanted = Query { lease_time: Some(1), ..renew(1, address(200)) };
    assert_eq!(lab.say(3, wanted).expect("an answer").options[&51], 60u32.to_be_bytes());
    let wanted = Query { lease_time: Some(u32::MAX), ..renew(1, address(200)) };
    assert_eq!(lab.say(3, wanted).expect("an answer").options[&51], TIME.to_be_bytes());
}
