//! The reply to a client's message.

use super::choose::choose;
use super::fqdn;
use super::held::Held;
use super::metrics::Ended;
use crate::dns::name;
use crate::ipam::{ClientId, ClientKey, ClientLease, Lease, is_one_machine};
use crate::lease::Step;
use crate::model::{Mac, PoolDhcp6, PoolName};
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, NtpSuboption, OptionCode, Status, StatusCode,
};
use ipnetwork::Ipv6Network;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The length of a DUID (RFC 8415 section 11.1): a type, and 1 to 128 octets.
const DUID: RangeInclusive<usize> = 3..=130;
/// How many associations of one message are answered. Clients usually have one.
const MOST_ASSOCIATIONS: usize = 4;
/// How many clients of a pool are remembered, with current or former leases.
const MOST_CLIENTS: usize = 4096;
/// How many addresses of a pool a client may have at a time, by its MAC: the associations of two messages.
const MOST_OF_ONE: usize = 8;
/// How long an address that was offered is kept for its client.
const OFFERED: Duration = Duration::from_secs(30);
/// How long a declined address is given to nobody.
const DECLINED: Duration = Duration::from_secs(3600);

/// What a pool's server knows.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// Its identity.
    pub duid: &'a [u8],
    /// The pool.
    pub pool: &'a PoolName,
    /// The pool's network.
    pub net: Ipv6Network,
    /// The settings.
    pub settings: &'a PoolDhcp6,
    /// The DNS server.
    pub dns: Option<Ipv6Addr>,
    /// The search domain.
    pub domain: &'a str,
    /// `Some` if the sender is a container: the IPv6 address of its lease, if it has one.
    pub container: Option<Option<Ipv6Addr>>,
}

/// All leases, at a time.
#[derive(Clone, Copy, Debug)]
pub struct Book<'a> {
    /// Leases of containers.
    pub leases: &'a [Arc<Lease>],
    /// Leases of clients.
    pub clients: &'a [Arc<ClientLease>],
    /// Seconds since 1970 (UTC).
    pub unix: u64,
    /// The same moment.
    pub now: Instant,
}

/// The message is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored;

/// The answer to a message.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Message,
    /// What must be in the lease book before the reply is sent.
    pub steps: Vec<Step>,
    /// For the counters.
    pub ended: Ended,
}

/// What a client wants of its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    /// To be offered some.
    Offer,
    /// To be given some.
    Lease,
    /// To keep those that it has.
    Keep,
}

