//! DISCOVER, OFFER, REQUEST, ACK (RFC 2131).

use super::clients::{Exchange as Messages, Heard, mac_of};
use harness::{dhcp, frame};
use std::net::Ipv4Addr;

const REQUEST: u8 = 3;
const NAK: u8 = 6;
/// Where a message begins in a frame: behind Ethernet, IPv4 and UDP.
const MESSAGE: usize = 42;
/// Where its options begin.
const OPTIONS: usize = 240;

/// The exchange.
pub struct Exchange;

impl Messages for Exchange {
    const KIND: u16 = frame::IPV4;

    fn first(&self, client: u32) -> Vec<u8> {
        message(client, dhcp::DISCOVER, &[])
    }

    fn hear(&self, bytes: &[u8]) -> Heard {
        let is_answer = bytes.get(23) == Some(&17) && bytes.get(36..38) == Some(&dhcp::CLIENT.to_be_bytes());
        let Some(message) = bytes.get(MESSAGE..).filter(|m| is_answer && m.len() > OPTIONS && m[0] == 2) else {
            return Heard::Nothing;
        };
        let client = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        // A broadcast comes by every port.
        if message[28..34] != mac_of(client) {
            return Heard::Nothing;
        }
        let (mut kind, mut server) = (0, [0; 4]);
        let mut options = &message[OPTIONS..];
        while let [code, len, rest @ ..] = options
            && *code != 255
        {
            let Some((data, next)) = rest.split_at_checked((*len).into()) else { break };
            match (code, data) {
                (53, [octet]) => kind = *octet,
                (54, &[a, b, c, d]) => server = [a, b, c, d],
                _ => {}
            }
            options = next;
        }
        match kind {
            dhcp::OFFER => {
                let chosen = [&[50, 4][..], &message[16..20], &[54, 4], &server].concat();
                Heard::Offer(client, self::message(client, REQUEST, &chosen))
            }
            dhcp::ACK => Heard::Lease(client),
            NAK => Heard::Refusal(client),
            _ => Heard::Nothing,
        }
    }
}

fn message(client: u32, kind: u8, more: &[u8]) -> Vec<u8> {
    let mac = mac_of(client);
    let mut fixed = [0; OPTIONS];
    fixed[..4].copy_from_slice(&[1, 1, 6, 0]);
    fixed[4..8].copy_from_slice(&client.to_be_bytes());
    fixed[28..34].copy_from_slice(&mac);
    fixed[236..].copy_from_slice(&[99, 130, 83, 99]);
    // What a client usually asks for: mask, router, DNS, domain, MTU, broadcast address.
    let options = [&[53, 1, kind, 55, 6, 1, 3, 6, 15, 26, 28][..], more, &[255]].concat();
    let mut whole = [&fixed[..], &options].concat();
    // Some servers read no shorter message than BOOTP's (RFC 1542 section 2.1).
    whole.resize(whole.len().max(300), 0);
    let (none, all) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    frame::ethernet(mac, [0xff; 6], frame::IPV4, &frame::udp((none, dhcp::CLIENT), (all, dhcp::SERVER), &whole))
}
