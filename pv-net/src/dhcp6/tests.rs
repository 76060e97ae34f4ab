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
        let leases: Vec<_> = self.ipam.leases().cloned().collect();
        let clients: Vec<_> = self.ipam.clients().cloned().collect();
        let table = self.table.get_or_insert_with(|| Table::new(&self.pool, &clients));
        table.follow(&leases);
        let now = Now { unix: self.unix, at: self.now };
        let done = answer(&server, request, self.from, table, now)?;
        table.begin(&done.steps, self.from, now);
        for step in &done.steps {
            match step {
                Step::Lend(lease) => self.ipam.lend(lease.clone()).expect("it is free"),
                Step::End(key) => drop(self.ipam.end(key).expect("it is there")),
                other => panic!("{other:?}"),
            }
        }
        table.done(&done.steps, self.from.port);
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
    let lease = Lease { key, ipv4: None, ipv6: Some(ip("fd00::10")), mac, fixed: false };
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
}

/// One MAC has some addresses, by whatever way it asks, and so have all MACs behind one port. Whatever else a message says
/// of its client makes no difference.
#[test]
fn nobody_takes_the_range_alone() {
    let mut lab = Lab::new("fd00::100", "fd00::11f");
    let range: Vec<Ipv6Addr> = (0x100..0x110).map(|n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)).collect();
    lab.settings.leases_per_port = 16;
    for (n, wanted) in (1..).zip(&range) {
        let _ = lab.ask(&ask(MessageType::Rebind, &CLIENT, n, &[*wanted]));
        let _ = lab.ask(&named(ask(MessageType::Request, &CLIENT, n + 100, &[])));
        let _ = lab.ask(&named(ask(MessageType::Request, &[&CLIENT[..9], &[n as u8]].concat(), n, &[])));
    }
    assert_eq!(lab.leased().len(), 8);
    for n in 0..50 {
        lab.from = at(100 + n, 1);
        let _ = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1000 + u32::from(n), &[])));
        lab.pass(2);
    }
    assert_eq!(lab.leased().len(), 16, "what one port may have");
    lab.from = at(200, 2);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &OTHER, 1, &[]))).expect("answered");
    assert_eq!(said(&reply).1.len(), 1, "others have the rest");
    // Leases that are over count for nobody.
    lab.pass(3600);
    lab.from = at(99, 1);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 2000, &[]))).expect("answered");
    assert_eq!(said(&reply).1.len(), 1);
}

/// Other messages come while a lease is being written: none of them is given its address, and its client is not answered.
#[test]
fn what_is_being_written_is_nobody_elses() {
    let lab = Lab::new("fd00::10", "fd00::11");
    let server = Server {
        duid: &DUID,
        pool: &lab.pool,
        net: "fd00::/64".parse().expect("a network"),
        settings: &lab.settings,
        dns: None,
        domain: "pv.local",
        container: None,
    };
    let (mut table, now) = (Table::default(), Now { unix: lab.unix, at: lab.now });
    let request = |table: &mut Table, from, duid: &[u8], wanted: &[Ipv6Addr]| {
        answer(&server, &named(ask(MessageType::Request, duid, 1, wanted)), from, table, now)
    };
    let (a, b) = (at(1, 1), at(2, 1));
    let first = request(&mut table, a, &CLIENT, &[]).expect("answered");
    let address = said(&first.reply).1[0].0;
    table.begin(&first.steps, a, now);
    assert!(matches!(request(&mut table, a, &CLIENT, &[]), Err(Ignored)));
    let second = request(&mut table, b, &OTHER, &[address]).expect("answered");
    assert_ne!(said(&second.reply).1[0].0, address);
    table.begin(&second.steps, b, now);
    // The disk does not take the first one, and it is as if there had been none.
    table.undo(&first.steps);
    let again = request(&mut table, a, &CLIENT, &[]).expect("answered");
    assert_eq!(said(&again.reply).1[0].0, address);
    table.begin(&again.steps, a, now);
    table.done(&again.steps, 1);
    table.done(&second.steps, 1);
    assert_eq!(said(&request(&mut table, b, &OTHER, &[address]).expect("answered").reply).1.len(), 1);
}