/// Answers a message of `from`, a link-local address.
///
/// # Errors
/// [`Ignored`] for what is not for this server, or not as RFC 8415 section 16 has it.
pub fn answer(
    server: &Server<'_>,
    request: &Message,
    from: Ipv6Addr,
    book: Book<'_>,
    held: &mut Held,
) -> Result<Answer, Ignored> {
    let opts = request.opts();
    let kind = request.msg_type();
    let duid = match (opts.get(OptionCode::ClientId), kind) {
        (Some(DhcpOption::ClientId(duid)), _) if DUID.contains(&duid.len()) => Some(duid.as_slice()),
        // An information request need not identify the client (RFC 8415 section 18.2.6).
        (None, MessageType::InformationRequest) => None,
        _ => return Err(Ignored),
    };
    let names_us = match (opts.get(OptionCode::ServerId), kind) {
        (Some(DhcpOption::ServerId(id)), _) if id != server.duid => return Err(Ignored),
        (id, _) => id.is_some(),
    };
    let must = matches!(kind, MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline);
    let must_not = matches!(kind, MessageType::Solicit | MessageType::Confirm | MessageType::Rebind);
    if must && !names_us || must_not && names_us {
        return Err(Ignored);
    }
    let (duid_or_none, named) = (duid.unwrap_or_default(), fqdn::said(opts));
    let mut talk = Talk { server, duid: duid_or_none, from, named, book, held, steps: Vec::new(), given: 0 };
    let mut out = vec![DhcpOption::ServerId(server.duid.to_vec())];
    out.extend(duid.map(|duid| DhcpOption::ClientId(duid.to_vec())));
    let mut ended = Ended::Answered;
    let reply_kind = match kind {
        MessageType::Solicit => {
            let is_rapid = opts.get(OptionCode::RapidCommit).is_some();
            let associations = talk.associations(opts, if is_rapid { Want::Lease } else { Want::Offer })?;
            if talk.given == 0 {
                ended = Ended::NoAddress;
            }
            out.extend(associations.into_iter().map(DhcpOption::IANA));
            if is_rapid {
                out.push(DhcpOption::RapidCommit);
            }
            if is_rapid { MessageType::Reply } else { MessageType::Advertise }
        }
        MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            let want = if kind == MessageType::Request { Want::Lease } else { Want::Keep };
            let associations = talk.associations(opts, want)?;
            if talk.given == 0 {
                ended = Ended::NoAddress;
            }
            out.extend(associations.into_iter().map(DhcpOption::IANA));
            MessageType::Reply
        }
        MessageType::Confirm => {
            out.push(status(talk.confirm(opts)?));
            MessageType::Reply
        }
        MessageType::Release | MessageType::Decline => {
            let unknown = talk.end(opts, kind == MessageType::Decline);
            out.extend(unknown.into_iter().map(DhcpOption::IANA));
            out.push(status(Status::Success));
            MessageType::Reply
        }
        MessageType::InformationRequest if opts.get(OptionCode::IANA).is_none() => MessageType::Reply,
        _ => return Err(Ignored),
    };
    let steps = std::mem::take(&mut talk.steps);
    if !matches!(kind, MessageType::Confirm | MessageType::Release | MessageType::Decline) {
        out.extend(server.told(opts, kind == MessageType::InformationRequest));
    }
    let mut reply = Message::new_with_id(reply_kind, request.xid());
    reply.set_opts(out.into_iter().collect());
    Ok(Answer { reply, steps, ended })
}

impl Server<'_> {
    /// The options that the client asks for (RFC 8415 section 21.7). `is_all`: it asks for nothing else.
    fn told(&self, request: &DhcpOptions, is_all: bool) -> Vec<DhcpOption> {
        let asked = match request.get(OptionCode::ORO) {
            Some(DhcpOption::ORO(list)) => list.opts.as_slice(),
            _ => &[],
        };
        let mut told = Vec::new();
        if let Some(server) = self.dns.filter(|_| asked.contains(&OptionCode::DomainNameServers)) {
            told.push(DhcpOption::DomainNameServers(vec![server]));
        }
        if self.dns.is_some()
            && asked.contains(&OptionCode::DomainSearchList)
            && let Some(domain) = name::from_text(self.domain)
        {
            told.push(DhcpOption::DomainSearchList(vec![domain.into()]));
        }
        if !self.settings.ntp.is_empty() && asked.contains(&OptionCode::NtpServer) {
            let servers = self.settings.ntp.iter().map(|server| NtpSuboption::ServerAddress(*server));
            told.push(DhcpOption::NtpServer(servers.collect()));
        }
        if is_all {
            // When the client asks again (RFC 8415 section 21.23): at least ten minutes.
            told.push(DhcpOption::InformationRefreshTime(self.settings.lease_secs.max(600)));
        }
        told
    }
}

/// One message that is being answered.
struct Talk<'a, 'b> {
    server: &'a Server<'a>,
    duid: &'a [u8],
    from: Ipv6Addr,
    /// What the message says of the client's name.
    named: Option<Option<String>>,
    book: Book<'a>,
    held: &'b mut Held,
    steps: Vec<Step>,
    /// How many valid addresses the reply has.
    given: usize,
}

impl Talk<'_, '_> {
    /// The client's associations, as they are answered.
    fn associations(&mut self, opts: &DhcpOptions, want: Want) -> Result<Vec<IANA>, Ignored> {
        let answered = |(n, ia)| self.association(ia, want, n == 0);
        associations(opts).into_iter().enumerate().map(answered).collect()
    }

