//! DHCPv4 messages: a client's questions, and what it reads of a server's answers.

use super::domain;
use crate::model::{Asker, Given, Mac};
use dhcproto::v4::borrowed::{DhcpOptionIterator, Message};
use dhcproto::v4::{
    self, DhcpOption, Encodable, Encoder, HType, MAGIC, MessageType, Opcode, OptionCode, UnknownOption,
};
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Octets of a message before its options, without the cookie.
const FIXED: usize = 236;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// Options of one message that are looked at.
const MOST_OPTIONS: usize = 128;
/// Name servers that are kept: libc asks three.
const MOST_SERVERS: usize = 3;
/// The shortest message that servers of old take (RFC 1542 section 2.1).
const SHORTEST: usize = 300;
/// The largest message that is read, without the headers of IPv4 and UDP.
const LONGEST: u16 = 1500;
/// What is asked for: mask, router, name servers, domain, times, search list, classless routes (which must come before the
/// router, RFC 3442).
const WANTED: [u8; 9] = [121, 1, 3, 6, 15, 119, 51, 58, 59];
/// A lease that is shorter would keep the device busy with nothing else.
const SHORTEST_LEASE: u32 = 10;
/// The earliest T1 and T2, for the same reason.
const EARLIEST: u32 = 5;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub kind: MessageType,
    pub xid: u32,
    /// The address that the client uses and goes on with.
    pub ciaddr: Ipv4Addr,
    /// The address that it asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server that it speaks to.
    pub server: Option<Ipv4Addr>,
}

fn option(code: u8, octets: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), octets.to_vec()))
}

impl Question {
    /// The message. Answers are asked for by broadcast unless the client has an address: nothing else would reach it.
    pub fn encode(&self, asker: &Asker) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = v4::Message::new_with_id(self.xid, self.ciaddr, none, none, none, &asker.mac.0);
        let flags = if self.ciaddr.is_unspecified() { 0x8000_u16 } else { 0 };
        message.set_opcode(Opcode::BootRequest).set_flags(flags.into());
        let opts = message.opts_mut();
        opts.insert(DhcpOption::MessageType(self.kind));
        // The type of Ethernet, and the MAC (RFC 2132 section 9.14): what most servers' reservations are made for.
        opts.insert(option(61, &[&[1][..], &asker.mac.0].concat()));
        if let Some(address) = self.requested {
            opts.insert(DhcpOption::RequestedIpAddress(address));
        }
        if let Some(server) = self.server {
            opts.insert(DhcpOption::ServerIdentifier(server));
        }
        if matches!(self.kind, MessageType::Discover | MessageType::Request) {
            opts.insert(option(55, &WANTED));
            opts.insert(option(57, &LONGEST.to_be_bytes()));
            opts.insert(option(12, asker.hostname.as_bytes()));
        }
        let mut bytes = Vec::with_capacity(SHORTEST);
        // It fails when a count of octets is more than 16 bits hold, and options have 255 at most.
        if message.encode(&mut Encoder::new(&mut bytes)).is_err() {
            bytes.clear();
        }
        bytes.resize(bytes.len().max(SHORTEST), 0);
        bytes
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// An offer, or the word that the address is the client's; or what is wrong with it.
    Give { is_ack: bool, server: Ipv4Addr, lease: Result<Lease, String> },
    /// The address is not the client's.
    Refuse { server: Ipv4Addr },
}

/// An address for a time, in seconds; `u32::MAX` is for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub given: Given<Ipv4Addr>,
    pub secs: u32,
    pub renew_secs: u32,
    pub rebind_secs: u32,
}

