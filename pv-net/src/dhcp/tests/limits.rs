//! What a client may have, and what it cannot take from others.

use super::*;

/// The identifier of a client that says none is its MAC, and nobody takes that of another machine before it comes.
#[test]
fn the_mac_of_another_is_nobodys_to_say() {
    let mut lab = Lab::new();
    let taken = Query { client: Some(ClientId::of_mac(mac(2))), ..discover(1) };
    let first = lab.get(3, taken).expect("an address");
    assert_eq!(lab.book.keys().cloned().collect::<Vec<_>>(), [ClientId::of_mac(mac(1)).to_string()]);
    let second = lab.get(4, discover(2)).expect("an address");
    assert_ne!(first, second);
}

/// Leases that are over count for nobody, and become live again only as far as a port and a MAC may have some.
#[test]
fn leases_that_are_over_do_not_get_round_the_limits() {
    let mut lab = Lab::new();
    let release = |n: u8, ciaddr| Query { ciaddr, ..query(Kind::Release, mac(n)) };
    let had: Vec<_> = (0..8_u8)
        .map(|n| {
            let address = lab.get(3, discover(n)).expect("an address");
            assert_eq!(lab.say(3, release(n, address)).err(), Some(Silence::Done));
            lab.wait(Duration::from_secs(2));
            (n, address)
        })
        .collect();
    let back = had.iter().filter(|(n, address)| lab.say(3, reboot(*n, *address)).is_ok()).count();
    assert_eq!(back, 6, "what one port may have");
    assert!(lab.get(4, discover(50)).is_ok(), "others have the rest");
}

/// Whoever had an address last may come back while it is offered to somebody else.
#[test]
fn an_offer_does_not_end_a_lease() {
    let mut lab = Lab::new();
    for number in 0..8 {
        assert!(lab.get(u32::from(number), discover(number)).is_ok());
    }
    lab.wait(Duration::from_secs(u64::from(TIME) + 1));
    let offer = lab.say(20, discover(20)).expect("an offer").yours;
    let owner = lab.book.values().find(|lease| lease.address == IpAddr::V4(offer)).expect("whose it was").mac;
    let owner = owner.expect("a MAC").0[5];
    // It starts again with the address, which is somebody else's offer by now.
    assert_eq!(lab.say(u32::from(owner), reboot(owner, offer)).map(|said| said.kind), Ok(Sent::Nak));
    // The clock goes back, and its lease is live again.
    lab.now.unix -= u64::from(TIME);
    assert_eq!(lab.select(20, discover(20), offer).map(|said| said.kind), Ok(Sent::Nak));
    assert_eq!(lab.book.len(), 8);
}

/// A client that asks again and again has the same lease, without a write for each.
#[test]
fn what_the_disk_has_is_not_written_again() {
    let mut lab = Lab::new();
    let own = lab.get(3, discover(1)).expect("an address");
    lab.wait(Duration::from_secs(5));
    let act = lab.server.receive(renew(1, own), Origin { mac: mac(1), port: 3 }, lab.now);
    let Act::Send(reply) = act else { panic!("it is written: {act:?}") };
    assert_eq!(Said::of(reply).options[&51], (TIME - 5).to_be_bytes());
    lab.wait(Duration::from_secs(u64::from(TIME) / 2));
    let act = lab.server.receive(renew(1, own), Origin { mac: mac(1), port: 3 }, lab.now);
    assert!(matches!(act, Act::Write(..)), "{act:?}");
    // The answer says what was asked for, whatever the clock does meanwhile.
    lab.now.unix += 1_000_000_000;
    assert_eq!(lab.follow(act).expect("an answer").options[&51], TIME.to_be_bytes());
}

