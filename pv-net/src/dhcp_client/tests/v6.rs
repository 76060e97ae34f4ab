//! Addresses from router advertisements.

use super::*;
use crate::model::{Given, RaMode, RouterPreference, Terms6};
use crate::ra::{Advert, Prefix};
use etherparse::PacketBuilder;

fn advert(prefixes: &[(&str, u32, u32)], router_secs: u16) -> Advert {
    Advert {
        mode: RaMode::Slaac,
        router_secs,
        option_secs: 600,
        preference: RouterPreference::Medium,
        mac: SERVER_MAC,
        mtu_bytes: 1500,
        prefixes: prefixes
            .iter()
            .map(|(net, valid_secs, preferred_secs)| Prefix {
                net: net.parse().expect("a network"),
                valid_secs: *valid_secs,
                preferred_secs: *preferred_secs,
            })
            .collect(),
        routes: Vec::new(),
        server: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53)),
        domain: "lan.example".to_owned(),
    }
}

fn advertised(from: Ipv6Addr, advert: &Advert) -> Vec<u8> {
    framed(from, &advert.encode())
}

fn framed(from: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let head = [message[4], message[5], message[6], message[7]];
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let packet = PacketBuilder::ethernet2(SERVER_MAC.0, [0x33, 0x33, 0, 0, 0, 1]).ipv6(from.octets(), to.octets(), 255);
    let mut frame = Vec::new();
    packet.icmpv6_raw(134, 0, head).write(&mut frame, &message[8..]).expect("written");
    frame
}

fn v6(now: Now) -> crate::dhcp_client::v6::Client {
    crate::dhcp_client::v6::Client::asking(&asker(), None, now, Random::new(7))
}

/// Lets a client hear an advertisement, and nobody object. Returns what it has.
fn settle(client: &mut crate::dhcp_client::v6::Client, said: &Advert, now: Now) -> Option<Terms6> {
    client.hear(&advertised(ROUTER, said), now);
    client.wake(after(now, 0.6));
    client.held().cloned()
}

#[test]
fn an_address_is_made_of_an_advertised_network() {
    let begun = start();
    let mut client = v6(begun);
    let solicitation = client.wake(begun);
    assert_eq!(solicitation[0][54], 133);
    let said = advert(&[("fd00:1::/64", 9000, 4500), ("2001:db8:1::/64", 9000, 4500)], 600);
    let probe = client.hear(&advertised(ROUTER, &said), begun);
    assert!(client.held().is_none() && probe[0][54] == 135, "it looks whether somebody has it");
    client.wake(after(begun, 0.6));
    let terms = client.held().expect("bound").clone();
    let Given { address, prefix, gateway, dns, search } = terms.given.clone();
    assert!(address.to_string().starts_with("2001:db8:1:"), "{address}: the one that is known everywhere");
    assert_eq!((prefix, gateway, terms.expires), (64, Some(ROUTER), 10_000));
    assert_eq!((dns.len(), search), (1, vec!["lan.example".to_owned()]));
    let again = settle(&mut v6(begun), &said, begun).expect("bound");
    assert_eq!(again.given.address, address, "the same every time");
    // Its router ends, and then its time.
    client.hear(&advertised(ROUTER, &advert(&[("2001:db8:1::/64", 9000, 4500)], 0)), after(begun, 1.0));
    assert_eq!(client.held().and_then(|t| t.given.gateway), None);
    client.wake(after(begun, 9002.0));
    assert!(client.held().is_none() && client.wrong().is_some());
}

#[test]
fn an_address_that_somebody_has_gives_way_to_another() {
    let begun = start();
    let mut client = v6(begun);
    client.wake(begun);
    let probe = client.hear(&advertised(ROUTER, &advert(&[("fd00:1::/64", 9000, 4500)], 600)), begun);
    let Some(Heard::Asked { target: first, .. }) = frame::read(&probe[0]) else { panic!("no probe") };
    assert!(client.hear(&probe[0], begun).is_empty(), "its own probe");
    let other = frame::solicitation(SERVER_MAC, first).expect("a frame");
    let probe = client.hear(&other, begun);
    let Some(Heard::Asked { target: second, .. }) = frame::read(&probe[0]) else { panic!("no probe") };
    assert_ne!(first, second);
    client.wake(after(begun, 0.6));
    assert_eq!(client.held().map(|t| (t.given.address, t.conflicts)), Some((second, 1)));
    // Later an answer changes nothing: that is the kernel's business.
    client.hear(&frame::solicitation(SERVER_MAC, second).expect("a frame"), after(begun, 1.0));
    assert!(client.held().is_some());
}