/// So many clients are remembered, and one that names an address is no exception.
#[test]
fn a_named_address_is_one_more_to_remember() {
    let mut lab = Lab::new("fd00::1:0", "fd00::9:ffff");
    for n in 0..=u16::MAX {
        let [high, low] = n.to_be_bytes();
        let lease = ClientLease {
            pool: lab.pool.clone(),
            client: ClientId::of_association(1, &[0, 4, high, low, 1]).expect("short"),
            address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n).into(),
            mac: None,
            hostname: None,
            expires: u64::from(n) + 1,
        };
        lab.ipam.lend(Arc::new(lease)).expect("it is free");
    }
    let free = ip("fd00::9:1");
    let (reply, _) = lab.ask(&ask(MessageType::Rebind, &CLIENT, 1, &[free])).expect("answered");
    assert_eq!((said(&reply).2, lab.leased().len()), (vec![Status::NoBinding], 65_536));
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[free]))).expect("answered");
    assert_eq!(
        (said(&reply).1[0].0, lab.leased().len()),
        (ip("fd00::1:0"), 65_536),
        "that of the one that is over longest"
    );
}

/// A DUID is no secret: it ends the lease of no other MAC, and a copy of a machine gets an address of its own.
#[test]
fn who_knows_a_duid_is_not_its_owner() {
    let mut lab = Lab::new("fd00::100", "fd00::10f");
    lab.from = at(1, 1);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &DUID, 1, &[]))).expect("answered");
    let own = said(&reply).1[0].0;
    lab.from = at(2, 1);
    for kind in [MessageType::Release, MessageType::Decline] {
        let (reply, _) = lab.ask(&named(ask(kind, &DUID, 1, &[own]))).expect("answered");
        assert_eq!(said(&reply).2, [Status::Success, Status::NoBinding]);
    }
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &DUID, 1, &[own]))).expect("answered");
    assert_ne!(said(&reply).1[0].0, own);
    // Nor does a container end it.
    (lab.from, lab.container) = (at(1, 1), Some(None));
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &DUID, 1, &[own]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::Success, Status::NoBinding]);
    lab.container = None;
    assert_eq!(lab.leased().len(), 2);
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &DUID, 1, &[own]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::Success]);
    assert_eq!(lab.leased().len(), 1);
}

#[test]
fn a_container_gets_the_address_of_its_lease_and_no_other() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    lab.container = Some(Some(ip("fd00::5")));
    for (kind, wanted) in [(MessageType::Solicit, vec![ip("fd00::1000")]), (MessageType::Request, vec![])] {
        let request = ask(kind, &CLIENT, 1, &wanted);
        let request = if kind == MessageType::Request { named(request) } else { request };
        assert_eq!(said(&lab.ask(&request).expect("answered").0).1, [(ip("fd00::5"), 3600)]);
    }
    let renewed =
        lab.ask(&named(ask(MessageType::Renew, &CLIENT, 1, &[ip("fd00::5"), ip("fd00::6")]))).expect("answered");
    assert_eq!(said(&renewed.0).1, [(ip("fd00::5"), 3600), (ip("fd00::6"), 0)]);
    for (address, want) in [("fd00::5", Status::Success), ("fd00::6", Status::NotOnLink)] {
        let confirmed = lab.ask(&ask(MessageType::Confirm, &CLIENT, 1, &[ip(address)])).expect("answered");
        assert_eq!(said(&confirmed.0).2, [want]);
    }
    let released = lab.ask(&named(ask(MessageType::Release, &CLIENT, 1, &[ip("fd00::5")]))).expect("answered");
    assert_eq!(said(&released.0).2, [Status::Success]);
    // Its lease is that of its attachment: nothing is written.
    assert!(lab.leased().is_empty());
    // One without IPv6 has none.
    lab.container = Some(None);
    let none = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    assert_eq!(said(&none.0).2, [Status::NoAddrsAvail]);
}

