//! The server, message by message, with a lease book that takes what it is given.

mod limits;
mod messages;

use super::metrics::Ended;
use super::{Ignored, Server, Table, answer};
use crate::dhcp::{Now, Origin};
use crate::ipam::{ClientId, ClientLease, Ipam, Lease, LeaseKey};
use crate::lease::Step;
use crate::model::{Mac, PoolDhcp6, PoolName};
use dhcproto::v6::{
    Decodable, Decoder, DhcpOption, DhcpOptions, Encodable, IAAddr, IANA, Message, MessageType, ORO, OptionCode,
    Status, UnknownOption,
};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DUID: [u8; 18] = [0, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 9];
const OTHER: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 8];

fn ip(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

fn at(mac: u8, port: u32) -> Origin {
    Origin { mac: Mac([2, 0, 0, 0, 7, mac]), port }
}

/// A server with a lease book, in which each answer is written.
struct Lab {
    pool: PoolName,
    settings: PoolDhcp6,
    container: Option<Option<Ipv6Addr>>,
    from: Origin,
    ipam: Ipam,
    /// Made from the lease book with the first message.
    table: Option<Table>,
    /// How often something was written to it.
    writes: usize,
    unix: u64,
    now: Instant,
}

impl Lab {
    fn new(first: &str, last: &str) -> Self {
        Self {
            pool: "p".parse().expect("a name"),
            settings: PoolDhcp6 {
                range: Some((ip(first), ip(last))),
                lease_secs: 3600,
                leases_per_port: 8,
                ntp: vec![ip("fd00::123")],
            },
            container: None,
            from: at(9, 1),
            ipam: Ipam::default(),
            table: None,
            writes: 0,
            unix: 1_800_000_000,
            now: Instant::now(),
        }
    }

    fn pass(&mut self, secs: u64) {
        self.unix += secs;
        self.now += Duration::from_secs(secs);
    }

    fn ask(&mut self, request: &Message) -> Result<(Message, Ended), Ignored> {
        let server = Server {
            duid: &DUID,
            pool: &self.pool,
            net: "fd00::/64".parse().expect("a network"),
            settings: &self.settings,
            dns: Some(ip("fd00::1")),
            domain: "pv.local",
            container: self.container,
        };
        let clients: Vec<_> = self.ipam.clients().cloned().collect();
        let table = self.table.get_or_insert_with(|| Table::new(&self.pool, &clients));
        table.reserve(self.ipam.leases().filter_map(|lease| lease.ipv6).collect());
        let now = Now { unix: self.unix, at: self.now };
        let done = answer(&server, request, self.from, table, now)?;
        self.writes += usize::from(!done.steps.is_empty());
        table.begin(&done.steps, self.from, now);
        for step in &done.steps {
            match step {
                Step::Lend(lease) => self.ipam.lend(lease.clone()).expect("it is free"),
                Step::End(key) => drop(self.ipam.end(key).expect("it is there")),
                other => panic!("{other:?}"),
            }
        }
        table.done(&done.steps);
        // As it is on the wire.
        let bytes = done.reply.to_vec().expect("written");
        Ok((Message::decode(&mut Decoder::new(&bytes)).expect("read"), done.ended))
    }

    fn leased(&self) -> Vec<(Ipv6Addr, u64)> {
        let address = |lease: &Arc<ClientLease>| match lease.address {
            std::net::IpAddr::V6(a) => (a, lease.expires),
            std::net::IpAddr::V4(_) => panic!("{lease:?}"),
        };
        self.ipam.clients().map(address).collect()
    }
}

fn ask(kind: MessageType, duid: &[u8], iaid: u32, wanted: &[Ipv6Addr]) -> Message {
    let address = |a: &Ipv6Addr| {
        DhcpOption::IAAddr(IAAddr { addr: *a, preferred_life: 0, valid_life: 0, opts: DhcpOptions::new() })
    };
    let ia = IANA { id: iaid, t1: 0, t2: 0, opts: wanted.iter().map(address).collect() };
    let mut message = Message::new_with_id(kind, [7, 8, 9]);
    message.opts_mut().insert(DhcpOption::ClientId(duid.to_vec()));
    message.opts_mut().insert(DhcpOption::IANA(ia));
    message
}

fn named(mut message: Message) -> Message {
    message.opts_mut().insert(DhcpOption::ServerId(DUID.to_vec()));
    message
}

/// Type, addresses with their lifetimes, and the statuses of message and association.
fn said(message: &Message) -> (MessageType, Vec<(Ipv6Addr, u32)>, Vec<Status>) {
    assert_eq!(message.xid(), [7, 8, 9]);
    let status = |opts: &DhcpOptions| match opts.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => Some(code.status),
        _ => None,
    };
    let (mut addresses, mut statuses) = (Vec::new(), Vec::from_iter(status(message.opts())));
    for option in message.opts().iter() {
        if let DhcpOption::IANA(ia) = option {
            statuses.extend(status(&ia.opts));
            let of_ia = ia.opts.iter().filter_map(|o| match o {
                DhcpOption::IAAddr(a) => Some((a.addr, a.valid_life)),
                _ => None,
            });
            addresses.extend(of_ia);
        }
    }
    (message.msg_type(), addresses, statuses)
}

