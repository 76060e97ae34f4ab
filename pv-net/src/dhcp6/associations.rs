//! The addresses of a client: its identity associations (RFC 8415 section 4.2), each of which has one.

use super::choose::choose;
use super::server::{Ignored, Server};
use super::table::{Table, v6};
use crate::dhcp::{Now, Origin};
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use dhcproto::v6::{DhcpOption, DhcpOptions, IAAddr, IANA, OptionCode, Status, StatusCode};
use std::net::Ipv6Addr;
use std::sync::Arc;

/// How many associations of one message are answered. Clients usually have one.
const MOST_ASSOCIATIONS: usize = 4;

/// What a client wants of its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// To be offered some.
    Offer,
    /// To be given some.
    Lease,
    /// To keep those that it has.
    Keep,
}

/// One message that is being answered.
pub(super) struct Talk<'a, 'b> {
    server: &'a Server<'a>,
    duid: &'a [u8],
    from: Origin,
    table: &'b mut Table,
    now: Now,
    /// What the message says of the client's name.
    named: Option<Option<String>>,
    /// What must be in the lease book before the reply is sent.
    pub steps: Vec<Step>,
    /// How many valid addresses the reply has.
    pub given: usize,
}

impl<'a, 'b> Talk<'a, 'b> {
    /// One with the client of this DUID.
    pub fn new(server: &'a Server<'a>, duid: &'a [u8], from: Origin, table: &'b mut Table, now: Now) -> Self {
        Self { server, duid, from, table, now, named: None, steps: Vec::new(), given: 0 }
    }

    /// With what the message says of the client's name.
    pub fn named(self, named: Option<Option<String>>) -> Self {
        Self { named, ..self }
    }

    /// The client's associations, as they are answered.
    pub fn associations(&mut self, opts: &DhcpOptions, want: Want) -> Result<Vec<IANA>, Ignored> {
        let answered = |(n, ia)| self.association(ia, want, n == 0);
        associations(opts).into_iter().enumerate().map(answered).collect()
    }

    fn association(&mut self, asked: &IANA, want: Want, is_first: bool) -> Result<IANA, Ignored> {
        let client = self.identity(asked.id)?;
        let wanted: Vec<Ipv6Addr> = addresses(asked).collect();
        let found = match self.server.container {
            // A container has one address, whatever it asks for.
            Some(own) => {
                let own = own.filter(|own| is_first && self.server.net.contains(*own));
                own.map(|own| (own, self.server.settings.lease_secs))
            }
            None => self.of_client(&client, &wanted, want),
        };
        let (found, secs) = found.map_or((None, 0), |(address, secs)| (Some(address), secs));
        let mut opts = DhcpOptions::new();
        // Addresses that the client must not use any more have lifetime 0 (RFC 8415 section 18.3.4). The option that is
        // inserted last comes first.
        let is_dead = |address: &&Ipv6Addr| {
            let is_of_link = self.server.net.contains(**address);
            want == Want::Keep && Some(**address) != found && (found.is_some() || !is_of_link)
        };
        let dead: Vec<_> = wanted.iter().filter(is_dead).take(MOST_ASSOCIATIONS).collect();
        dead.iter().for_each(|address| opts.insert(lifetime(**address, 0)));
        if let Some(address) = found {
            self.given += 1;
            opts.insert(lifetime(address, secs));
        } else if dead.is_empty() {
            let none = if want == Want::Keep { Status::NoBinding } else { Status::NoAddrsAvail };
            opts.insert(status(none));
        }
        Ok(IANA { id: asked.id, t1: secs / 2, t2: secs / 5 * 4, opts })
    }

    /// An address of the range for a client, and for how many seconds. The steps for the lease book are noted.
    fn of_client(&mut self, client: &ClientId, wanted: &[Ipv6Addr], want: Want) -> Option<(Ipv6Addr, u32)> {
        let (range, now) = (self.server.settings.range?, self.now);
        let own = self.table.lease(client).cloned();
        let held = self.table.offer(client, now).map(|(address, _)| address);
        let (of_port, secs) = (self.server.settings.leases_per_port, self.server.settings.lease_secs);
        let more = u32::try_from(self.lent().count()).unwrap_or(u32::MAX);
        if !self.table.may_have_more(client, self.from, of_port, more, now) {
            return None;
        }
        let may = |address: &Ipv6Addr| self.may(range, *address, client);
        let had = own.as_ref().and_then(|lease| v6(lease.address)).filter(may);
        // The address that a client names is one more to remember, too.
        let has_room = own.is_some() || self.table.has_room(self.lent().count());
        let named = || wanted.iter().copied().filter(|_| has_room).find(may);
        let address = match want {
            // A client that renews an unknown address gets it only if it is free.
            Want::Keep => had.filter(|had| wanted.contains(had)).or_else(named).or(had)?,
            _ => match had.or(held.filter(|address| has_room && may(address))).or_else(named) {
                Some(address) => address,
                None => self.new_one(range, client, has_room)?,
            },
        };
        if want == Want::Offer {
            self.table.hold(address, client, self.from, now);
            return Some((address, secs));
        }
        let hostname = self.hostname(own.as_deref());
        let lease = ClientLease {
            pool: self.server.pool.clone(),
            client: client.clone(),
            address: address.into(),
            mac: Some(self.from.mac),
            hostname,
            port: Some(self.from.port),
            expires: now.unix + u64::from(secs),
        };
        if let Some(left) = own.and_then(|own| own.left_instead_of(&lease, now.unix)) {
            self.table.seen(client, self.from.port);
            return Some((address, left));
        }
        // A former lease of somebody else ends first. If this message has given him another one before, that has taken
        // the place of his former one, and must not end.
        let before = self.table.holder(address).filter(|holder| *holder != client && !self.has_been_lent(holder));
        self.steps.extend(before.and_then(|holder| self.table.lease(holder)).map(|lease| Step::End(lease.key())));
        self.steps.push(Step::Lend(Arc::new(lease)));
        Some((address, secs))
    }