/// A client with an address of a network in whose place the router advertises another one ten seconds later. With what it had,
/// and the frames that it sends then.
fn renumbered(begun: Now) -> (crate::dhcp_client::v6::Client, Terms6, Vec<Vec<u8>>) {
    let mut client = v6(begun);
    let old = settle(&mut client, &advert(&[("fd00:1::/64", 9000, 4500)], 600), begun).expect("bound");
    let said = advert(&[("fd00:1::/64", 9000, 0), ("fd00:2::/64", 9000, 4500)], 600);
    let frames = client.hear(&advertised(ROUTER, &said), after(begun, 10.0));
    (client, old, frames)
}

#[test]
fn a_renumbered_network_has_its_address_replaced_in_one_step() {
    let begun = start();
    let (mut client, old, _) = renumbered(begun);
    assert_eq!(client.held().map(|t| t.given.address), Some(old.given.address), "until the new one is probed");
    client.wake(after(begun, 10.6));
    let new = client.held().expect("bound");
    assert!(new.given.address.to_string().starts_with("fd00:2:"), "{}", new.given.address);
}

#[test]
fn an_address_stays_when_somebody_has_all_that_would_take_its_place() {
    let begun = start();
    let (mut client, old, mut frames) = renumbered(begun);
    for _ in 0..3 {
        let Some(Heard::Asked { target, .. }) = frame::read(&frames[0]) else { panic!("no probe") };
        let other = frame::solicitation(SERVER_MAC, target).expect("a frame");
        frames = client.hear(&other, after(begun, 10.0));
    }
    assert!(!client.is_close());
    assert_eq!(client.held().map(|t| t.given.address), Some(old.given.address));
    client.wake(after(begun, 9001.0));
    assert!(client.held().is_none(), "until its time is over");
}

#[test]
fn an_advertisement_counts_only_what_it_says_from_now_on() {
    let begun = start();
    let mut client = v6(begun);
    settle(&mut client, &advert(&[("fd00:1::/64", 9000, 4500)], 600), begun);
    // The clock is set back by a year: another router's word changes nothing of the address and its router.
    let set = Now { unix: 0, ..after(begun, 100.0) };
    let other = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let before = client.next();
    client.hear(&advertised(other, &advert(&[], 1800)), set);
    assert!(before.is_some() && client.next() == before);
    client.wake(after(begun, 601.0));
    assert_eq!(client.held().map(|t| t.given.gateway), Some(None));
    let end = client.next().expect("its end");
    assert!((9000.0..9001.0).contains(&end.duration_since(begun.at).as_secs_f64()));
}

#[test]
fn what_routers_say_that_is_not_believed() {
    let begun = start();
    let good = advert(&[("fd00:1::/64", 9000, 4500)], 600);
    for (why, said) in [
        ("a network of the link", advert(&[("fe80::/64", 9000, 4500)], 600)),
        ("a group", advert(&[("ff05::/64", 9000, 4500)], 600)),
        ("no network of hosts", advert(&[("fd00:1::/48", 9000, 4500)], 600)),
        ("over", advert(&[("fd00:1::/64", 9000, 0)], 600)),
        ("soon over", advert(&[("fd00:1::/64", 59, 59)], 600)),
        ("not for SLAAC", Advert { mode: RaMode::RouteOnly, ..good.clone() }),
    ] {
        assert_eq!(settle(&mut v6(begun), &said, begun), None, "{why}");
    }
    let mut client = v6(begun);
    assert_eq!(settle(&mut client, &Advert { mode: RaMode::Stateful, ..good.clone() }, begun), None);
    assert!(client.wrong().is_some_and(|why| why.contains("DHCPv6, which is not supported")), "{:?}", client.wrong());
    let mut client = v6(begun);
    let routed: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    assert!(client.hear(&advertised(routed, &good), begun).is_empty(), "from beyond the link");
    assert!(client.hear(&advertised(frame::link_local(OWN), &good), begun).is_empty(), "in its own name");
    let mut forged = advertised(ROUTER, &good);
    forged[21] = 254;
    assert!(client.hear(&forged, begun).is_empty(), "forwarded");
    let mut broken = advertised(ROUTER, &good);
    *broken.last_mut().expect("an octet") ^= 1;
    assert!(client.hear(&broken, begun).is_empty(), "a wrong checksum");
    // A prefix information option: its type, its length, the prefix's length, flags, two times (RFC 4861 section 4.6.2).
    let mut longer = good.encode();
    let at = longer.windows(3).position(|option| option == [3, 4, 64]).expect("a prefix");
    longer[at + 8..at + 12].copy_from_slice(&9001_u32.to_be_bytes());
    client.hear(&framed(ROUTER, &longer), begun);
    assert_eq!(client.wrong(), Some("router fe80::1 advertises no network for hosts"), "preferred for too long");
    // A time that is made short does not end the address at once (RFC 4862 section 5.5.3).
    let terms = settle(&mut client, &good, begun).expect("bound");
    client.hear(&advertised(ROUTER, &advert(&[("fd00:1::/64", 1, 1)], 600)), after(begun, 10.0));
    assert_eq!(client.held().map(|t| t.expires), Some(1010 + 7200));
    assert!(terms.expires > 1010 + 7200);
}
