//! Any number of made-up clients of DHCP: what one sends, and what a server says to it.

use crate::{dhcp, frame};
use std::net::Ipv4Addr;

const REQUEST: u8 = 3;
/// Where a message begins in a frame: behind Ethernet, IPv4 and UDP.
const MESSAGE: usize = 42;
/// Where its options begin.
const OPTIONS: usize = 240;
/// The shortest message that all servers read, as BOOTP has it (RFC 1542 section 2.1).
const SHORTEST: usize = 300;

/// The MAC of a client.
#[must_use]
pub const fn mac_of(client: u32) -> [u8; 6] {
    let [a, b, c, d] = client.to_be_bytes();
    [2, 0x99, a, b, c, d]
}

/// The frame by which a client looks for servers.
#[must_use]
pub fn discover(client: u32) -> Vec<u8> {
    frame_of(client, dhcp::DISCOVER, &[])
}

/// What a server says to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The client.
    pub client: u32,
    /// The kind of message.
    pub kind: u8,
    /// The client's address.
    pub address: Ipv4Addr,
    server: [u8; 4],
}

impl Said {
    /// What a frame says to the client whose MAC it names; `None` if that is no client of this module.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let is_answer = bytes.get(23) == Some(&17) && bytes.get(36..38) == Some(&dhcp::CLIENT.to_be_bytes());
        let message = bytes.get(MESSAGE..).filter(|message| is_answer && message.len() > OPTIONS && message[0] == 2)?;
        let client = u32::from_be_bytes(message[4..8].try_into().ok()?);
        // A broadcast comes by every port.
        if message[28..34] != mac_of(client) {
            return None;
        }
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(&message[16..20]).ok()?);
        let (mut kind, mut server) = (None, [0; 4]);
        let mut options = &message[OPTIONS..];
        while let [code, len, rest @ ..] = options
            && *code != 255
        {
            let (data, next) = rest.split_at_checked((*len).into())?;
            match (code, data) {
                (53, [octet]) => kind = Some(*octet),
                (54, &[a, b, c, d]) => server = [a, b, c, d],
                _ => {}
            }
            options = next;
        }
        Some(Self { client, kind: kind?, address, server })
    }

    /// The frame by which the client requests what it was offered.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        let chosen = [&[50, 4][..], &self.address.octets(), &[54, 4], &self.server].concat();
        frame_of(self.client, REQUEST, &chosen)
    }
}

fn frame_of(client: u32, kind: u8, more: &[u8]) -> Vec<u8> {
    let mac = mac_of(client);
    let mut fixed = [0; OPTIONS];
    fixed[..4].copy_from_slice(&[1, 1, 6, 0]);
    fixed[4..8].copy_from_slice(&client.to_be_bytes());
    fixed[28..34].copy_from_slice(&mac);
    fixed[236..].copy_from_slice(&[99, 130, 83, 99]);
    // What a client usually asks for: mask, router, DNS, domain, MTU, broadcast address.
    let options = [&[53, 1, kind, 55, 6, 1, 3, 6, 15, 26, 28][..], more, &[255]].concat();
    let mut whole = [&fixed[..], &options].concat();
    whole.resize(whole.len().max(SHORTEST), 0);
    let (none, all) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    frame::ethernet(mac, [0xff; 6], frame::IPV4, &frame::udp((none, dhcp::CLIENT), (all, dhcp::SERVER), &whole))
}
