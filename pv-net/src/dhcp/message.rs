//! What a client says.
//!
//! `dhcproto` finds the options; of the fixed fields only as many octets are read as there are. Its owned messages are not
//! used, for one option that is not right would end the reading of all behind it.

use super::hostname;
use crate::ipam::ClientId;
use crate::model::Mac;
use dhcproto::v4::borrowed::{DhcpOptionIterator, Message};
use dhcproto::v4::{Flags, HType, MAGIC, MessageType, Opcode, OptionCode};
use std::net::Ipv4Addr;

/// Where servers listen.
pub const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Octets of a message before its options, with the magic cookie.
const FIXED: usize = 240;
const COOKIE: std::ops::Range<usize> = 236..240;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// Octets of an Ethernet address.
const ETHERNET: u8 = 6;
/// Options of one message that are looked at. Clients send a dozen.
const MOST_OPTIONS: usize = 128;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who has an address for me?
    Discover,
    /// I take this one, or go on with it.
    Request,
    /// Somebody else uses the address.
    Decline,
    /// I need the address no more.
    Release,
    /// I have an address, and want to know the rest.
    Inform,
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What it asks for.
    pub kind: Kind,
    /// The number that answers repeat.
    pub xid: u32,
    /// Flags as they came: the first bit is that of broadcast, and answers repeat it (RFC 2131 section 2).
    pub flags: u16,
    /// The address that the client uses; the unspecified one when it has none.
    pub ciaddr: Ipv4Addr,
    /// The client's MAC.
    pub mac: Mac,
    /// Who it says that it is.
    pub client: Option<ClientId>,
    /// The address that it asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server that it speaks to; all when there is none.
    pub server: Option<Ipv4Addr>,
    /// The name that it gives itself, as a label.
    pub hostname: Option<String>,
    /// Options that it asks for, the ones that it needs most first.
    pub wants: Option<Vec<u8>>,
    /// The largest message that it takes, in octets.
    pub most: Option<u16>,
    /// Seconds that it wants the address for.
    pub lease_time: Option<u32>,
}

/// Why a message is not answered, whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is no message, or an option that matters has not the octets that it must have.
    Malformed,
    /// It is one of BOOTP.
    Bootp,
    /// A relay agent passed it on: whoever it is from is not on the bridge.
    Relayed,
    /// It is not from a client, or asks for what is not of RFC 2131.
    Other,
}

/// The message in the payload of a datagram.
///
/// # Errors
/// Why it is not answered.
pub fn read(bytes: &[u8]) -> Result<Query, Unread> {
    if bytes.len() < COOKIE.start {
        return Err(Unread::Malformed);
    }
    // Without the cookie there are no options, so it is BOOTP (RFC 1497).
    if bytes.get(COOKIE) != Some(&MAGIC) {
        return Err(if Opcode::from(bytes[0]) == Opcode::BootRequest { Unread::Bootp } else { Unread::Malformed });
    }
    let message = Message::new(bytes).map_err(|_| Unread::Malformed)?;
    if message.opcode() != Opcode::BootRequest {
        return Err(Unread::Other);
    }
    // Before the address is read: its length may be more than there is.
    if message.htype() != HType::Eth || message.hlen() != ETHERNET {
        return Err(Unread::Malformed);
    }
    let mac = message.chaddr().try_into().map_err(|_| Unread::Malformed)?;
    let flags: Flags = message.flags();
    let mut query = Query {
        kind: Kind::Discover,
        xid: message.xid(),
        flags: flags.into(),
        ciaddr: message.ciaddr(),
        mac: unicast(mac).ok_or(Unread::Malformed)?,
        client: None,
        requested: None,
        server: None,
        hostname: None,
        wants: None,
        most: None,
        lease_time: None,
    };
    let (kind, overload) = options(message.opts(), &mut query)?;
    let (mut kind, file, sname) = (kind, overload & 1 != 0, overload & 2 != 0);
    // RFC 2131 section 4.1: the file first.
    for field in [(file, FILE), (sname, SNAME)].into_iter().filter_map(|(used, at)| used.then(|| bytes.get(at))) {
        let (more, _) = options(DhcpOptionIterator::new(field.unwrap_or_default()), &mut query)?;
        kind = kind.or(more);
    }
    let Some(kind) = kind else { return Err(Unread::Bootp) };
    if !message.giaddr().is_unspecified() {
        return Err(Unread::Relayed);
    }
    query.kind = match kind {
        MessageType::Discover => Kind::Discover,
        MessageType::Request => Kind::Request,
        MessageType::Decline => Kind::Decline,
        MessageType::Release => Kind::Release,
        MessageType::Inform => Kind::Inform,
        _ => return Err(Unread::Other),
    };
    debug_assert!(bytes.len() >= FIXED);
    Ok(query)
}

/// Reads options into `query`. Gives back the message's type, and which fields have more of them.
fn options(all: DhcpOptionIterator<'_>, query: &mut Query) -> Result<(Option<MessageType>, u8), Unread> {
    let (mut kind, mut overload) = (None, 0);
    for option in all.take(MOST_OPTIONS) {
        let data = option.data();
        match option.code() {
            OptionCode::MessageType => kind = Some(MessageType::from(exactly::<1>(data)?[0])),
            OptionCode::OptionOverload => overload = exactly::<1>(data)?[0],
            OptionCode::RequestedIpAddress => query.requested = Some(exactly::<4>(data)?.into()),
            OptionCode::ServerIdentifier => query.server = Some(exactly::<4>(data)?.into()),
            OptionCode::AddressLeaseTime => query.lease_time = Some(u32::from_be_bytes(exactly(data)?)),
            OptionCode::MaxMessageSize => query.most = Some(u16::from_be_bytes(exactly(data)?)),
            OptionCode::ClientIdentifier => query.client = Some(ClientId::new(data).ok_or(Unread::Malformed)?),
            OptionCode::ParameterRequestList => query.wants = Some(data.iter().copied().take(255).collect()),
            // Whatever it is, it is no reason to give the client no address.
            OptionCode::Hostname => query.hostname = hostname::label(data).or_else(|| query.hostname.take()),
            OptionCode::ClientFQDN => query.hostname = query.hostname.take().or_else(|| hostname::of_fqdn(data)),
            _ => {}
        }
    }
    Ok((kind, overload))
}

fn exactly<const N: usize>(data: &[u8]) -> Result<[u8; N], Unread> {
    data.try_into().map_err(|_| Unread::Malformed)
}

/// The address of one interface; none that is a group's, or nobody's.
fn unicast(octets: [u8; 6]) -> Option<Mac> {
    (octets[0] & 1 == 0 && octets != [0; 6]).then_some(Mac(octets))
}