#[test]
fn what_a_client_declines_is_given_to_nobody_for_a_while() {
    let mut lab = Lab::new();
    let first = lab.get(3, discover(1)).expect("an address");
    let decline = |number| Query { requested: Some(first), server: Some(SERVER), ..query(Kind::Decline, mac(number)) };
    assert_eq!(lab.say(4, decline(2)).err(), Some(Silence::Unknown), "it is not its own");
    assert_eq!(lab.say(3, decline(1)).err(), Some(Silence::Done));
    assert!(lab.book.is_empty());
    assert_eq!(lab.get(3, Query { requested: Some(first), ..discover(1) }), Ok(address(101)));
    // However much somebody declines, others find an address: no more than half of the range is avoided.
    let mut lab = Lab::new();
    for number in 0..50 {
        let address = lab.get(3, discover(number)).expect("an address");
        let decline = Query { requested: Some(address), ..query(Kind::Decline, mac(number)) };
        assert_eq!(lab.say(3, decline).err(), Some(Silence::Done));
        lab.wait(Duration::from_secs(2));
    }
    let others = (100..104).filter(|number| lab.get(4, discover(*number)).is_ok()).count();
    assert_eq!(others, 4);
}

#[test]
fn nobody_takes_the_range_alone() {
    let mut lab = Lab::new();
    let taken = (0..50).filter(|number| lab.get(3, discover(*number)).is_ok()).count();
    assert_eq!(taken, 6, "what one port may have");
    assert_eq!(lab.get(3, discover(99)), Err(Silence::PortLimit));
    assert_eq!(lab.get(4, discover(100)), Ok(address(106)));
    // Offers count too.
    let mut lab = Lab::new();
    assert_eq!((0..50).filter(|number| lab.say(3, discover(*number)).is_ok()).count(), 6);
    assert_eq!(lab.get(3, discover(0)), Ok(address(100)), "it has its offer");
    lab.wait(Duration::from_secs(11));
    assert_eq!((60..90).filter(|number| lab.say(3, discover(*number)).is_ok()).count(), 5, "offers end");
    // One MAC with many names has four addresses, and goes on with those.
    let mut lab = Lab::new();
    let asks = |n: u8| Query { client: ClientId::new(&[0, n]), ..discover(1) };
    let all: std::collections::BTreeSet<_> = (0..50).map(|n| lab.get(3, asks(n)).expect("an address")).collect();
    assert_eq!((all.len(), lab.book.len()), (4, 4));
}

#[test]
fn what_the_book_refuses_is_not_promised() {
    let mut lab = Lab::new();
    let offer = lab.say(3, discover(1)).expect("an offer");
    let from = Origin { mac: mac(1), port: 3 };
    let request = Query { requested: Some(offer.yours), server: Some(SERVER), ..query(Kind::Request, mac(1)) };
    let Act::Write(client, _) = lab.server.receive(request.clone(), from, lab.now) else { panic!("no write") };
    assert_eq!(lab.server.receive(request.clone(), from, lab.now), Act::Silent(Silence::Busy));
    assert!(lab.server.written(&client, Outcome::Failed, lab.now).reply.is_none());
    // It asks again, and the disk has room again; but a container has the address.
    let Act::Write(client, _) = lab.server.receive(request, from, lab.now) else { panic!("no write") };
    let refused = lab.server.written(&client, Outcome::Taken, lab.now).reply.map(Said::of).expect("an answer");
    assert_eq!(refused.kind, Sent::Nak);
    assert_eq!(lab.get(3, discover(1)), Ok(address(101)));
}

/// However long the disk takes, an address whose lease is being written is offered to nobody else.
#[test]
fn what_is_being_written_is_nobody_elses() {
    let mut lab = Lab::new();
    let own = lab.say(3, discover(1)).expect("an offer").yours;
    let request = Query { requested: Some(own), server: Some(SERVER), ..query(Kind::Request, mac(1)) };
    let Act::Write(client, _) = lab.server.receive(request.clone(), Origin { mac: mac(1), port: 3 }, lab.now) else {
        panic!("no write")
    };
    lab.wait(Duration::from_secs(60));
    let asks = Query { requested: Some(own), ..discover(2) };
    assert_ne!(lab.say(4, asks.clone()).expect("an offer").yours, own);
    // The disk does not take it: it is an offer again, and no longer than any other.
    assert!(lab.server.written(&client, Outcome::Failed, lab.now).reply.is_none());
    assert_eq!(lab.say(5, Query { requested: Some(own), ..discover(3) }).map(|said| said.yours == own), Ok(false));
    lab.wait(Duration::from_secs(11));
    assert_eq!(lab.say(4, asks).expect("an offer").yours, own);
}

