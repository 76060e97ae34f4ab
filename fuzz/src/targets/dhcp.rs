//! DHCP: whatever clients send, no address is given twice, and each answer is one that the client can read.

use pv_net::dhcp::message::{Kind, Query, read};
use pv_net::dhcp::{Act, Config, Interface, Now, Origin, Outcome, Reply, Sent, Server, frame};
use pv_net::ipam::{ClientId, ClientKey, ClientLease};
use pv_net::lease::Step;
use pv_net::model::{Mac, PoolDhcp};
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

const WEB: Mac = Mac([2, 0, 10, 0, 3, 2]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 8);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 11);

static CONFIG: LazyLock<Config> = LazyLock::new(|| Config {
    pool: "internal".parse().expect("a name"),
    link: 7,
    net: "10.0.3.0/24".parse().expect("a network"),
    server: SERVER,
    range: Some((FIRST, LAST)),
    settings: Arc::new(PoolDhcp {
        lease_time: 60,
        leases_per_port: 3,
        ntp: vec![SERVER],
        routes: vec![("10.9.0.0/16".parse().expect("a network"), SERVER)],
        captive_portal: Some("https://portal.example".to_owned()),
        options: BTreeMap::from([(43, vec![7; 255])]),
    }),
    has_dns: true,
    domain: "pv.local".to_owned(),
    mtu: 1500,
    managed: HashMap::from([(WEB, Interface { address: OWN, hostname: None, has_default_route: true })]),
});

/// Target `dhcp`. The input is a message, a packet, and an ARP packet, each as it is; and, six octets at a time, what
/// clients do one after the other.
pub fn check(input: &[u8]) {
    if let Ok(query) = read(input) {
        let now = Now { unix: 1000, at: Instant::now() };
        let mut server = Server::new(CONFIG.clone(), &[], now);
        let act = server.receive(query.clone(), Origin { mac: query.mac, port: 1 }, now);
        if let Act::Send(reply) = act {
            is_right(&reply, &query);
        }
    }
    if let Some(message) = frame::read(input, SERVER) {
        assert!(message.len() + 28 <= input.len());
        assert!(
            [SERVER, Ipv4Addr::BROADCAST].map(|to| to.octets()).contains(&[input[16], input[17], input[18], input[19]])
        );
    }
    if let Some(address) = frame::answer(input) {
        assert_eq!(input[14..18], address.octets());
    }
    history(input);
}

/// A client can read it, and it is about that client alone.
fn is_right(reply: &Reply, query: &Query) {
    let at = |range: std::ops::Range<usize>| &reply.message[range];
    assert!((300..=1472).contains(&reply.message.len()));
    assert_eq!((at(0..3), at(4..8)), (&[2, 1, 6][..], query.xid.to_be_bytes().as_slice()));
    assert_eq!((at(28..34), at(236..240)), (query.mac.0.as_slice(), &[99, 130, 83, 99][..]));
    let yours = Ipv4Addr::from(<[u8; 4]>::try_from(at(16..20)).expect("4 octets"));
    match reply.kind {
        Sent::Offer | Sent::Ack if query.mac == WEB && query.kind != Kind::Inform => assert_eq!(yours, OWN),
        Sent::Offer => assert!((FIRST..=LAST).contains(&yours)),
        Sent::Ack => assert!(yours.is_unspecified() || (FIRST..=LAST).contains(&yours)),
        Sent::Nak => assert!(yours.is_unspecified() && reply.to == Ipv4Addr::BROADCAST),
    }
    let mut options = &reply.message[240..];
    let mut seen = Vec::new();
    while let [code, rest @ ..] = options
        && *code != 255
    {
        let len = usize::from(rest[0]);
        assert!(!seen.contains(code), "option {code} twice");
        seen.push(*code);
        options = &rest[1 + len..];
    }
    assert_eq!(options.first(), Some(&255), "it has an end");
    assert!(seen.contains(&53) && seen.contains(&54));
}

/// The book beside the server: what it takes must never be of two clients.
fn take(book: &mut BTreeMap<ClientKey, Arc<ClientLease>>, step: Step) {
    match step {
        Step::Lend(lease) => {
            let other = book.values().find(|other| other.address == lease.address && other.client != lease.client);
            assert!(other.is_none(), "{} is that of {other:?}", lease.address);
            book.insert(lease.key(), lease);
        }
        Step::End(key) => drop(book.remove(&key)),
        Step::Assign(_) | Step::Release(_) | Step::Learn(_) => panic!("that is a container's"),
    }
}

/// What clients did, and what became of it.
struct History {
    server: Server,
    book: BTreeMap<ClientKey, Arc<ClientLease>>,
    /// Writes that the book has carried out, in this order, and that the server has not heard of.
    writing: Vec<(ClientId, Outcome)>,
    now: Now,
}

