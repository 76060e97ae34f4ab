//! What a client is told.

use super::Config;
use super::message::Query;
use super::metrics::Sent;
use crate::dns::name;
use crate::model::Mac;
use dhcproto::v4::{self, DhcpOption, Encodable, Encoder, MessageType, Opcode, OptionCode, UnknownOption};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The shortest message that clients of old take (RFC 1542 section 2.1).
const SHORTEST: usize = 300;
/// What every client takes (RFC 2131 section 2): 576 octets with the headers of IPv4 and UDP.
const LONGEST: usize = 576 - 28;
/// What fits into a frame of any Ethernet.
const FRAME: usize = 1500 - 28;
/// What a client is told that asks for nothing in particular: mask, router, DNS, its name, domain and broadcast address.
const PLAIN: [u8; 6] = [1, 3, 6, 12, 15, 28];
/// Where a frame to all goes.
const EVERYBODY: Mac = Mac([0xff; 6]);

/// A message to a client, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which it is.
    pub kind: Sent,
    /// The address that it goes to.
    pub to: Ipv4Addr,
    /// The MAC that it goes to.
    pub mac: Mac,
    /// The message.
    pub message: Vec<u8>,
}

/// What a client is given.
pub(super) struct Given<'a> {
    /// The address; unspecified when it has one, and only asks for the rest.
    pub address: Ipv4Addr,
    /// For how many seconds; for no time when it only asks for the rest.
    pub time: Option<u32>,
    /// The name that it has given itself.
    pub hostname: Option<&'a str>,
    /// Its way out leads here.
    pub has_default_route: bool,
}

impl Reply {
    /// An offer, or the word that an address is the client's.
    pub(super) fn give(kind: Sent, config: &Config, query: &Query, given: &Given<'_>) -> Self {
        let message_type = if kind == Sent::Offer { MessageType::Offer } else { MessageType::Ack };
        let mut message = message(config, query, message_type);
        // RFC 2131 section 4.3.1, table 3: an offer has no address of the client's.
        if kind == Sent::Ack {
            message.set_ciaddr(query.ciaddr);
        }
        message.set_yiaddr(given.address);
        let opts = message.opts_mut();
        if let Some(time) = given.time {
            for (code, time) in [(51, time), (58, time / 2), (59, time - time / 8)] {
                opts.insert(option(code, &time.to_be_bytes()));
            }
        }
        let mut wanted = wanted(config, query, given);
        wanted.iter().for_each(|(code, octets)| drop(opts.insert(option(*code, octets))));
        let most = usize::from(query.most.unwrap_or(0)).saturating_sub(28).clamp(LONGEST, FRAME);
        let mut bytes = encode(&message);
        // What the client needs least is left out.
        while bytes.len() > most
            && let Some((code, _)) = wanted.pop()
        {
            message.opts_mut().remove(OptionCode::from(code));
            bytes = encode(&message);
        }
        // RFC 2131 section 4.1.
        let (to, mac) = if !query.ciaddr.is_unspecified() {
            (query.ciaddr, query.mac)
        } else if query.flags & 0x8000 != 0 {
            (Ipv4Addr::BROADCAST, EVERYBODY)
        } else {
            (given.address, query.mac)
        };
        Self { kind, to, mac, message: bytes }
    }

    /// The word that an address is not the client's. It goes to all: the client may listen to no address that it has.
    pub(super) fn refuse(config: &Config, query: &Query) -> Self {
        let message = message(config, query, MessageType::Nak);
        Self { kind: Sent::Nak, to: Ipv4Addr::BROADCAST, mac: EVERYBODY, message: encode(&message) }
    }
}

fn message(config: &Config, query: &Query, kind: MessageType) -> v4::Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(query.xid, none, none, none, none, &query.mac.0);
    message.set_opcode(Opcode::BootReply).set_flags(query.flags.into());
    let opts = message.opts_mut();
    opts.insert(DhcpOption::MessageType(kind));
    opts.insert(DhcpOption::ServerIdentifier(config.server));
    // RFC 6842: two clients may have one MAC.
    if let Some(client) = &query.client {
        opts.insert(DhcpOption::ClientIdentifier(client.octets().to_vec()));
    }
    message
}

fn option(code: u8, octets: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), octets.to_vec()))
}

/// `message` with padding, so that it is as long as old clients ask for.
fn encode(message: &v4::Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONGEST);
    // It fails when a count of octets is more than 16 bits hold, and options have 255 at most.
    if message.encode(&mut Encoder::new(&mut bytes)).is_err() {
        bytes.clear();
    }
    bytes.resize(bytes.len().max(SHORTEST), 0);
    bytes
}

/// The options that the client asks for, with what they say, the one that it needs most first. One that asks for none in
/// particular gets what all understand.
fn wanted(config: &Config, query: &Query, given: &Given<'_>) -> Vec<(u8, Vec<u8>)> {
    let mut codes: Vec<u8> = Vec::new();
    // Without the mask an address is worth little, so it is always there.
    for code in [1].iter().chain(query.wants.as_deref().unwrap_or(&PLAIN)) {
        if !codes.contains(code) {
            codes.push(*code);
        }
    }
    let of = |code: u8| Some((code, octets(code, config, query, given)?));
    codes.into_iter().filter_map(of).collect()
}

fn octets(code: u8, config: &Config, query: &Query, given: &Given<'_>) -> Option<Vec<u8>> {
    let settings = &config.settings;
    let some = |octets: Vec<u8>| (!octets.is_empty() && octets.len() <= 255).then_some(octets);
    match code {
        1 => Some(config.net.mask().octets().to_vec()),
        // RFC 3442: who gets classless routes does not look at this one, and has the way out among them.
        3 => given.has_default_route.then(|| config.server.octets().to_vec()),
        6 => config.has_dns.then(|| config.server.octets().to_vec()),
        12 => given.hostname.map(|name| name.as_bytes().to_vec()),
        15 => some(config.domain.as_bytes().to_vec()).filter(|_| config.has_dns),
        26 => u16::try_from(config.mtu).ok().map(|mtu| mtu.to_be_bytes().to_vec()),
        28 => Some(config.net.broadcast().octets().to_vec()),
        42 => some(settings.ntp.iter().flat_map(Ipv4Addr::octets).collect()),
        114 => settings.captive_portal.as_ref().and_then(|portal| some(portal.as_bytes().to_vec())),
        119 if !config.has_dns => None,
        119 => name::from_text(&config.domain).and_then(|name| some(wire(&name))),
        121 if settings.routes.is_empty() => None,
        121 => {
            let all = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok().filter(|_| given.has_default_route);
            let way_out = all.map(|all| (all, config.server));
            some(way_out.iter().chain(&settings.routes).flat_map(route).collect())
        }
        _ => settings.options.get(&code).cloned(),
    }
    .filter(|_| query.wants.is_some() || PLAIN.contains(&code))
}

/// A name on the wire, without compression.
fn wire(name: &name::Name) -> Vec<u8> {
    let label = |label: &[u8]| [&[label.len() as u8], label].concat();
    name.iter().flat_map(label).chain([0]).collect()
}

/// RFC 3442: the length of the prefix, as many octets of it as it has, and the next hop.
fn route((to, via): &(Ipv4Network, Ipv4Addr)) -> Vec<u8> {
    let significant = usize::from(to.prefix().div_ceil(8));
    let (net, via) = (to.network().octets(), via.octets());
    [&[to.prefix()], net.get(..significant).unwrap_or_default(), &via].concat()
}