#[test]
fn a_client_is_offered_an_address_gets_it_and_keeps_it() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    let (offer, ended) = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    let (kind, addresses, statuses) = said(&offer);
    assert_eq!((kind, statuses, ended), (MessageType::Advertise, vec![], Ended::Answered));
    let [(address, 3600)] = addresses[..] else { panic!("{addresses:?}") };
    assert!((ip("fd00::1000")..=ip("fd00::1fff")).contains(&address) && lab.leased().is_empty());
    // It is kept for him for a while, whoever asks for it.
    let (other, _) = lab.ask(&ask(MessageType::Solicit, &OTHER, 1, &[address])).expect("answered");
    assert_ne!(said(&other).1[0].0, address);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[address]))).expect("answered");
    assert_eq!(said(&reply), (MessageType::Reply, vec![(address, 3600)], vec![]));
    assert_eq!(lab.leased(), [(address, lab.unix + 3600)]);
    for kind in [MessageType::Renew, MessageType::Rebind] {
        lab.pass(1800);
        let request = ask(kind, &CLIENT, 1, &[address]);
        let request = if kind == MessageType::Renew { named(request) } else { request };
        let (reply, _) = lab.ask(&request).expect("answered");
        assert_eq!(said(&reply), (MessageType::Reply, vec![(address, 3600)], vec![]));
        assert_eq!(lab.leased(), [(address, lab.unix + 3600)]);
    }
    // One that was away for long has it again, while nobody else needs it.
    lab.pass(1_000_000);
    let mut rapid = ask(MessageType::Solicit, &CLIENT, 1, &[]);
    rapid.opts_mut().insert(DhcpOption::RapidCommit);
    let (reply, _) = lab.ask(&rapid).expect("answered");
    assert_eq!(said(&reply), (MessageType::Reply, vec![(address, 3600)], vec![]));
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    // Another association of the same client is another one.
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 2, &[address]))).expect("answered");
    assert_ne!(said(&reply).1[0].0, address);
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &CLIENT, 1, &[address]))).expect("answered");
    assert_eq!(said(&reply), (MessageType::Reply, vec![], vec![Status::Success]));
    assert_eq!(lab.leased().len(), 1);
    // Whoever has heard the identifier, on another port.
    let own = std::mem::replace(&mut lab.from.port, 77);
    let left = lab.leased()[0].0;
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &CLIENT, 2, &[left]))).expect("answered");
    assert_eq!((said(&reply).2, lab.leased().len()), (vec![Status::Success, Status::NoBinding], 1));
    lab.from.port = own;
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &CLIENT, 1, &[address]))).expect("answered");
    assert_eq!(said(&reply), (MessageType::Reply, vec![], vec![Status::Success, Status::NoBinding]));
}

#[test]
fn a_range_that_is_full_is_full_until_a_lease_is_over() {
    let mut lab = Lab::new("fd00::10", "fd00::12");
    let client = |n: u8| [&CLIENT[..9], &[n]].concat();
    let mut got = Vec::new();
    for n in 0..3 {
        let (reply, _) = lab.ask(&named(ask(MessageType::Request, &client(n), 1, &[]))).expect("answered");
        got.push(said(&reply).1[0].0);
        lab.pass(10);
    }
    got.sort_unstable();
    assert_eq!(got, [ip("fd00::10"), ip("fd00::11"), ip("fd00::12")]);
    for kind in [MessageType::Solicit, MessageType::Request] {
        let request = ask(kind, &client(9), 1, &[]);
        let request = if kind == MessageType::Request { named(request) } else { request };
        let (reply, ended) = lab.ask(&request).expect("answered");
        assert_eq!((said(&reply).2, ended), (vec![Status::NoAddrsAvail], Ended::NoAddress));
    }
    // The one that is over for longest makes room.
    let first = lab.leased().into_iter().min_by_key(|(_, expires)| *expires).expect("one").0;
    lab.pass(3600);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &client(9), 1, &[]))).expect("answered");
    assert_eq!(said(&reply).1, [(first, 3600)]);
    assert_eq!(lab.leased().len(), 3);
    // An address of another link, such as the pool's former network, is not to be used any more (RFC 8415 section 18.3.4).
    let former = ip("fd01::5");
    for kind in [MessageType::Renew, MessageType::Rebind] {
        let request = ask(kind, &client(0), 1, &[former]);
        let request = if kind == MessageType::Renew { named(request) } else { request };
        let (reply, _) = lab.ask(&request).expect("answered");
        assert_eq!(said(&reply), (MessageType::Reply, vec![(former, 0)], vec![]), "{kind:?}");
    }
    // Whose it was has it no more.
    let (reply, _) = lab.ask(&named(ask(MessageType::Renew, &client(0), 1, &[first]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::NoBinding]);
}