    fn association(&mut self, asked: &IANA, want: Want, is_first: bool) -> Result<IANA, Ignored> {
        let client = self.identity(asked.id).ok_or(Ignored)?;
        let wanted: Vec<Ipv6Addr> = addresses(asked).collect();
        let found = match self.server.container {
            // A container has one address, whatever it asks for.
            Some(own) => own.filter(|own| is_first && self.server.net.contains(*own)),
            None => self.of_client(&client, &wanted, want),
        };
        let secs = self.server.settings.lease_secs;
        let mut opts = DhcpOptions::new();
        // Addresses that the client must not use any more have lifetime 0 (RFC 8415 section 18.3.4). The option that is
        // inserted last comes first.
        let others = wanted.iter().filter(|address| want == Want::Keep && Some(**address) != found && found.is_some());
        others.take(MOST_ASSOCIATIONS).for_each(|address| opts.insert(lifetime(*address, 0)));
        if let Some(address) = found {
            self.given += 1;
            opts.insert(lifetime(address, secs));
        } else {
            let none = if want == Want::Keep { Status::NoBinding } else { Status::NoAddrsAvail };
            opts.insert(status(none));
        }
        let (t1, t2) = if found.is_some() { (secs / 2, secs / 5 * 4) } else { (0, 0) };
        Ok(IANA { id: asked.id, t1, t2, opts })
    }

    /// An address of the range for a client. The steps for the lease book are noted.
    fn of_client(&mut self, client: &ClientId, wanted: &[Ipv6Addr], want: Want) -> Option<Ipv6Addr> {
        let range = self.server.settings.range?;
        let key = self.key(client);
        let own = self.lease(&key);
        let held = self.held.of(client, self.book.now);
        let may = |address: &Ipv6Addr| (range.0..=range.1).contains(address) && self.is_free(*address, &key, true);
        let had = own.map(|lease| lease.address).and_then(v6).filter(may);
        if own.is_none_or(|lease| lease.is_over(self.book.unix)) && !self.may_have_more(range, &key) {
            return None;
        }
        // The address that a client names is one more to remember, too.
        let has_room = own.is_some() || self.remembered() + self.lent().count() < MOST_CLIENTS;
        let named = || wanted.iter().copied().filter(|_| has_room).find(may);
        let address = match want {
            // A client that renews an unknown address gets it only if it is free.
            Want::Keep => had.filter(|had| wanted.contains(had)).or_else(named).or(had)?,
            _ => had
                .or(held.filter(|address| has_room && may(address)))
                .or_else(named)
                .or_else(|| self.new_one(range, &key))?,
        };
        if want == Want::Offer {
            self.held.hold(address, Some(client.clone()), self.book.now + OFFERED, self.book.now);
            return Some(address);
        }
        let hostname = self.hostname(client, own);
        // A former lease of somebody else ends first.
        let before = self.book.clients.iter().find(|lease| lease.address == address && lease.key() != key);
        self.steps.extend(before.map(|lease| Step::End(lease.key())));
        let lease = ClientLease {
            pool: self.server.pool.clone(),
            client: client.clone(),
            address: address.into(),
            mac: mac_of(self.from, self.duid),
            hostname,
            expires: self.book.unix + u64::from(self.server.settings.lease_secs),
        };
        self.steps.push(Step::Lend(Arc::new(lease)));
        Some(address)
    }

    /// The client that an association belongs to. Machines that were copied have the same DUID, and a DUID is no secret:
    /// who uses one whose lease another MAC has is a client of its own.
    fn identity(&self, iaid: u32) -> Option<ClientId> {
        let said = ClientId::of_association(iaid, self.duid)?;
        let live = self.lease(&self.key(&said)).filter(|lease| !lease.is_over(self.book.unix));
        match (live.and_then(|lease| lease.mac), mac_of(self.from, self.duid)) {
            (Some(a), Some(b)) if a != b => ClientId::of_association(iaid, &[self.duid, &b.0].concat()),
            _ => Some(said),
        }
    }

    /// The name that a client has from now on: the one that it gives, unless another machine has that, or else the one that
    /// it has.
    fn hostname(&self, client: &ClientId, own: Option<&ClientLease>) -> Option<String> {
        let before = own.and_then(|lease| lease.hostname.clone());
        let name = self.named.clone().unwrap_or(before.clone())?;
        let me = (client, mac_of(self.from, self.duid));
        let has_it = |lease: &&Arc<ClientLease>| {
            lease.pool == *self.server.pool
                && lease.hostname.as_ref() == Some(&name)
                && !lease.is_over(self.book.unix)
                && !is_one_machine(me, (&lease.client, lease.mac))
        };
        let is_others = before.as_ref() != Some(&name) && self.book.clients.iter().any(|lease| has_it(&lease));
        (!is_others).then_some(name)
    }

