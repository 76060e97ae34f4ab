//! What a client may have, and what it cannot take from others.

use super::*;

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
    table.done(&again.steps);
    table.done(&second.steps);
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
            port: None,
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

/// Offers count as leases do, and so do declined addresses for those behind the port.
#[test]
fn offers_and_declined_addresses_count() {
    let client = |n: u8| [&CLIENT[..9], &[n]].concat();
    let mut lab = Lab::new("fd00::10", "fd00::1f");
    let offered = |lab: &mut Lab, n: u8, port: u32| {
        lab.from = at(n, port);
        let (offer, _) = lab.ask(&ask(MessageType::Solicit, &client(n), 1, &[])).expect("answered");
        said(&offer).1.first().map(|(address, _)| *address)
    };
    let offers: Vec<_> = (0..50).filter_map(|n| offered(&mut lab, n, 1).map(|address| (n, address))).collect();
    assert_eq!(offers.len(), 8, "what one port may have");
    assert!(offered(&mut lab, 60, 2).is_some(), "others have the rest");
    // One that has an offer may take it, and no more are offered then.
    for (n, address) in offers {
        lab.from = at(n, 1);
        let (reply, _) = lab.ask(&named(ask(MessageType::Request, &client(n), 1, &[address]))).expect("answered");
        assert_eq!(said(&reply).1, [(address, 3600)]);
        lab.pass(2);
        assert_eq!(offered(&mut lab, 50 + n, 1), None);
    }
    // The offers of one MAC, under whatever identifier.
    let mut lab = Lab::new("fd00::100", "fd00::1ff");
    lab.settings.leases_per_port = 100;
    lab.from = at(1, 1);
    let offers = (0..50).filter(|n| {
        let (offer, _) = lab.ask(&ask(MessageType::Solicit, &client(*n), 1, &[])).expect("answered");
        said(&offer).1.len() == 1
    });
    assert_eq!(offers.count(), 8);
    // Declined addresses: one port does not take the range by them.
    let mut lab = Lab::new("fd00::10", "fd00::1f");
    for n in 0..50 {
        lab.from = at(n, 1);
        let (reply, _) = lab.ask(&named(ask(MessageType::Request, &client(n), 1, &[]))).expect("answered");
        if let [(address, _)] = said(&reply).1[..] {
            lab.ask(&named(ask(MessageType::Decline, &client(n), 1, &[address]))).expect("answered");
        }
        lab.pass(2);
    }
    assert_eq!((100..200).filter(|n| offered(&mut lab, *n, 2).is_some()).count(), 8);
}

/// An offer is that of the MAC that it was made to.
#[test]
fn who_knows_a_duid_takes_no_offer() {
    let mut lab = Lab::new("fd00::100", "fd00::10f");
    lab.from = at(1, 1);
    let (offer, _) = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    let own = said(&offer).1[0].0;
    lab.from = at(2, 2);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[own]))).expect("answered");
    assert_ne!(said(&reply).1[0].0, own);
    lab.from = at(1, 1);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[own]))).expect("answered");
    assert_eq!(said(&reply).1[0].0, own);
}

/// A new server knows which leases were given to those behind a port.
#[test]
fn a_restart_gives_nobody_a_second_share() {
    let mut lab = Lab::new("fd00::100", "fd00::1ff");
    let granted = |lab: &mut Lab, n: u8| {
        lab.from = at(n, 1);
        let request = named(ask(MessageType::Request, &[&CLIENT[..9], &[n]].concat(), 1, &[]));
        said(&lab.ask(&request).expect("answered").0).1.len() == 1
    };
    assert_eq!((0..20).filter(|n| granted(&mut lab, *n)).count(), 8);
    lab.table = None;
    assert_eq!((20..40).filter(|n| granted(&mut lab, *n)).count(), 0);
}

/// A client that asks again and again has the same lease, without a write for each.
#[test]
fn what_the_disk_has_is_not_written_again() {
    let mut lab = Lab::new("fd00::10", "fd00::1f");
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[]))).expect("answered");
    let (own, ends) = (said(&reply).1[0].0, lab.unix + 3600);
    for _ in 0..10 {
        lab.pass(5);
        let left = u32::try_from(ends - lab.unix).expect("short");
        let (reply, _) = lab.ask(&named(ask(MessageType::Renew, &CLIENT, 1, &[own]))).expect("answered");
        assert_eq!(said(&reply).1, [(own, left)], "no more is promised than the disk has");
    }
    assert_eq!((lab.writes, lab.leased()), (1, vec![(own, ends)]));
    lab.pass(1800);
    let (reply, _) = lab.ask(&named(ask(MessageType::Renew, &CLIENT, 1, &[own]))).expect("answered");
    assert_eq!((said(&reply).1, lab.writes, lab.leased()), (vec![(own, 3600)], 2, vec![(own, lab.unix + 3600)]));
}

/// That a range is full is known until a new client gets an address.
#[test]
fn a_full_range_is_noted() {
    let mut lab = Lab::new("fd00::10", "fd00::11");
    let got = |lab: &mut Lab, n: u8| {
        let request = named(ask(MessageType::Request, &[&CLIENT[..9], &[n]].concat(), 1, &[]));
        let is_given = said(&lab.ask(&request).expect("answered").0).1.len() == 1;
        (is_given, lab.table.as_ref().is_some_and(Table::is_exhausted))
    };
    assert_eq!([got(&mut lab, 1), got(&mut lab, 2), got(&mut lab, 3)], [(true, false), (true, false), (false, true)]);
    assert_eq!(got(&mut lab, 1), (true, true), "who has one keeps it, and it is full all the same");
    // One that is free again is found at once.
    let (address, _) = lab.leased()[0];
    let owner = lab.ipam.clients().next().expect("a lease").client.octets()[14];
    let release = named(ask(MessageType::Release, &[&CLIENT[..9], &[owner]].concat(), 1, &[address]));
    lab.ask(&release).expect("answered");
    assert_eq!(got(&mut lab, 3), (true, false));
}