/// Containers that are detached or have not started yet keep their addresses.
#[test]
fn what_containers_have_reserved_is_no_clients() {
    let mut lab = Lab::new();
    lab.server.reserve([address(100), address(102)].into());
    assert_eq!(lab.get(3, Query { requested: Some(address(100)), ..discover(1) }), Ok(address(101)));
    assert_eq!(lab.get(3, discover(2)), Ok(address(103)));
    assert_eq!(lab.say(3, reboot(3, address(102))).map(|said| said.kind), Ok(Sent::Nak));
    // A client that has one loses it to a container's reservation.
    lab.server.reserve([address(101)].into());
    assert_eq!(lab.say(3, renew(1, address(101))).map(|said| said.kind), Ok(Sent::Nak));
    assert_eq!(lab.get(3, Query { requested: Some(address(100)), ..discover(4) }), Ok(address(100)));
}

/// An address that a client asked for itself is not kept for the next new one: that one gets what nobody had.
#[test]
fn an_address_that_is_given_is_none_of_the_next() {
    let mut lab = Lab::new();
    assert_eq!(lab.get(3, Query { requested: Some(address(101)), ..discover(1) }), Ok(address(101)));
    let release = Query { ciaddr: address(101), ..query(Kind::Release, mac(1)) };
    assert_eq!(lab.say(3, release).err(), Some(Silence::Done));
    assert_eq!(lab.get(4, discover(2)), Ok(address(100)));
    assert_eq!(lab.get(5, discover(3)), Ok(address(102)));
}

/// A new server knows which leases were given to those behind a port.
#[test]
fn a_restart_gives_nobody_a_second_share() {
    let mut lab = Lab::new();
    assert_eq!((0..8).filter(|number| lab.get(3, discover(*number)).is_ok()).count(), 6);
    // One of them is behind another port now.
    let moved = *lab.book.values().next().expect("a lease").mac.expect("a MAC").0.last().expect("an octet");
    let IpAddr::V4(own) = lab.book[&ClientId::of_mac(mac(moved)).to_string()].address else { panic!("no IPv4") };
    lab.wait(Duration::from_secs(u64::from(TIME) / 2));
    assert_eq!(lab.say(4, renew(moved, own)).map(|said| said.kind), Ok(Sent::Ack));
    let clients: Vec<_> = lab.book.values().cloned().collect();
    lab.server = Server::new(config(), &clients, lab.now);
    lab.wait(Duration::from_secs(2));
    assert_eq!((10..20).filter(|number| lab.get(3, discover(*number)).is_ok()).count(), 1, "the place of the one");
}

/// A pool remembers so many clients. Then the one whose lease is over for the longest makes room.
#[test]
fn a_large_range_takes_no_more_memory() {
    let first = Ipv4Addr::new(10, 64, 0, 0);
    let large = || Config {
        net: "10.0.0.0/8".parse().expect("net"),
        range: Some((first, Ipv4Addr::new(10, 95, 255, 255))),
        ..config()
    };
    let lease = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        Arc::new(ClientLease {
            pool: large().pool,
            client: ClientId::new(&[0, a, b, c, d]).expect("short"),
            address: IpAddr::V4(Ipv4Addr::from(u32::from(first) + number)),
            mac: None,
            hostname: None,
            port: None,
            expires: 1000 + u64::from(number),
        })
    };
    let mut lab = Lab::new();
    let clients: Vec<_> = (0..1 << 16).map(lease).collect();
    lab.book = clients.iter().map(|lease| (lease.client.to_string(), lease.clone())).collect();
    lab.server = Server::new(large(), &clients, lab.now);
    assert_eq!(lab.get(3, discover(1)), Ok(first));
    let free = Ipv4Addr::new(10, 90, 0, 0);
    assert_ne!(lab.get(3, Query { requested: Some(free), ..discover(2) }), Ok(free));
    assert_eq!(lab.book.len(), 1 << 16);
}
