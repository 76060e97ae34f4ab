//! The server of one pool: what it does about each message (RFC 2131 section 4.3).

mod lend;

use super::message::{Kind, Query};
use super::metrics::{Sent, Silence};
use super::reply::Given;
use super::table::{Refusal, Table};
use super::{Config, Now, Reply};
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use crate::model::Mac;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long somebody has to answer a probe for the address that he uses.
const PROBE: Duration = Duration::from_millis(100);
/// Addresses that may turn out to be somebody's before a client gets no answer to this message.
const TRIES: u32 = 4;
/// Clients whose address is being probed for, and such whose lease is being written.
const MOST_PENDING: usize = 4096;
/// A lease is not for less than this many seconds, unless the pool's are: what a client wants may cost no more than that.
const SHORTEST: u32 = 60;

/// Where a message came from, as the bridge saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The MAC in the frame.
    pub mac: Mac,
    /// Index of the port of the bridge that it came by; 0 where that is not known, as if all such were one.
    pub port: u32,
}

/// What is to be done about a message.
#[derive(Debug, PartialEq)]
pub enum Act {
    /// Nothing.
    Silent(Silence),
    /// This is sent.
    Send(Reply),
    /// It is asked by ARP who has this address; [`Server::tick`] has the offer.
    Probe(Ipv4Addr),
    /// These steps go to the lease book, and [`Server::written`] is told of it.
    Write(ClientId, Vec<Step>),
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The disk has it.
    Done,
    /// Somebody has the address of whom the server does not know: the pool was another one once.
    Taken,
    /// The disk did not take it.
    Failed,
}

/// What a write was for.
#[derive(Debug)]
pub struct Written {
    /// What is sent now.
    pub reply: Option<Reply>,
    /// The lease, when it is a client's first.
    pub is_new: Option<Arc<ClientLease>>,
}

/// An offer that waits for who might answer a probe.
#[derive(Debug)]
struct Probing {
    query: Query,
    from: Origin,
    until: Instant,
    /// How many addresses were somebody's.
    tries: u32,
}

/// A lease that is being written.
#[derive(Debug)]
struct Writing {
    /// For how long the client is told that it has the lease, seconds.
    time: u32,
    /// The request that is answered when it is.
    query: Option<Query>,
    port: u32,
    lease: Option<Arc<ClientLease>>,
    /// Leases that end with it.
    ends: Vec<ClientId>,
    is_new: bool,
}

/// The server of one pool.
#[derive(Debug)]
pub struct Server {
    config: Config,
    table: Table,
    probing: HashMap<ClientId, Probing>,
    /// They end in the order in which they began.
    queue: VecDeque<(Instant, ClientId)>,
    writing: HashMap<ClientId, Writing>,
    is_exhausted: bool,
}