#[test]
fn what_is_asked_for_is_told() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    lab.settings.range = None;
    let mut request = Message::new_with_id(MessageType::InformationRequest, [7, 8, 9]);
    let asked = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList, OptionCode::NtpServer];
    request.opts_mut().insert(DhcpOption::ORO(ORO { opts: asked }));
    let (reply, _) = lab.ask(&request).expect("answered");
    assert_eq!(reply.msg_type(), MessageType::Reply);
    let has = |code| reply.opts().get(code).cloned();
    assert_eq!(has(OptionCode::ServerId), Some(DhcpOption::ServerId(DUID.to_vec())));
    assert_eq!(has(OptionCode::ClientId), None);
    assert_eq!(has(OptionCode::DomainNameServers), Some(DhcpOption::DomainNameServers(vec![ip("fd00::1")])));
    let bytes = reply.to_vec().expect("written");
    let domain = [&[0, 24, 0, 10, 2][..], b"pv", &[5], b"local", &[0]].concat();
    assert!(bytes.windows(domain.len()).any(|w| w == domain), "{bytes:02x?}");
    let refresh = [0, 32, 0, 4, 0, 0, 14, 16];
    assert!(bytes.windows(8).any(|w| w == refresh), "{bytes:02x?}");
    assert!(has(OptionCode::NtpServer).is_some());
    // And nothing else; nor an address, where there is no range.
    let (reply, _) = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    assert_eq!(said(&reply).2, [Status::NoAddrsAvail]);
    assert!(reply.opts().get(OptionCode::DomainNameServers).is_none());
}

#[test]
fn what_is_not_for_this_server_is_not_answered() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    let other = |mut message: Message| {
        message.opts_mut().insert(DhcpOption::ServerId(vec![0, 4, 9, 9]));
        message
    };
    let without = |kind| Message::new_with_id(kind, [7, 8, 9]);
    let asked = |kind| ask(kind, &CLIENT, 1, &[]);
    for (what, message) in [
        ("a request of another server", other(asked(MessageType::Request))),
        ("a request of nobody", asked(MessageType::Request)),
        ("a renewal of nobody", asked(MessageType::Renew)),
        ("a solicitation of this server", named(asked(MessageType::Solicit))),
        ("a rebinding of this server", named(asked(MessageType::Rebind))),
        ("a solicitation of nobody", without(MessageType::Solicit)),
        ("a client that is too short", ask(MessageType::Solicit, &[0, 3], 1, &[])),
        ("a client that is too long", ask(MessageType::Solicit, &[7; 131], 1, &[])),
        ("a confirmation of nothing", asked(MessageType::Confirm)),
        ("an information request for addresses", asked(MessageType::InformationRequest)),
        ("what servers say", named(asked(MessageType::Advertise))),
        ("what relays say", asked(MessageType::RelayForw)),
        ("what is not known", asked(MessageType::Unknown(77))),
    ] {
        assert_eq!(lab.ask(&message).map(|(reply, _)| reply), Err(Ignored), "{what}");
    }
    let (id, longest) = (ClientId::of_association(1, &CLIENT), ClientId::of_association(1, &[7; 130]));
    assert!(id.is_some() && longest.is_some());
}

/// A client has the name that it gives, unless another machine has that.
#[test]
fn a_name_is_the_first_machines() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    let ask_as = |lab: &mut Lab, duid: &[u8], data: &[u8]| {
        lab.from = at(if duid == CLIENT { 9 } else { 8 }, 1);
        let mut request = named(ask(MessageType::Request, duid, 1, &[]));
        if !data.is_empty() {
            let option = UnknownOption::new(OptionCode::ClientFqdn, data.to_vec());
            request.opts_mut().insert(DhcpOption::Unknown(option));
        }
        let (_, ended) = lab.ask(&request).expect("answered");
        assert_eq!(ended, Ended::Answered);
        let client = ClientId::of_association(1, duid).expect("an identifier");
        let lease = lab.ipam.clients().find(|lease| lease.client == client).expect("a lease");
        lease.hostname.clone()
    };
    assert_eq!(ask_as(&mut lab, &CLIENT, b"\x01\x06Laptop\x04home\x00").as_deref(), Some("laptop"));
    assert_eq!(ask_as(&mut lab, &OTHER, b"\x01\x06laptop\x00"), None, "another machine's");
    assert_eq!(ask_as(&mut lab, &CLIENT, b"").as_deref(), Some("laptop"), "it keeps its name");
    assert_eq!(ask_as(&mut lab, &CLIENT, b"\x04\x06laptop\x00"), None, "it wants none");
    assert_eq!(ask_as(&mut lab, &OTHER, b"\x01\x06laptop\x00").as_deref(), Some("laptop"));
    lab.pass(4000);
    assert_eq!(ask_as(&mut lab, &CLIENT, b"\x01\x06laptop\x00").as_deref(), Some("laptop"), "the other's is over");
}