    /// The name that a client gives itself, or gave itself last. The lease book alone knows whether it is another's.
    fn hostname(&self, own: Option<&ClientLease>) -> Option<String> {
        self.named.clone().unwrap_or_else(|| own.and_then(|lease| lease.hostname.clone()))
    }

    /// The client that an association belongs to. Machines that were copied have the same DUID, and a DUID is no secret:
    /// who uses one whose lease another MAC has is a client of its own.
    ///
    /// # Errors
    /// While its lease is being written.
    fn identity(&self, iaid: u32) -> Result<ClientId, Ignored> {
        let said = ClientId::of_association(iaid, self.duid).ok_or(Ignored)?;
        let live = self.table.lease(&said).filter(|lease| !lease.is_over(self.now.unix));
        let offered = self.table.offer(&said, self.now).and_then(|(_, from)| from);
        let client = match live.map_or(offered.map(|from| from.mac), |lease| lease.mac) {
            Some(mac) if mac != self.from.mac => {
                ClientId::of_association(iaid, &[self.duid, &self.from.mac.0].concat()).ok_or(Ignored)?
            }
            _ => said,
        };
        if self.table.is_writing(&client) { Err(Ignored) } else { Ok(client) }
    }

    /// Whether the client may have the address: it is one of the range, nobody else has it, and no other association of
    /// this message has just been given it.
    fn may(&self, (first, last): (Ipv6Addr, Ipv6Addr), address: Ipv6Addr, client: &ClientId) -> bool {
        let is_given = self.lent().any(|lent| lent == address);
        (first..=last).contains(&address) && !is_given && self.table.is_free(address, client, self.now)
    }

    /// An address that nobody has had yet, or else the one whose lease ended first.
    fn new_one(&mut self, range: (Ipv6Addr, Ipv6Addr), client: &ClientId, has_room: bool) -> Option<Ipv6Addr> {
        let (lent, now): (Vec<_>, _) = (self.lent().collect(), self.now);
        if has_room && !self.table.is_used_up() {
            let most = self.table.most_taken() + lent.len();
            let is_free = |address| !lent.contains(&address) && self.table.is_unused(address, client, now);
            let found = choose(range, client.octets(), most, is_free);
            if found.is_some() {
                self.table.note_exhausted(false);
                return found;
            }
            self.table.used_up();
        }
        let found = self.table.over(now, |table, address| {
            (range.0..=range.1).contains(&address) && !lent.contains(&address) && table.is_free(address, client, now)
        });
        self.table.note_exhausted(found.is_none());
        found
    }

    /// Whether this message has given the client an address.
    fn has_been_lent(&self, client: &ClientId) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Lend(lease) if lease.client == *client))
    }

    /// The addresses that this message's associations have been given so far.
    fn lent(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.steps.iter().filter_map(|step| if let Step::Lend(lease) = step { v6(lease.address) } else { None })
    }

    /// Whether the client's addresses belong to this link (RFC 8415 section 18.3.3).
    pub fn confirm(&self, opts: &DhcpOptions) -> Result<Status, Ignored> {
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
    pub fn end(&mut self, opts: &DhcpOptions, is_declined: bool) -> Result<Vec<IANA>, Ignored> {
        let mut unknown = Vec::new();
        for ia in associations(opts) {
            // The lease of a container ends only with its attachment.
            let client = self.identity(ia.id)?;
            // Not of anybody who has heard its DUID.
            let is_own = |lease: &&Arc<ClientLease>| self.server.container.is_none() && self.from.is_holder(lease);
            let lease = self.table.lease(&client).filter(is_own);
            let known = lease.and_then(|lease| Some((lease.key(), v6(lease.address)?)));
            match known.filter(|(_, address)| addresses(ia).any(|a| a == *address)) {
                Some((key, address)) => {
                    if is_declined {
                        self.table.decline(address, self.from, self.now);
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
        Ok(unknown)
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

/// A status, with what it means in words.
pub(super) fn status(status: Status) -> DhcpOption {
    let msg = match status {
        Status::Success => "",
        Status::NoAddrsAvail => "the pool has no address for this client",
        Status::NoBinding => "this client has no such address",
        Status::NotOnLink => "an address is of another link",
        _ => "it cannot be",
    };
    DhcpOption::StatusCode(StatusCode { status, msg: msg.to_owned() })
}
