//! rtnetlink messages: what pv-net makes of them is compared with an independent reading of the bytes.

use super::own;
use ipnetwork::IpNetwork;
use pv_net::kernel::netlink::{LinkInfo, NetEvent, default_route_of, info_of};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// `linux/if_link.h`, `linux/if_addr.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_IFALIAS: u16 = 20;

/// Target `netlink`. The input is a message with its header, as the kernel sends it.
pub fn check(input: &[u8]) {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(input) else { return };
    let event = NetEvent::of(&message.payload);
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        // Messages were lost, so any route may have changed.
        let lost = matches!(message.payload, NetlinkPayload::Overrun(_));
        assert_eq!(event, lost.then_some(NetEvent::Route { outputs: Vec::new() }));
        return;
    };
    let body = &input[HEADER..(message.header.length as usize).min(input.len())];
    match inner {
        RouteNetlinkMessage::NewLink(link) => {
            same(&LinkInfo::from(link), body);
            let Some(NetEvent::Link { index, up, .. }) = event else { panic!("a link: {event:?}") };
            assert_eq!((index, up), (word(body, 4), word(body, 8) & 1 != 0));
        }
        RouteNetlinkMessage::DelLink(link) => {
            let info = LinkInfo::from(link);
            same(&info, body);
            match event {
                Some(NetEvent::LeftBridge { index }) => assert_eq!((index, body[0]), (info.index, libc_af_bridge())),
                Some(NetEvent::LinkGone { index, name, ours }) => {
                    assert_eq!((index, &name), (info.index, &info.name));
                    assert!(!ours || info.alias.is_some_and(|a| a.starts_with("pv-net:")));
                }
                other => panic!("{other:?} of a link that is deleted"),
            }
        }
        RouteNetlinkMessage::NewAddress(m) | RouteNetlinkMessage::DelAddress(m) => {
            assert_eq!(event, Some(NetEvent::Changed));
            if let Some(info) = info_of(m) {
                assert_eq!((info.link, info.address.prefix()), (word(body, 4), body[1]));
                assert!(contains(&body[ADDRESS_HEADER..], &info.address), "{info:?} is not in the message");
            }
        }
        RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => {
            let links = default_route_of(m);
            // Bytes 1 and 4 of `struct rtmsg`: the prefix length, and the table, 254 for the main one.
            assert!(links.is_empty() || (body[1], body[4]) == (0, 254), "{links:?}");
            match event {
                // Each link takes a word of the message.
                Some(NetEvent::Route { outputs }) => assert!(outputs.len() <= body.len() / 4, "{outputs:?}"),
                other => assert_eq!(other, Some(NetEvent::Changed)),
            }
        }
        RouteNetlinkMessage::NewTrafficFilter(_)
        | RouteNetlinkMessage::DelTrafficFilter(_)
        | RouteNetlinkMessage::NewQueueDiscipline(_)
        | RouteNetlinkMessage::DelQueueDiscipline(_)
        | RouteNetlinkMessage::NewTrafficClass(_)
        | RouteNetlinkMessage::DelTrafficClass(_)
        | RouteNetlinkMessage::NewTrafficChain(_)
        | RouteNetlinkMessage::DelTrafficChain(_) => {
            assert!(matches!(event, None | Some(NetEvent::Filter { .. })), "{event:?} of a filter");
        }
        _ => assert_eq!(event, Some(NetEvent::Route { outputs: Vec::new() })),
    }
}

const fn libc_af_bridge() -> u8 {
    nix::libc::AF_BRIDGE as u8
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn contains(bytes: &[u8], network: &IpNetwork) -> bool {
    let octets = match network {
        IpNetwork::V4(n) => n.ip().octets().to_vec(),
        IpNetwork::V6(n) => n.ip().octets().to_vec(),
    };
    bytes.windows(octets.len()).any(|w| w == octets)
}

/// `struct ifinfomsg`, and behind it attributes: length, type, value, padding to four bytes.
fn same(link: &LinkInfo, body: &[u8]) {
    let flags = word(body, 8);
    assert_eq!((link.index, link.up, link.loopback), (word(body, 4), flags & 1 != 0, flags & 8 != 0));
    let last = |kind: u16| attributes(&body[LINK_HEADER..]).into_iter().rev().find(|a| a.0 == kind).map(|a| a.1);
    assert_eq!(link.name, last(IFLA_IFNAME).map(text).unwrap_or_default());
    assert_eq!(link.alias, last(IFLA_IFALIAS).map(text));
    assert_eq!(link.mtu, last(IFLA_MTU).map_or(0, |v| word(v, 0)));
    assert_eq!(link.controller, last(IFLA_MASTER).map(|v| word(v, 0)));
    assert!(link.mac.is_none() || u16::from_ne_bytes([body[2], body[3]]) == 1, "only Ethernet has a MAC");
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let [l0, l1, t0, t1, ..] = *bytes {
        let (len, kind) = (usize::from(u16::from_ne_bytes([l0, l1])), u16::from_ne_bytes([t0, t1]) & 0x3fff);
        if len < 4 || len > bytes.len() {
            break;
        }
        all.push((kind, &bytes[4..len]));
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    all
}

/// The text without its final zero byte.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Names, kinds and an alias.
pub fn words() -> Vec<Vec<u8>> {
    own(&[
        "eth0\0",
        "veth\0",
        "bridge\0",
        "ipvlan\0",
        "pv-net:pool=p;container=c;if=i;mac=02:00:00:00:00:01\0",
        "pv-net:",
    ])
}
