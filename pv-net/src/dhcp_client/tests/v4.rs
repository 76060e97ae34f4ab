//! Leases of DHCPv4 servers.

use super::*;
use crate::model::Terms4;
use dhcproto::v4::{DhcpOption, Encodable, Encoder, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder};
use etherparse::PacketBuilder;
use std::net::Ipv4Addr;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

/// The message that a frame has for a server, and where it goes.
fn asked(frame: &[u8]) -> (Message, [u8; 6], Ipv4Addr) {
    let to = <[u8; 6]>::try_from(&frame[..6]).expect("a frame");
    let address = Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]);
    assert_eq!(frame[34..38], [0, 68, 0, 67], "the ports");
    (Message::decode(&mut Decoder::new(&frame[42..])).expect("a message"), to, address)
}

fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().expect("a type")
}

fn option(code: u8, octets: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), octets.to_vec()))
}

/// An answer of a server.
fn answer(kind: MessageType, xid: u32, server: Ipv4Addr, address: Ipv4Addr, secs: u32) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(xid, none, address, none, none, &OWN.0);
    message.set_opcode(Opcode::BootReply);
    let opts = message.opts_mut();
    opts.insert(DhcpOption::MessageType(kind));
    opts.insert(DhcpOption::ServerIdentifier(server));
    opts.insert(option(1, &[255, 255, 255, 0]));
    opts.insert(option(3, &SERVER.octets()));
    opts.insert(option(51, &secs.to_be_bytes()));
    message
}

fn framed(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).expect("encoded");
    let packet = PacketBuilder::ethernet2(SERVER_MAC.0, [0xff; 6]).ipv4(SERVER.octets(), [255; 4], 64).udp(67, 68);
    let mut frame = Vec::new();
    packet.write(&mut frame, &bytes).expect("written");
    frame
}

fn v4(known: Option<&Terms4>, now: Now) -> crate::dhcp_client::v4::Client {
    crate::dhcp_client::v4::Client::asking(&asker(), known, now, Random::new(7))
}

/// Brings a client to an address, with a lease of `secs`. Returns the time.
fn bind(client: &mut crate::dhcp_client::v4::Client, now: Now, secs: u32) -> Now {
    let frames = client.wake(now);
    let (discover, to, _) = asked(&frames[0]);
    assert_eq!((kind(&discover), to, frames.len()), (MessageType::Discover, [0xff; 6], 1));
    let frames = client.hear(&framed(&answer(MessageType::Offer, discover.xid(), SERVER, ADDRESS, secs)), now);
    let (request, ..) = asked(&frames[0]);
    assert_eq!(kind(&request), MessageType::Request);
    assert_eq!(request.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SERVER)));
    assert_eq!(request.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
    let frames = client.hear(&framed(&answer(MessageType::Ack, request.xid(), SERVER, ADDRESS, secs)), now);
    let probe = |frame: &[u8]| matches!(frame::read(frame), Some(Heard::Arp { target, .. }) if target == ADDRESS);
    assert!(probe(&frames[0]) && client.held().is_none(), "it looks whether somebody has it");
    let mut now = now;
    for _ in 0..8 {
        let Some(next) = client.next().filter(|_| client.held().is_none()) else { break };
        now = Now { at: next, ..now };
        client.wake(now);
    }
    assert_eq!(client.held().map(|terms| terms.given.address), Some(ADDRESS));
    now
}