#[test]
fn an_address_that_somebody_else_has_is_given_to_nobody() {
    let mut lab = Lab::new("fd00::10", "fd00::11");
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[]))).expect("answered");
    let address = said(&reply).1[0].0;
    let (reply, _) = lab.ask(&named(ask(MessageType::Decline, &CLIENT, 1, &[address]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::Success]);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[address]))).expect("answered");
    let second = said(&reply).1[0].0;
    assert_ne!(second, address);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &OTHER, 1, &[]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::NoAddrsAvail]);
    lab.pass(3601);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &OTHER, 1, &[address]))).expect("answered");
    assert_eq!(said(&reply).1[0].0, address);
    // Nor is one of a container, that was in the range before it was one.
    let mut lab = Lab::new("fd00::10", "fd00::10");
    let key = LeaseKey {
        pool: lab.pool.clone(),
        container: "web".parse().expect("a name"),
        interface: "eth0".parse().expect("a name"),
    };
    let mac = crate::model::Mac([2, 0, 0, 0, 0, 1]);
    let lease = Lease { key, ipv4: None, ipv6: Some(ip("fd00::10")), mac, fixed: false, terms: None };
    lab.ipam.learn(Arc::new(lease)).expect("it is free");
    let (reply, _) = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[ip("fd00::10")])).expect("answered");
    assert_eq!(said(&reply).2, [Status::NoAddrsAvail]);
}

/// Associations of one message are written to the lease book together: none is given what another was given, and one
/// that is named twice is one.
#[test]
fn associations_of_one_message_do_not_share_an_address() {
    let both = |kind, second: (u32, Ipv6Addr), first: (u32, Ipv6Addr)| {
        let mut message = ask(kind, &CLIENT, first.0, &[first.1]);
        for option in ask(kind, &CLIENT, second.0, &[second.1]).opts().iter() {
            if matches!(option, DhcpOption::IANA(_)) {
                message.opts_mut().insert(option.clone());
            }
        }
        message
    };
    let (a, b) = (ip("fd00::10"), ip("fd00::11"));
    let mut lab = Lab::new("fd00::10", "fd00::11");
    for (kind, expected) in [(MessageType::Rebind, 1), (MessageType::Request, 2)] {
        let request = both(kind, (1, a), (2, a));
        let request = if kind == MessageType::Request { named(request) } else { request };
        let (reply, _) = lab.ask(&request).expect("answered");
        let addresses = said(&reply).1;
        assert_eq!((addresses.len(), lab.leased().len()), (expected, expected), "{addresses:?}");
    }
    // A lease that is over, given to the first association, is no longer what the second one had.
    lab.pass(3601);
    for (first, second) in [(3, 1), (4, 2), (1, 3), (2, 4)] {
        let (reply, _) = lab.ask(&both(MessageType::Rebind, (second, b), (first, a))).expect("answered");
        let used = said(&reply).1.into_iter().filter(|(_, life)| *life > 0).map(|(address, _)| address);
        let mut used: Vec<_> = used.collect();
        used.sort_unstable();
        assert_eq!(used, [a, b], "{first} {second}");
        lab.pass(3601);
    }
    let (reply, _) = lab.ask(&named(both(MessageType::Release, (2, a), (2, a)))).expect("answered");
    assert_eq!(said(&reply).0, MessageType::Reply);
    // One association moves to a new address, and the other one gets the address that the first one had: the book has
    // what was answered, in whichever order they stand.
    for (first, second) in [((1, b), (2, a)), ((2, a), (1, b))] {
        let mut lab = Lab::new("fd00::10", "fd00::11");
        let (reply, _) = lab.ask(&ask(MessageType::Rebind, &CLIENT, 1, &[a])).expect("answered");
        assert_eq!(said(&reply).1, [(a, 3600)]);
        lab.pass(3601);
        let (reply, _) = lab.ask(&both(MessageType::Rebind, second, first)).expect("answered");
        let mut used: Vec<_> = said(&reply).1.into_iter().filter(|(_, life)| *life > 0).map(|(a, _)| a).collect();
        used.sort_unstable();
        let mut has: Vec<_> = lab.leased().into_iter().map(|(address, _)| address).collect();
        has.sort_unstable();
        assert_eq!((&used, &has), (&vec![a, b], &vec![a, b]), "{first:?} {second:?}");
    }
}