    /// How many clients of the pool are remembered.
    fn remembered(&self) -> usize {
        self.book.clients.iter().filter(|l| l.pool == *self.server.pool && l.address.is_ipv6()).count()
    }

    /// Whether a client without a current lease may have one: one MAC has only so many, and senders whose MAC cannot be
    /// told share half of the range.
    fn may_have_more(&self, range: (Ipv6Addr, Ipv6Addr), key: &ClientKey) -> bool {
        let mac = mac_of(self.from, self.duid);
        let is_live = |l: &&Arc<ClientLease>| {
            l.pool == key.pool && l.address.is_ipv6() && l.mac == mac && !l.is_over(self.book.unix) && l.key() != *key
        };
        let has = self.book.clients.iter().filter(is_live).count() + self.lent().count();
        let size = (u128::from(range.1) - u128::from(range.0)).saturating_add(1);
        let shared = usize::try_from(size.div_ceil(2)).unwrap_or(usize::MAX).min(MOST_CLIENTS / 2);
        has < if mac.is_some() { MOST_OF_ONE } else { shared }
    }

    /// An address that nobody has had yet, or else the one whose lease ended first.
    fn new_one(&self, range: (Ipv6Addr, Ipv6Addr), key: &ClientKey) -> Option<Ipv6Addr> {
        let clients = self.book.clients.iter().filter(|lease| lease.pool == key.pool && lease.address.is_ipv6());
        let count = clients.clone().count();
        if count < MOST_CLIENTS {
            // Among this many addresses of the range, at least one is not taken.
            let most = count + self.book.leases.len() + self.held.len() + 1;
            let taken: HashMap<IpAddr, ()> = self.taken().collect();
            let is_free = |address: Ipv6Addr| {
                !taken.contains_key(&address.into()) && self.held.is_free_for(address, &key.client, self.book.now)
            };
            let found = choose(range, key.client.octets(), most, is_free);
            if found.is_some() {
                return found;
            }
        }
        let over = clients.filter(|lease| lease.is_over(self.book.unix));
        let mut over: Vec<(u64, Ipv6Addr)> = over.filter_map(|l| Some((l.expires, v6(l.address)?))).collect();
        over.sort_unstable();
        let may = |address: &Ipv6Addr| (range.0..=range.1).contains(address) && self.is_free(*address, key, true);
        over.into_iter().map(|(_, address)| address).find(may)
    }

    fn taken(&self) -> impl Iterator<Item = (IpAddr, ())> {
        let containers = self.book.leases.iter().flat_map(|lease| lease.addresses());
        let clients = self.book.clients.iter().map(|lease| lease.address);
        containers.chain(clients).chain(self.lent()).map(|address| (address, ()))
    }

    /// The addresses that this message's associations have been given so far.
    fn lent(&self) -> impl Iterator<Item = IpAddr> {
        self.steps.iter().filter_map(|step| if let Step::Lend(lease) = step { Some(lease.address) } else { None })
    }

    /// Whether the client may have the address: nobody else has it, no other association of this message has just been
    /// given it, and it is held for nobody else. `or_over`: a lease that has ended does not count.
    fn is_free(&self, address: Ipv6Addr, key: &ClientKey, or_over: bool) -> bool {
        let is_other = |lease: &Arc<ClientLease>| {
            lease.address == address && lease.key() != *key && !(or_over && lease.is_over(self.book.unix))
        };
        let of_container = |lease: &Arc<Lease>| lease.ipv6 == Some(address);
        !self.book.clients.iter().any(is_other)
            && !self.book.leases.iter().any(of_container)
            && !self.lent().any(|lent| lent == address)
            && self.held.is_free_for(address, &key.client, self.book.now)
    }