impl Server {
    /// One that begins with the leases of `clients` in its pool.
    #[must_use]
    pub fn new(config: Config, clients: &[Arc<ClientLease>]) -> Self {
        let own = clients.iter().filter(|lease| lease.pool == config.pool && lease.address.is_ipv4());
        let mut table = Table::new(own.cloned());
        table.follow(&config);
        let (probing, queue, writing) = Default::default();
        Self { config, table, probing, queue, writing, is_exhausted: false }
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Follows another configuration of the same pool.
    pub fn follow(&mut self, config: Config) {
        // What is being probed for and still fits goes on: most changes are about containers.
        self.table.follow(&config);
        self.is_exhausted &= config.range == self.config.range;
        self.config = config;
    }

    /// Whether the last client that asked got nothing, for all addresses are in use.
    #[must_use]
    pub const fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Answers a message. Its MAC must be that of its frame.
    pub fn receive(&mut self, query: Query, from: Origin, now: Now) -> Act {
        if query.kind == Kind::Inform {
            return self.inform(&query);
        }
        if self.config.managed.contains_key(&from.mac) {
            return self.managed(&query);
        }
        let client = self.identity(&query, now);
        if self.writing.contains_key(&client) {
            return Act::Silent(Silence::Busy);
        }
        match query.kind {
            Kind::Discover => self.discover(client, query, from, now),
            Kind::Request => self.request(client, query, from, now),
            Kind::Decline => self.decline(client, &query, from, now),
            Kind::Release => self.release(client, &query, from, now),
            Kind::Inform => Act::Silent(Silence::Senseless),
        }
    }

    /// A container's interface has its address, whatever it asks for.
    fn managed(&self, query: &Query) -> Act {
        let Some(interface) = self.config.managed.get(&query.mac) else { return Act::Silent(Silence::Senseless) };
        let given = Given {
            address: interface.address,
            time: Some(self.time(query)),
            hostname: interface.hostname.as_deref(),
            has_default_route: interface.has_default_route,
        };
        match query.kind {
            Kind::Discover => Act::Send(Reply::give(Sent::Offer, &self.config, query, &given)),
            Kind::Request if query.server.is_some_and(|server| server != self.config.server) => {
                Act::Silent(Silence::OtherServer)
            }
            Kind::Request => match asked(query) {
                None => Act::Silent(Silence::Senseless),
                Some(address) if address == interface.address => {
                    Act::Send(Reply::give(Sent::Ack, &self.config, query, &given))
                }
                Some(_) => Act::Send(Reply::refuse(&self.config, query)),
            },
            // It has the address for as long as it is attached.
            Kind::Release | Kind::Decline | Kind::Inform => Act::Silent(Silence::Done),
        }
    }

    /// Who has an address, and asks for the rest (RFC 2131 section 4.3.5).
    fn inform(&self, query: &Query) -> Act {
        if !self.config.net.contains(query.ciaddr) {
            return Act::Silent(Silence::Senseless);
        }
        let interface = self.config.managed.get(&query.mac);
        let given = Given {
            address: Ipv4Addr::UNSPECIFIED,
            time: None,
            hostname: interface.and_then(|interface| interface.hostname.as_deref()),
            has_default_route: interface.is_none_or(|interface| interface.has_default_route),
        };
        Act::Send(Reply::give(Sent::Ack, &self.config, query, &given))
    }

    /// Who a client is: what it says, unless that is somebody else who has another MAC (copies of a machine say the same),
    /// or it goes on with an address that it got without saying anything.
    fn identity(&self, query: &Query, now: Now) -> ClientId {
        let by_mac = ClientId::of_mac(query.mac);
        // Another's MAC is nobody's to say.
        let Some(said) = query.client.clone().filter(|said| *said == by_mac || !said.is_mac()) else { return by_mac };
        let is_others = match self.table.lease(&said) {
            Some(lease) => !lease.is_over(now.unix) && lease.mac.is_some_and(|mac| mac != query.mac),
            None => self.table.offer(&said, now).is_some_and(|offer| offer.mac != query.mac),
        };
        let goes_on = asked(query).is_some_and(|address| self.table.address(&by_mac) == Some(address));
        if is_others || (goes_on && self.table.lease(&said).is_none()) { by_mac } else { said }
    }

    fn discover(&mut self, client: ClientId, query: Query, from: Origin, now: Now) -> Act {
        if let Some(probing) = self.probing.get_mut(&client) {
            // It asks again before it was answered: the answer has the number of its last question.
            probing.query = query;
            return Act::Silent(Silence::Busy);
        }
        if let Some(address) = self.table.offer(&client, now).map(|offer| offer.address) {
            self.table.hold(&client, address, (from.mac, from.port), now);
            return Act::Send(self.offer(&query, address, &client, now));
        }
        self.offer_one(client, query, from, 0, now)
    }

    /// Picks an address, and offers it or probes for it.
    fn offer_one(&mut self, client: ClientId, query: Query, from: Origin, tries: u32, now: Now) -> Act {
        if self.probing.len() >= MOST_PENDING {
            return Act::Silent(Silence::Busy);
        }
        let who = (from.mac, from.port);
        let pick = match self.table.pick(&self.config, &client, who, query.requested, now) {
            Ok(pick) => pick,
            Err(Refusal::NoRange) => return Act::Silent(Silence::NoRange),
            Err(Refusal::PortLimit) => return Act::Silent(Silence::PortLimit),
            Err(Refusal::Exhausted) => {
                self.is_exhausted = true;
                return Act::Silent(Silence::Exhausted);
            }
        };
        self.is_exhausted = false;
        self.table.hold(&client, pick.address, who, now);
        if !pick.is_new {
            return Act::Send(self.offer(&query, pick.address, &client, now));
        }
        let until = now.at + PROBE;
        self.queue.push_back((until, client.clone()));
        self.probing.insert(client, Probing { query, from, until, tries });
        Act::Probe(pick.address)
    }

    fn offer(&self, query: &Query, address: Ipv4Addr, client: &ClientId, now: Now) -> Reply {
        let hostname = self.hostname(query, client, now);
        let given =
            Given { address, time: Some(self.time(query)), hostname: hostname.as_deref(), has_default_route: true };
        Reply::give(Sent::Offer, &self.config, query, &given)
    }

    /// The offers for whose address nobody has answered in time.
    pub fn tick(&mut self, now: Now) -> Vec<Reply> {
        let mut offers = Vec::new();
        while self.queue.front().is_some_and(|(until, _)| *until <= now.at) {
            let Some((until, client)) = self.queue.pop_front() else { break };
            // Of one that was begun anew only the last time counts.
            if self.probing.get(&client).is_none_or(|probing| probing.until != until) {
                continue;
            }
            let Some(Probing { query, .. }) = self.probing.remove(&client) else { continue };
            if let Some(address) = self.table.offer(&client, now).map(|offer| offer.address) {
                offers.push(self.offer(&query, address, &client, now));
            }
        }
        offers
    }

    /// When [`Server::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|(until, _)| *until)
    }