#[test]
fn a_lease_is_got_renewed_and_ends() {
    let begun = start();
    let mut client = v4(None, begun);
    let now = bind(&mut client, begun, 100);
    let terms = client.held().expect("bound").clone();
    assert_eq!((terms.renew, terms.rebind, terms.expires), (1050, 1088, 1100));
    assert_eq!((terms.given.prefix, terms.given.gateway, terms.server_mac), (24, Some(SERVER), SERVER_MAC));
    assert!(client.wake(after(now, 45.0)).is_empty(), "before T1");
    // T1: it asks its server, from its address.
    let (request, to, address) = asked(&client.wake(after(begun, 51.0))[0]);
    assert_eq!((kind(&request), request.ciaddr(), to, address), (MessageType::Request, ADDRESS, SERVER_MAC.0, SERVER));
    assert!(request.opts().get(OptionCode::ServerIdentifier).is_none(), "RFC 2131 section 4.3.6");
    let renewed = framed(&answer(MessageType::Ack, request.xid(), SERVER, ADDRESS, 100));
    client.hear(&renewed, after(begun, 53.0));
    assert_eq!(client.held().map(|t| t.expires), Some(1151), "it lasts from the question on");
    // Nobody answers: T2, all servers; then the end.
    let (request, ..) = asked(&client.wake(after(begun, 102.0))[0]);
    assert_eq!(request.ciaddr(), ADDRESS);
    let (request, to, address) = asked(&client.wake(after(begun, 140.0))[0]);
    assert_eq!((kind(&request), to, address), (MessageType::Request, [0xff; 6], Ipv4Addr::BROADCAST));
    assert!(client.held().is_some());
    let frames = client.wake(after(begun, 152.0));
    assert!(client.held().is_none() && client.wrong().is_some_and(|why| why.contains("has ended")));
    let (discover, ..) = asked(&frames[0]);
    assert_eq!(kind(&discover), MessageType::Discover);
    assert_eq!(discover.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
}

#[test]
fn only_its_server_may_end_a_lease_before_t2() {
    let begun = start();
    let other = Ipv4Addr::new(192, 0, 2, 66);
    let refusal = |xid, server| framed(&answer(MessageType::Nak, xid, server, Ipv4Addr::UNSPECIFIED, 0));
    let mut client = v4(None, begun);
    bind(&mut client, begun, 100);
    assert!(client.hear(&refusal(0, SERVER), after(begun, 10.0)).is_empty() && client.held().is_some(), "unasked");
    let (request, ..) = asked(&client.wake(after(begun, 51.0))[0]);
    client.hear(&refusal(request.xid() ^ 1, SERVER), after(begun, 51.0));
    client.hear(&refusal(request.xid(), other), after(begun, 51.0));
    let mut anothers = answer(MessageType::Nak, request.xid(), SERVER, Ipv4Addr::UNSPECIFIED, 0);
    anothers.set_chaddr(&SERVER_MAC.0);
    client.hear(&framed(&anothers), after(begun, 51.0));
    assert!(client.held().is_some());
    let moved = framed(&answer(MessageType::Ack, request.xid(), SERVER, other, 100));
    client.hear(&moved, after(begun, 51.0));
    assert_eq!(client.held().map(|t| t.expires), Some(1100), "another address is none that was asked for");
    let frames = client.hear(&refusal(request.xid(), SERVER), after(begun, 51.0));
    assert!(client.held().is_none());
    assert_eq!(kind(&asked(&frames[0]).0), MessageType::Discover);
}

#[test]
fn an_address_that_somebody_has_is_declined() {
    let begun = start();
    let mut client = v4(None, begun);
    let (discover, ..) = asked(&client.wake(begun)[0]);
    client.hear(&framed(&answer(MessageType::Offer, discover.xid(), SERVER, ADDRESS, 100)), begun);
    client.hear(&framed(&answer(MessageType::Ack, discover.xid(), SERVER, ADDRESS, 100)), begun);
    let arp = |from: Mac, sender: Ipv4Addr, operation: u8| {
        let head = [&[0xff; 6][..], &from.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        [&head[..], &from.0, &sender.octets(), &[0; 6], &ADDRESS.octets()].concat()
    };
    let own = frame::arp_probe(OWN, ADDRESS);
    for harmless in [own, arp(SERVER_MAC, SERVER, 1)] {
        assert!(client.hear(&harmless, begun).is_empty());
    }
    let frames = client.hear(&arp(SERVER_MAC, ADDRESS, 2), begun);
    let (decline, ..) = asked(&frames[0]);
    assert_eq!(kind(&decline), MessageType::Decline);
    assert_eq!(decline.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
    assert!(client.wake(after(begun, 0.9)).is_empty(), "a pause");
    assert!(client.wrong().is_some_and(|why| why.contains("is in use by 02:00:00:00:00:01")), "{:?}", client.wrong());
    let now = after(begun, 1.0);
    let (discover, ..) = asked(&client.wake(now)[0]);
    assert_eq!(kind(&discover), MessageType::Discover);
    // The same again: a longer one.
    client.hear(&framed(&answer(MessageType::Offer, discover.xid(), SERVER, ADDRESS, 100)), now);
    client.hear(&framed(&answer(MessageType::Ack, discover.xid(), SERVER, ADDRESS, 100)), now);
    assert_eq!(client.hear(&arp(SERVER_MAC, ADDRESS, 2), now).len(), 1);
    assert!(client.wake(after(begun, 10.9)).is_empty(), "RFC 2131 section 3.1.5");
    assert_eq!(client.wake(after(begun, 11.0)).len(), 1);
}

#[test]
fn who_is_refused_again_and_again_waits() {
    let begun = start();
    let mut client = v4(None, begun);
    let (mut now, mut pauses) = (begun, Vec::new());
    for _ in 0..6 {
        let (discover, ..) = asked(&client.wake(now)[0]);
        let request = client.hear(&framed(&answer(MessageType::Offer, discover.xid(), SERVER, ADDRESS, 100)), now);
        let xid = asked(&request[0]).0.xid();
        // Another server was not asked, and nobody for another address.
        let other = Ipv4Addr::new(192, 0, 2, 66);
        for (kind, server, address) in
            [(MessageType::Nak, other, ADDRESS), (MessageType::Ack, other, ADDRESS), (MessageType::Ack, SERVER, other)]
        {
            let said = framed(&answer(kind, xid, server, address, 100));
            assert!(client.hear(&said, now).is_empty() && client.is_close(), "{kind:?} {server} {address}");
        }
        let asks = client.hear(&framed(&answer(MessageType::Nak, xid, SERVER, Ipv4Addr::UNSPECIFIED, 0)), now);
        assert_eq!(client.wrong(), Some("DHCP server 192.0.2.1 refuses 192.0.2.50"));
        // The first time it has asked already, and is asked to be heard by another question.
        let next = client.next().expect("it asks");
        pauses.push(if asks.is_empty() { next.duration_since(now.at).as_secs_f64() } else { 0.0 });
        now = Now { at: next, ..now };
    }
    for (pause, about) in pauses.iter().zip([0.0, 1.0, 2.0, 4.0, 8.0, 16.0]) {
        assert!((about * 0.75..=about * 1.25).contains(pause), "{pauses:?}");
    }
}

#[test]
fn the_address_before_is_asked_for_first() {
    let begun = start();
    let mut first = v4(None, begun);
    bind(&mut first, begun, 100);
    let known = first.held().expect("bound").clone();
    let mut client = v4(Some(&known), begun);
    let (request, ..) = asked(&client.wake(begun)[0]);
    assert_eq!(kind(&request), MessageType::Request);
    assert!(request.opts().get(OptionCode::ServerIdentifier).is_none());
    let refusal = framed(&answer(MessageType::Nak, request.xid(), SERVER, Ipv4Addr::UNSPECIFIED, 0));
    assert_eq!(kind(&asked(&client.hear(&refusal, begun)[0]).0), MessageType::Discover);
    // Nobody says anything: it asks for any.
    let mut client = v4(Some(&known), begun);
    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        let now = Now { at: client.next().expect("it asks"), ..begun };
        kinds.extend(client.wake(now).iter().map(|frame| kind(&asked(frame).0)));
    }
    use MessageType::{Discover, Request};
    assert_eq!(kinds, [Request, Request, Discover, Discover]);
    // A lease that is over is not asked for as one.
    let mut client = v4(Some(&known), after(begun, 101.0));
    assert_eq!(kind(&asked(&client.wake(after(begun, 101.0))[0]).0), Discover);
}

#[test]
fn pauses_grow_and_are_no_ones_but_its_own() {
    let begun = start();
    let mut client = v4(None, begun);
    let (mut last, mut pauses) = (begun.at, Vec::new());
    for _ in 0..9 {
        let at = client.next().expect("it asks");
        pauses.push(at.duration_since(last).as_secs_f64());
        last = at;
        assert_eq!(client.wake(Now { at, ..begun }).len(), 1);
    }
    for (pause, about) in pauses.iter().zip([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 64.0]) {
        assert!((about * 0.75..=about * 1.25).contains(pause), "{pauses:?}");
    }
}

#[test]
fn what_no_host_can_have_is_not_taken() {
    let other = |address: [u8; 4], mask: [u8; 4], secs: u32| (Ipv4Addr::from(address), mask, secs);
    let whole = [255, 255, 255, 0];
    for (address, mask, secs) in [
        other([127, 0, 0, 1], whole, 100),
        other([0, 0, 0, 0], whole, 100),
        other([224, 0, 0, 1], whole, 100),
        other([255; 4], whole, 100),
        other([169, 254, 1, 1], whole, 100),
        other([192, 0, 2, 0], whole, 100),
        other([192, 0, 2, 255], whole, 100),
        other([192, 0, 2, 50], [255, 0, 255, 0], 100),
        other([192, 0, 2, 50], [0; 4], 100),
        other([192, 0, 2, 50], whole, 9),
        other([192, 0, 2, 50], whole, 0),
    ] {
        let begun = start();
        let mut client = v4(None, begun);
        let (discover, ..) = asked(&client.wake(begun)[0]);
        let mut offer = answer(MessageType::Offer, discover.xid(), SERVER, address, secs);
        offer.opts_mut().insert(option(1, &mask));
        assert!(client.hear(&framed(&offer), begun).is_empty(), "{address} {mask:?} {secs}");
        assert!(client.wrong().is_some_and(|why| why.starts_with("DHCP server 192.0.2.1 offers ")), "{address}");
    }
}

#[test]
fn what_a_server_says_beside_the_address() {
    let begun = start();
    let told = |change: fn(&mut Message)| {
        let mut client = v4(None, begun);
        let (discover, ..) = asked(&client.wake(begun)[0]);
        client.hear(&framed(&answer(MessageType::Offer, discover.xid(), SERVER, ADDRESS, 100)), begun);
        let mut ack = answer(MessageType::Ack, discover.xid(), SERVER, ADDRESS, 100);
        change(&mut ack);
        client.hear(&framed(&ack), begun);
        client.wake(after(begun, 0.2));
        client.wake(after(begun, 0.4));
        client.held().expect("bound").clone()
    };
    let routes = told(|ack| drop(ack.opts_mut().insert(option(121, &[8, 10, 192, 0, 2, 9, 0, 192, 0, 2, 254]))));
    assert_eq!(routes.given.gateway, Some(Ipv4Addr::new(192, 0, 2, 254)), "RFC 3442");
    let beyond = told(|ack| drop(ack.opts_mut().insert(option(3, &[198, 51, 100, 1]))));
    assert_eq!(beyond.given.gateway, None);
    let names = told(|ack| {
        ack.opts_mut().insert(option(6, &[192, 0, 2, 1, 127, 0, 0, 1, 192, 0, 2, 2]));
        ack.opts_mut().insert(option(15, b"lan.example\nnameserver 203.0.113.1"));
        ack.opts_mut().insert(option(119, b"\x03lan\x04test\0"));
    });
    assert_eq!(names.given.dns, [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
    assert_eq!(names.given.search, ["lan.test"]);
    let times = told(|ack| {
        ack.opts_mut().insert(option(58, &200_u32.to_be_bytes()));
        ack.opts_mut().insert(option(59, &300_u32.to_be_bytes()));
    });
    assert_eq!((times.renew, times.rebind), (1050, 1088), "times that are none");
    let early = told(|ack| {
        ack.opts_mut().insert(option(58, &1_u32.to_be_bytes()));
        ack.opts_mut().insert(option(59, &2_u32.to_be_bytes()));
    });
    assert_eq!((early.renew, early.rebind), (1050, 1088), "times that would keep the device busy");
    let ever = told(|ack| drop(ack.opts_mut().insert(option(51, &[0xff; 4]))));
    assert_eq!((ever.renew, ever.rebind, ever.expires), (u64::MAX, u64::MAX, u64::MAX));
}

#[test]
fn a_lease_is_given_back_from_its_address() {
    let begun = start();
    let mut client = v4(None, begun);
    bind(&mut client, begun, 100);
    let terms = Terms { v4: client.held().cloned(), v6: None };
    let frame = release(&asker(), &terms, 1).expect("a frame");
    let (message, to, address) = asked(&frame);
    assert_eq!((kind(&message), message.ciaddr(), to, address), (MessageType::Release, ADDRESS, SERVER_MAC.0, SERVER));
    assert_eq!(release(&asker(), &Terms::default(), 1), None);
}