    /// Whether the client's addresses belong to this link (RFC 8415 section 18.3.3).
    fn confirm(&self, opts: &DhcpOptions) -> Result<Status, Ignored> {
        let mut asked = associations(opts).into_iter().flat_map(addresses).peekable();
        asked.peek().ok_or(Ignored)?;
        let fits = |address: Ipv6Addr| match self.server.container {
            Some(own) => own == Some(address),
            None => self.server.net.contains(address),
        };
        Ok(if asked.all(fits) { Status::Success } else { Status::NotOnLink })
    }

    /// Ends the leases that the client names, and holds the addresses back if they were declined. Returns the
    /// associations without such a lease.
    fn end(&mut self, opts: &DhcpOptions, is_declined: bool) -> Vec<IANA> {
        let mut unknown = Vec::new();
        for ia in associations(opts) {
            // The lease of a container ends only with its attachment.
            let key = self.identity(ia.id).map(|client| self.key(&client));
            // Not of anybody who has heard its DUID.
            let mac = mac_of(self.from, self.duid);
            let is_own = |lease: &&ClientLease| self.server.container.is_none() && lease.mac == mac;
            let lease = key.as_ref().and_then(|key| self.lease(key)).filter(is_own);
            let known = lease.and_then(|lease| Some((lease.key(), v6(lease.address)?)));
            match known.filter(|(_, address)| addresses(ia).any(|a| a == *address)) {
                Some((key, address)) => {
                    if is_declined {
                        self.held.hold(address, None, self.book.now + DECLINED, self.book.now);
                    }
                    self.steps.push(Step::End(key));
                }
                None if self.server.container.is_some_and(|own| addresses(ia).any(|a| own == Some(a))) => {}
                None => {
                    let opts = [status(Status::NoBinding)].into_iter().collect();
                    unknown.push(IANA { id: ia.id, t1: 0, t2: 0, opts });
                }
            }
        }
        unknown
    }

    fn key(&self, client: &ClientId) -> ClientKey {
        ClientKey { pool: self.server.pool.clone(), client: client.clone(), v6: true }
    }

    fn lease(&self, key: &ClientKey) -> Option<&ClientLease> {
        self.book.clients.iter().find(|lease| lease.key() == *key).map(AsRef::as_ref)
    }
}

/// The associations of a message that are answered. One that is named twice is one.
fn associations(opts: &DhcpOptions) -> Vec<&IANA> {
    let mut all: Vec<&IANA> = Vec::new();
    for option in opts.get_all(OptionCode::IANA).unwrap_or_default().iter().take(MOST_ASSOCIATIONS) {
        match option {
            DhcpOption::IANA(ia) if all.iter().all(|other| other.id != ia.id) => all.push(ia),
            _ => {}
        }
    }
    all
}

fn addresses(ia: &IANA) -> impl Iterator<Item = Ipv6Addr> {
    let all = ia.opts.get_all(OptionCode::IAAddr).unwrap_or_default();
    all.iter().filter_map(|option| if let DhcpOption::IAAddr(a) = option { Some(a.addr) } else { None })
}

fn lifetime(addr: Ipv6Addr, secs: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr { addr, preferred_life: secs, valid_life: secs, opts: DhcpOptions::new() })
}

fn status(status: Status) -> DhcpOption {
    let msg = match status {
        Status::Success => "",
        Status::NoAddrsAvail => "the pool has no address for this client",
        Status::NoBinding => "this client has no such address",
        Status::NotOnLink => "an address is of another link",
        _ => "it cannot be",
    };
    DhcpOption::StatusCode(StatusCode { status, msg: msg.to_owned() })
}

const fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// The client's MAC, where its link-local address is made of one (RFC 4291 appendix A), or its DUID has one (types 1
/// and 3 of RFC 8415 section 11, with the hardware type of Ethernet).
fn mac_of(from: Ipv6Addr, duid: &[u8]) -> Option<Mac> {
    let [.., a, b, c, 0xff, 0xfe, d, e, f] = from.octets() else {
        return match duid {
            [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => mac.try_into().ok().map(Mac),
            _ => None,
        };
    };
    Some(Mac([a ^ 2, b, c, d, e, f]))
}
