//! SOLICIT, ADVERTISE, REQUEST, REPLY (RFC 8415).

use super::clients::{Exchange as Messages, Heard, port_of};
use harness::dhcp_client::mac_of;
use harness::{dhcp, frame};
use std::net::Ipv6Addr;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const REPLY: u8 = 7;
/// Options: client, server, association, an address in it.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
/// Bytes of an association before its options.
const IA_NA_HEAD: usize = 12;
/// All servers and relay agents.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Where a message begins in a frame: behind Ethernet, IPv6 and UDP.
const MESSAGE: usize = 62;

/// The exchange.
pub struct Exchange {
    /// How many MACs the clients share.
    pub macs: u32,
}

impl Exchange {
    /// Who sends a client's messages. A multiple of the number of ports is at each of them.
    const fn sender(&self, client: u32) -> u32 {
        client % self.macs
    }

    fn message(&self, client: u32, kind: u8, more: &[u8]) -> Vec<u8> {
        let mac = mac_of(self.sender(client));
        let [_, a, b, c] = client.to_be_bytes();
        // Its DUID is of the kind that is made of a MAC, and it asks for DNS servers.
        let duid = [&[0, 3, 0, 1][..], &mac_of(client)].concat();
        let head = [&[kind, a, b, c][..], &option(CLIENT_ID, &duid), &[0, 8, 0, 2, 0, 0, 0, 6, 0, 2, 0, 23]].concat();
        let packet = frame::udp(
            (link_local(mac).into(), dhcp::CLIENT6),
            (SERVERS.into(), dhcp::SERVER6),
            &[&head, more].concat(),
        );
        frame::ethernet(mac, [0x33, 0x33, 0, 1, 0, 2], frame::IPV6, &packet)
    }
}

impl Messages for Exchange {
    const KIND: u16 = frame::IPV6;

    fn first(&self, client: u32) -> Vec<u8> {
        self.message(client, SOLICIT, &option(IA_NA, &[&1_u32.to_be_bytes()[..], &[0; 8]].concat()))
    }

    fn hear(&self, bytes: &[u8]) -> Heard {
        // A neighbour solicitation: peers look their clients' MACs up.
        if bytes.get(20) == Some(&58) && bytes.get(54) == Some(&135) {
            return self.neighbour(bytes).unwrap_or(Heard::Nothing);
        }
        let is_answer = bytes.get(20) == Some(&17) && bytes.get(56..58) == Some(&dhcp::CLIENT6.to_be_bytes());
        let Some(message) = bytes.get(MESSAGE..).filter(|message| is_answer && message.len() > 4) else {
            return Heard::Nothing;
        };
        let (mut client, mut server, mut association) = (None, &[][..], &[][..]);
        for (code, data) in options(&message[4..]) {
            match code {
                CLIENT_ID => client = data.get(6..10).and_then(|n| n.try_into().ok()).map(u32::from_be_bytes),
                SERVER_ID => server = data,
                IA_NA => association = data,
                _ => {}
            }
        }
        let Some(client) = client else { return Heard::Nothing };
        let has_address = association.get(IA_NA_HEAD..).is_some_and(|a| options(a).any(|(code, _)| code == IA_ADDRESS));
        match message[0] {
            ADVERTISE | REPLY if !has_address => Heard::Refusal(client),
            ADVERTISE => {
                let chosen = [option(SERVER_ID, server), option(IA_NA, association)].concat();
                Heard::Offer(client, self.message(client, REQUEST, &chosen))
            }
            REPLY => Heard::Lease(client),
            _ => Heard::Nothing,
        }
    }
}

impl Exchange {
    fn neighbour(&self, bytes: &[u8]) -> Option<Heard> {
        let target = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(62..78)?).ok()?);
        let octets = target.octets();
        // The last four octets of a MAC are the client's number.
        let sender = u32::from_be_bytes([octets[10], octets[13], octets[14], octets[15]]);
        let mac = mac_of(sender);
        let to: [u8; 6] = bytes.get(6..12)?.try_into().ok()?;
        let asks = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(22..38)?).ok()?);
        if sender >= self.macs || target != link_local(mac) {
            return None;
        }
        let packet = frame::neighbour(136, target, asks, target, mac);
        Some(Heard::Answer(port_of(sender), frame::ethernet(mac, to, frame::IPV6, &packet)))
    }
}

fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(4)?;
        let (data, rest) = rest.split_at_checked(u16::from_be_bytes([head[2], head[3]]).into())?;
        bytes = rest;
        Some((u16::from_be_bytes([head[0], head[1]]), data))
    })
}
