//! Addresses that somebody uses without having asked for them.

use super::*;

const SQUATTER: Mac = Mac([2, 0, 0, 0, 8, 8]);

fn at(mac: Mac, port: u32) -> Origin {
    Origin { mac, port }
}

fn request(number: u8, address: Ipv4Addr) -> Query {
    Query { requested: Some(address), server: Some(SERVER), ..query(Kind::Request, mac(number)) }
}

impl Lab {
    /// The offer is there at once.
    fn offered(&mut self, port: u32, query: Query) -> Ipv4Addr {
        let act = self.server.receive(query.clone(), at(query.mac, port), self.now);
        let Act::Send(reply) = act else { panic!("no offer at once: {act:?}") };
        Said::of(reply).yours
    }

    /// Whether a request is answered at once: with a write, and not after a probe.
    fn is_granted_at_once(&mut self, number: u8, address: Ipv4Addr) -> bool {
        self.wait(Duration::from_millis(10));
        let act = self.server.receive(request(number, address), at(mac(number), 3), self.now);
        let is_at_once = matches!(act, Act::Write(..));
        assert!(is_at_once || act == Act::Wait, "{act:?}");
        assert_eq!(self.follow(act).map(|said| (said.kind, said.yours)), Ok((Sent::Ack, address)));
        is_at_once
    }
}

#[test]
fn the_next_addresses_are_asked_for_before_there_is_a_client() {
    let mut lab = Lab::new();
    assert_eq!(lab.server.take_probes(), [address(100), address(101)], "a quarter of the range");
    assert!(lab.server.take_probes().is_empty());
    lab.wait(Duration::from_secs(2));
    let first = lab.offered(3, discover(1));
    // It is asked for once more, for somebody may have taken it since.
    assert_eq!((first, lab.server.take_probes()), (address(100), vec![address(100), address(102)]));
    assert!(lab.is_granted_at_once(1, first));
    // Nobody was asked for lately: the client has its offer at once, and what it takes waits for the probe.
    lab.wait(Duration::from_secs(61));
    let second = lab.offered(3, discover(2));
    let mut due = lab.server.take_probes();
    due.sort_unstable();
    assert_eq!((second, due), (address(101), vec![address(101), address(102), address(103)]));
    assert!(!lab.is_granted_at_once(2, second));
    let third = lab.offered(3, discover(3));
    assert!(lab.is_granted_at_once(3, third));
    // What a client asks for itself was not asked for either.
    assert_eq!(lab.offered(3, Query { requested: Some(address(107)), ..discover(4) }), address(107));
    assert!(!lab.is_granted_at_once(4, address(107)));
    assert_eq!(lab.server.deadline(), None);
}

#[test]
fn an_address_that_somebody_uses_is_given_to_nobody() {
    let mut lab = Lab::new();
    // Before there is a client, so that it is offered to none.
    assert_eq!(lab.server.answered(address(100), at(SQUATTER, 9), lab.now), Some(Act::Silent(Silence::Done)));
    assert_eq!(lab.server.answered(address(105), at(SQUATTER, 9), lab.now), None, "nobody asked for that");
    lab.wait(Duration::from_millis(100));
    assert_eq!(lab.get(3, discover(1)), Ok(address(101)));
    assert_eq!(lab.get(3, Query { requested: Some(address(100)), ..discover(2) }), Ok(address(102)));
    // Between its offer and its request: the client has to begin anew.
    let offer = lab.offered(3, Query { requested: Some(address(106)), ..discover(3) });
    assert_eq!(lab.server.answered(offer, at(mac(3), 3), lab.now), None, "the client itself");
    assert_eq!(lab.server.answered(offer, at(SQUATTER, 9), lab.now), Some(Act::Silent(Silence::Done)));
    assert_eq!(lab.say(3, request(3, offer)).map(|said| said.kind), Ok(Sent::Nak));
    // While its request waits.
    let offer = lab.offered(3, Query { requested: Some(address(107)), ..discover(3) });
    assert_eq!(lab.server.receive(request(3, offer), at(mac(3), 3), lab.now), Act::Wait);
    assert_eq!(lab.server.receive(request(3, offer), at(mac(3), 3), lab.now), Act::Wait, "it asks again");
    let Some(Act::Send(nak)) = lab.server.answered(offer, at(SQUATTER, 9), lab.now) else { panic!("no answer") };
    assert_eq!((Said::of(nak).kind, lab.server.deadline()), (Sent::Nak, None));
    lab.wait(Duration::from_secs(1));
    assert!(lab.server.tick(lab.now).is_empty());
    // After a while it is looked for again.
    lab.wait(Duration::from_secs(601));
    assert_eq!(lab.get(3, Query { requested: Some(address(100)), ..discover(4) }), Ok(address(100)));
    // What a client has is not asked for: its own answer changes nothing.
    assert_eq!(lab.server.answered(address(100), at(SQUATTER, 9), lab.now), None);
}

/// Whoever answers every probe is believed a few times, by his MAC and by his port. He keeps nobody out.
#[test]
fn one_who_answers_for_all_addresses_keeps_nobody_out() {
    let large = || Config { range: Some((address(100), address(199))), ..config() };
    for is_one in [true, false] {
        let mut lab = Lab::with(large());
        let mut got = 0;
        for client in 0..60_u8 {
            for n in 100..200 {
                let liar = if is_one { SQUATTER } else { Mac([2, 0, 0, 7, client, n]) };
                lab.server.answered(address(n), at(liar, 9), lab.now);
            }
            got += u32::from(lab.get(u32::from(client) + 20, discover(client)).is_ok());
            lab.wait(Duration::from_millis(200));
        }
        assert!(got >= 55, "{got} of 60 clients have an address");
    }
}
