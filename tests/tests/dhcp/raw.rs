//! A client made by hand, one frame after the other.

use crate::{SERVER, Stranger};
use anyhow::{Context, Result, ensure};
use harness::raw::RawSocket;
use harness::{Namespace, SOON, dhcp, frame};
use std::net::Ipv4Addr;
use std::time::Duration;

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

/// For as long something is waited for that should not come.
pub const NOTHING: Duration = Duration::from_millis(300);

/// A message, that can be changed before it is sent.
#[derive(Clone)]
pub struct Message {
    /// All of it up to the options, with the magic cookie.
    pub fixed: Vec<u8>,
    /// Options, without their end.
    pub options: Vec<u8>,
}

impl Message {
    pub fn new(kind: u8, mac: [u8; 6], xid: u32) -> Self {
        let mut fixed = vec![0; 240];
        fixed[..4].copy_from_slice(&[1, 1, 6, 0]);
        fixed[4..8].copy_from_slice(&xid.to_be_bytes());
        fixed[28..34].copy_from_slice(&mac);
        fixed[236..].copy_from_slice(&[99, 130, 83, 99]);
        Self { fixed, options: vec![53, 1, kind] }
    }

    pub fn option(mut self, code: u8, octets: &[u8]) -> Self {
        self.options.extend([code, octets.len() as u8]);
        self.options.extend(octets);
        self
    }

    pub fn requested(self, address: Ipv4Addr) -> Self {
        self.option(50, &address.octets())
    }

    pub fn server(self, address: Ipv4Addr) -> Self {
        self.option(54, &address.octets())
    }

    pub fn ciaddr(mut self, address: Ipv4Addr) -> Self {
        self.fixed[12..16].copy_from_slice(&address.octets());
        self
    }

    pub fn change(mut self, at: usize, octet: u8) -> Self {
        self.fixed[at] = octet;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        [&self.fixed, &self.options, &[255][..]].concat()
    }
}

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    pub kind: u8,
    pub yours: Ipv4Addr,
    /// Where it went to.
    pub mac: [u8; 6],
    pub to: Ipv4Addr,
}

impl Answer {
    /// That in a frame, if it is one to this number.
    fn of(frame: &[u8], xid: u32) -> Option<Self> {
        let (ip, message) = (frame.get(14..34)?, frame.get(42..)?);
        let is_answer = frame[12..14] == [8, 0] && ip[9] == 17 && frame[36..38] == dhcp::CLIENT.to_be_bytes();
        let id = message.get(4..8)?;
        if !is_answer || id != xid.to_be_bytes() || message[0] != 2 {
            return None;
        }
        let address = |octets: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?));
        let mut options = message.get(240..)?;
        let mut kind = None;
        while let [code, len, rest @ ..] = options
            && *code != 255
        {
            if *code == 53 {
                kind = rest.first().copied();
            }
            options = rest.get(usize::from(*len)..)?;
        }
        let mac = frame[..6].try_into().ok()?;
        Some(Self { kind: kind?, yours: address(&message[16..20])?, mac, to: address(&ip[16..20])? })
    }
}

/// Somebody who sends frames on a link.
pub struct Peer {
    pub socket: RawSocket,
    pub mac: [u8; 6],
    next: u32,
}

impl Peer {
    pub fn on(ns: &Namespace, link: &str) -> Result<Self> {
        Ok(Self { socket: RawSocket::open(ns, link)?, mac: ns.mac(link)?, next: 1 })
    }

    pub fn of(stranger: &Stranger) -> Result<Self> {
        Self::on(&stranger.ns, &stranger.link)
    }

    pub fn xid(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Sends a message to all, as one who has no address, from this MAC.
    pub fn send(&self, from: [u8; 6], message: &[u8]) -> Result<()> {
        let (none, all) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let packet = frame::udp((none, dhcp::CLIENT), (all, dhcp::SERVER), message);
        self.socket.send(&frame::ethernet(from, [0xff; 6], frame::IPV4, &packet))
    }

    /// The answer to the message with this number.
    pub fn answer(&self, xid: u32, patience: Duration) -> Result<Option<Answer>> {
        let frame = self.socket.receive(patience, |frame| Answer::of(frame, xid).is_some())?;
        Ok(frame.and_then(|frame| Answer::of(&frame, xid)))
    }

    /// Sends a message of `mac` until there is an answer, as clients do: the server may only be starting, or be writing a
    /// lease of this client.
    pub fn ask(&mut self, mac: [u8; 6], make: impl Fn(u32) -> Message) -> Result<Answer> {
        let xid = self.xid();
        harness::eventually(SOON, || {
            self.send(mac, &make(xid).bytes())?;
            self.answer(xid, Duration::from_secs(1))?.context("no answer")
        })
    }

    /// All of an exchange.
    pub fn get(&mut self, mac: [u8; 6]) -> Result<Ipv4Addr> {
        let offer = self.ask(mac, |xid| Message::new(DISCOVER, mac, xid))?;
        ensure!(offer.kind == OFFER, "{offer:?}");
        let take = |xid| Message::new(REQUEST, mac, xid).requested(offer.yours).server(SERVER);
        let ack = self.ask(mac, take)?;
        ensure!(ack.kind == ACK && ack.yours == offer.yours, "{ack:?}");
        Ok(ack.yours)
    }
}

/// A MAC that no link has.
pub fn mac(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [2, 0x99, 0, 0, high, low]
}