fn history(input: &[u8]) {
    let now = Now { unix: 1_000_000, at: Instant::now() };
    let server = Server::new(CONFIG.clone(), &[], now);
    let mut history = History { server, book: BTreeMap::new(), writing: Vec::new(), now };
    for step in input.chunks_exact(6).take(64) {
        history.step(step);
    }
    history.hear();
}

impl History {
    fn step(&mut self, step: &[u8]) {
        let [what, who, about, from, says, time] = step else { return };
        let (address, mac) =
            (Ipv4Addr::new(10, 0, 3, about % 16), if *who == 0 { WEB } else { Mac([2, 0, 0, 0, 0, *who]) });
        self.now.unix += u64::from(*time);
        self.now.at += Duration::from_secs(u64::from(*time));
        // Half of the steps are so close that a probe is still waited for.
        self.now.at += Duration::from_millis(if what & 0x40 != 0 { 0 } else { 100 });
        if what & 0x80 != 0 {
            self.server.follow(CONFIG.clone());
        }
        // In half of the steps the disk takes longer, and other messages come meanwhile.
        let is_slow = what & 0x20 != 0;
        if !is_slow {
            self.hear();
        }
        let outcome = [Outcome::Done, Outcome::Done, Outcome::Failed, Outcome::Taken][usize::from(what >> 3 & 3)];
        for act in self.server.tick(self.now) {
            self.follow(act, outcome);
        }
        let origin = Origin { mac, port: u32::from(from % 3) };
        let kind = match what % 6 {
            0 => Kind::Discover,
            1 => Kind::Request,
            2 => Kind::Decline,
            3 => Kind::Release,
            4 => Kind::Inform,
            _ => {
                if let Some(Act::Send(reply)) = self.server.answered(address, origin, self.now) {
                    assert_eq!(reply.kind, Sent::Nak);
                }
                return;
            }
        };
        let query = Query {
            kind,
            xid: 7,
            flags: u16::from(*from) << 8,
            ciaddr: if says & 1 != 0 { address } else { Ipv4Addr::UNSPECIFIED },
            mac,
            client: (says & 2 != 0).then(|| ClientId::new(&[0, says >> 5]).expect("2 octets")),
            requested: (says & 4 != 0).then_some(address),
            server: (says & 8 != 0).then_some(if says & 16 != 0 { OWN } else { SERVER }),
            hostname: (says & 32 != 0).then(|| "box".to_owned()),
            wants: (says & 64 != 0).then(|| step.to_vec()),
            most: None,
            lease_time: None,
        };
        let act = self.server.receive(query.clone(), origin, self.now);
        if let Some(reply) = self.follow(act, outcome) {
            is_right(&reply, &query);
        }
        if !is_slow {
            let replies = self.hear();
            replies.iter().filter(|reply| reply.mac == query.mac).for_each(|reply| is_right(reply, &query));
        }
        assert!(self.server.take_probes().iter().all(|address| (FIRST..=LAST).contains(address)));
        let live = self.book.values().filter(|lease: &&Arc<ClientLease>| !lease.is_over(self.now.unix));
        assert!(live.count() <= 4, "the range has no more");
    }

    /// Does what the server says. Gives back what is sent.
    fn follow(&mut self, act: Act, outcome: Outcome) -> Option<Reply> {
        match act {
            Act::Send(reply) => return Some(reply),
            Act::Write(client, steps) => {
                if outcome == Outcome::Done {
                    steps.into_iter().for_each(|step| take(&mut self.book, step));
                }
                self.writing.push((client, outcome));
            }
            Act::Silent(_) | Act::Wait => {}
        }
        None
    }

    /// The server hears of all writes. Gives back what is sent.
    fn hear(&mut self) -> Vec<Reply> {
        let writing = std::mem::take(&mut self.writing);
        writing
            .into_iter()
            .filter_map(|(client, outcome)| self.server.written(&client, outcome, self.now).reply)
            .collect()
    }
}

/// The magic cookie, options of each kind, and what clients do.
pub fn words() -> Vec<Vec<u8>> {
    let words: [&[u8]; 12] = [
        &[99, 130, 83, 99],
        &[53, 1, 1],
        &[53, 1, 3],
        &[50, 4, 10, 0, 3, 9],
        &[54, 4, 10, 0, 3, 1],
        &[61, 3, 0, 1, 2],
        &[55, 3, 1, 3, 121],
        &[52, 1, 3],
        &[255],
        &[0, 1, 0, 1, 0, 0],
        &[1, 1, 8, 1, 12, 0],
        &[3, 1, 8, 1, 1, 0],
    ];
    words.map(<[u8]>::to_vec).to_vec()
}