/// The answer to the question with the number `xid` of the client `mac`; `None` for anything else.
pub(super) fn read(bytes: &[u8], xid: u32, mac: Mac) -> Option<Said> {
    if bytes.get(FIXED..FIXED + 4) != Some(&MAGIC) {
        return None;
    }
    let message = Message::new(bytes).ok()?;
    let is_answer = message.opcode() == Opcode::BootReply && message.xid() == xid;
    // Before the address is read: its length may be more than there is.
    if !is_answer || message.htype() != HType::Eth || message.hlen() != 6 || message.chaddr() != mac.0 {
        return None;
    }
    let mut options = Options::default();
    options.add(message.opts());
    let overload = options.first(52).unwrap_or(0);
    // RFC 2131 section 4.1: the file first.
    for (bit, at) in [(1, FILE), (2, SNAME)] {
        if overload & bit != 0 {
            options.add(DhcpOptionIterator::new(bytes.get(at).unwrap_or_default()));
        }
    }
    let server = options.address(54).filter(|server| is_usable(*server))?;
    match MessageType::from(options.first(53)?) {
        MessageType::Offer => Some(Said::Give { is_ack: false, server, lease: lease(message.yiaddr(), &options) }),
        MessageType::Ack => Some(Said::Give { is_ack: true, server, lease: lease(message.yiaddr(), &options) }),
        MessageType::Nak => Some(Said::Refuse { server }),
        _ => None,
    }
}

/// Whether a host can have the address: it is none of a group, of loopback, of all, of this link alone, or reserved.
pub(super) fn is_usable(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback() && !address.is_link_local()
}

fn lease(address: Ipv4Addr, options: &Options) -> Result<Lease, String> {
    if !is_usable(address) {
        return Err(format!("{address}, which is no host's address"));
    }
    let mask = options.address(1).ok_or_else(|| format!("{address} without a subnet mask"))?;
    let prefix = u32::from(mask).leading_ones();
    if u32::from(mask).count_ones() != prefix || !(8..=32).contains(&prefix) {
        return Err(format!("{address} with the subnet mask {mask}"));
    }
    let prefix = prefix as u8;
    let net = Ipv4Network::new(address, prefix).map_err(|e| e.to_string())?;
    if prefix < 31 && (address == net.network() || address == net.broadcast()) {
        return Err(format!("{address}, which is no host's address in {}/{prefix}", net.network()));
    }
    let secs = options.secs(51).ok_or_else(|| format!("{address} without a lease time"))?;
    if secs < SHORTEST_LEASE {
        return Err(format!("{address} for {secs} seconds: less than {SHORTEST_LEASE}"));
    }
    // RFC 2131 section 4.4.5.
    let eighth = secs / 8;
    let rebind_secs = options.secs(59).filter(|t2| *t2 > EARLIEST && *t2 < secs).unwrap_or(secs - eighth);
    let renew_secs =
        options.secs(58).filter(|t1| *t1 >= EARLIEST && *t1 < rebind_secs).unwrap_or((secs / 2).min(rebind_secs - 1));
    let is_host = |g: Ipv4Addr| prefix >= 31 || g != net.network() && g != net.broadcast();
    let gateway = options.way_out().filter(|g| is_usable(*g) && *g != address && net.contains(*g) && is_host(*g));
    let dns = options.addresses(6).into_iter().filter(|a| is_usable(*a)).take(MOST_SERVERS).collect();
    let mut search = options.get(119).map(|list| domain::list(list, true)).unwrap_or_default();
    if let Some(own) = options.get(15).and_then(domain::of_text).filter(|own| !search.contains(own)) {
        search.insert(0, own);
    }
    Ok(Lease { given: Given { address, prefix, gateway, dns, search }, secs, renew_secs, rebind_secs })
}

/// The options of a message. Those that are there several times are parts of one (RFC 3396).
#[derive(Default)]
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn add(&mut self, all: DhcpOptionIterator<'_>) {
        for option in all.take(MOST_OPTIONS) {
            self.0.entry(option.code().into()).or_default().extend(option.data());
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    fn first(&self, code: u8) -> Option<u8> {
        self.get(code)?.first().copied()
    }

    fn secs(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let (all, _) = self.get(code).unwrap_or_default().as_chunks::<4>();
        all.iter().map(|octets| Ipv4Addr::from(*octets)).collect()
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.addresses(code).first().copied()
    }

    /// The default router. Where there are classless routes, it is one of these (RFC 3442).
    fn way_out(&self) -> Option<Ipv4Addr> {
        let Some(mut routes) = self.get(121) else { return self.address(3) };
        while let Some((prefix, rest)) = routes.split_first() {
            let (_, rest) = rest.split_at_checked(usize::from(prefix.div_ceil(8)))?;
            let (via, rest) = rest.split_first_chunk::<4>()?;
            if *prefix == 0 {
                return Some(Ipv4Addr::from(*via));
            }
            routes = rest;
        }
        None
    }
}