    /// `mac` has answered a probe for `address`: whoever was to be offered it gets another one.
    pub fn answered(&mut self, address: Ipv4Addr, mac: Mac, now: Now) -> Option<Act> {
        let client = self.table.offered(address)?.clone();
        // A client that still uses the address that it asks for has answered itself.
        self.probing.get(&client).filter(|probing| probing.from.mac != mac)?;
        let Probing { query, from, tries, .. } = self.probing.remove(&client)?;
        // Whoever uses it is not the client, so it does not count for its port.
        self.table.conflict(&self.config, address, 0, now);
        self.table.drop_offer(&client);
        let may_try = tries + 1 < TRIES;
        Some(if may_try { self.offer_one(client, query, from, tries + 1, now) } else { Act::Silent(Silence::Busy) })
    }

    fn request(&mut self, client: ClientId, query: Query, from: Origin, now: Now) -> Act {
        let Some(address) = asked(&query) else { return Act::Silent(Silence::Senseless) };
        let leased = self.table.address(&client);
        let is_own =
            leased == Some(address) && self.config.is_in_range(address) && !self.table.is_taken(address, &client, now);
        let refuse = |server: &Self| Act::Send(Reply::refuse(&server.config, &query));
        match query.server {
            // It chose among offers.
            Some(server) if server != self.config.server => {
                self.probing.remove(&client);
                self.table.drop_offer(&client);
                Act::Silent(Silence::OtherServer)
            }
            Some(_) => {
                let is_offered = self.table.offer(&client, now).is_some_and(|offer| offer.address == address);
                let is_offered = is_offered && !self.probing.contains_key(&client);
                if is_own || (is_offered && !self.is_anothers(address, &client, from, now)) {
                    self.grant(client, address, query, from, now)
                } else {
                    refuse(self)
                }
            }
            // It starts again, renews or rebinds.
            None if is_own => self.grant(client, address, query, from, now),
            None if !self.config.net.contains(address) || leased.is_some() => refuse(self),
            None if self.table.is_taken(address, &client, now) => refuse(self),
            None => Act::Silent(Silence::Unknown),
        }
    }

    /// The name that a client has from now on: the one that it gives, unless another client has that, or the last one.
    fn hostname(&self, query: &Query, client: &ClientId, now: Now) -> Option<String> {
        let name = query.hostname.as_ref().or_else(|| self.table.lease(client)?.hostname.as_ref())?;
        let is_others = self.table.named(name, now).is_some_and(|other| other != client);
        Some(name.clone()).filter(|_| !is_others)
    }

    /// How long a lease lasts: no longer than the pool's, and shorter where a client wants that.
    fn time(&self, query: &Query) -> u32 {
        let most = self.config.settings.lease_time;
        query.lease_time.map_or(most, |wanted| wanted.clamp(SHORTEST.min(most), most))
    }
}

/// The address that a request is about: the one that the client uses, else the one that it asks for.
fn asked(query: &Query) -> Option<Ipv4Addr> {
    if query.ciaddr.is_unspecified() { query.requested } else { Some(query.ciaddr) }
}
