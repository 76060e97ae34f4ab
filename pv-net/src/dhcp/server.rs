//! The server of one pool: what it does about each message (RFC 2131 section 4.3).

mod lend;

use super::message::{Kind, Query};
use super::metrics::{Sent, Silence};
use super::probe::Probe;
use super::reply::Given;
use super::table::{Refusal, Table};
use super::{Config, Now, Reply};
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use crate::model::Mac;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

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

impl Origin {
    /// Whether it is where the holder of `lease` is, as far as both are known.
    pub(crate) fn is_holder(self, lease: &ClientLease) -> bool {
        let is_there = lease.port.is_none_or(|port| port == self.port || port == 0 || self.port == 0);
        lease.mac == Some(self.mac) && is_there
    }
}

/// What is to be done about a message.
#[derive(Debug, PartialEq)]
pub enum Act {
    /// Nothing.
    Silent(Silence),
    /// This is sent.
    Send(Reply),
    /// Somebody may still answer the probe for the client's address; [`Server::tick`] has what is done then.
    Wait,
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

/// A request that waits for who might answer the probe for its address.
#[derive(Debug)]
struct Waiting {
    query: Query,
    from: Origin,
    until: Instant,
}

/// A lease that is being written.
#[derive(Debug)]
struct Writing {
    /// For how long the client is told that it has the lease, seconds.
    time: u32,
    /// The request that is answered when it is.
    query: Option<Query>,
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
    waiting: HashMap<ClientId, Waiting>,
    /// When each of them ends.
    ends: BTreeSet<(Instant, ClientId)>,
    writing: HashMap<ClientId, Writing>,
    is_exhausted: bool,
}

impl Server {
    /// One that begins with the leases of `clients` in its pool.
    #[must_use]
    pub fn new(config: Config, clients: &[Arc<ClientLease>], now: Now) -> Self {
        let own = clients.iter().filter(|lease| lease.pool == config.pool && lease.address.is_ipv4());
        let mut table = Table::new(own.cloned());
        table.follow(&config);
        table.look_ahead(&config, now);
        let (waiting, ends, writing) = Default::default();
        Self { config, table, waiting, ends, writing, is_exhausted: false }
    }

    /// The addresses that are to be asked for by ARP now. Each call of another method may add some.
    pub fn take_probes(&mut self) -> Vec<Ipv4Addr> {
        self.table.probes().take_due()
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

    /// Follows the addresses that containers have leases of or have reserved, attached or not.
    pub fn reserve(&mut self, addresses: HashSet<Ipv4Addr>) {
        self.table.reserve(addresses);
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
            None => self.table.offer(&said, now).is_some_and(|offer| offer.from.mac != query.mac),
        };
        let goes_on = asked(query).is_some_and(|address| self.table.address(&by_mac) == Some(address));
        if is_others || (goes_on && self.table.lease(&said).is_none()) { by_mac } else { said }
    }

    fn discover(&mut self, client: ClientId, query: Query, from: Origin, now: Now) -> Act {
        if let Some(address) = self.table.offer(&client, now).map(|offer| offer.address) {
            self.table.hold(&client, address, from, now);
            return Act::Send(self.offer(&query, address, &client));
        }
        let pick = match self.table.pick(&self.config, &client, from, query.requested, now) {
            Ok(pick) => pick,
            Err(Refusal::NoRange) => return Act::Silent(Silence::NoRange),
            Err(Refusal::PortLimit) => return Act::Silent(Silence::PortLimit),
            Err(Refusal::Exhausted) => {
                self.is_exhausted = true;
                return Act::Silent(Silence::Exhausted);
            }
        };
        self.is_exhausted = false;
        self.table.hold(&client, pick.address, from, now);
        if pick.is_new {
            // Most were asked for before. Whoever uses one of the others answers until the client requests it, or the
            // request waits for him.
            self.table.probes().ask_again(pick.address, now);
            self.table.look_ahead(&self.config, now);
        }
        Act::Send(self.offer(&query, pick.address, &client))
    }

    fn offer(&self, query: &Query, address: Ipv4Addr, client: &ClientId) -> Reply {
        let hostname = self.hostname(query, client);
        let given =
            Given { address, time: Some(self.time(query)), hostname: hostname.as_deref(), has_default_route: true };
        Reply::give(Sent::Offer, &self.config, query, &given)
    }

    /// What is done about the requests for whose address nobody has answered in time.
    pub fn tick(&mut self, now: Now) -> Vec<Act> {
        let mut acts = Vec::new();
        while let Some((until, client)) = self.ends.first().filter(|(until, _)| *until <= now.at).cloned() {
            self.ends.remove(&(until, client.clone()));
            if let Some(Waiting { query, from, .. }) = self.waiting.remove(&client) {
                acts.push(self.request(client, query, from, now));
            }
        }
        acts
    }

    /// When [`Server::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Whether `mac` has a lease or an offer, as it was counted last.
    #[must_use]
    pub fn is_client(&self, mac: Mac) -> bool {
        self.table.is_client(mac)
    }

    /// Whether an answer to a probe for `address` would matter.
    #[must_use]
    pub fn is_asked_for(&mut self, address: Ipv4Addr, now: Now) -> bool {
        self.table.probes().of(address, now) != Probe::Unknown
    }

    /// Somebody has answered a probe for `address`. Returns what is done when it is an address that a client was to get,
    /// or could get next, and he is believed.
    pub fn answered(&mut self, address: Ipv4Addr, from: Origin, now: Now) -> Option<Act> {
        let client = self.table.offered(address).cloned();
        let offer = client.as_ref().and_then(|client| self.table.offer(client, now));
        // A client that still uses the address that it asks for has answered itself.
        let is_own = offer.is_some_and(|offer| offer.from.mac == from.mac);
        let is_writing = client.as_ref().is_some_and(|client| self.writing.contains_key(client));
        if is_own || is_writing || !self.is_asked_for(address, now) {
            return None;
        }
        if !self.table.claim(&self.config, address, from, now) {
            return None;
        }
        let mut act = Act::Silent(Silence::Done);
        if let Some(client) = client {
            self.table.drop_offer(&client);
            if let Some(Waiting { query, .. }) = self.give_up(&client) {
                act = Act::Send(Reply::refuse(&self.config, &query));
            }
        }
        self.table.look_ahead(&self.config, now);
        Some(act)
    }

    /// A client's request waits no longer.
    fn give_up(&mut self, client: &ClientId) -> Option<Waiting> {
        let waiting = self.waiting.remove(client)?;
        self.ends.remove(&(waiting.until, client.clone()));
        Some(waiting)
    }

    /// Gives a client what it was offered, when nobody has answered the probe for it.
    fn take_offer(&mut self, client: ClientId, address: Ipv4Addr, query: Query, from: Origin, now: Now) -> Act {
        match self.table.probes().ask(address, now) {
            Probe::Clear => self.grant(client, address, query, from, now),
            Probe::Waiting(until) if self.waiting.len() < MOST_PENDING => {
                self.ends.insert((until, client.clone()));
                self.waiting.insert(client, Waiting { query, from, until });
                Act::Wait
            }
            Probe::Waiting(_) | Probe::Unknown => Act::Silent(Silence::Busy),
        }
    }

    fn request(&mut self, client: ClientId, query: Query, from: Origin, now: Now) -> Act {
        let Some(address) = asked(&query) else { return Act::Silent(Silence::Senseless) };
        let leased = self.table.address(&client);
        let is_own =
            leased == Some(address) && self.config.is_in_range(address) && !self.table.is_taken(address, &client, now);
        let refuse = |server: &Self| Act::Send(Reply::refuse(&server.config, &query));
        // It asks again: the answer has the number of its last question.
        self.give_up(&client);
        match query.server {
            // It chose among offers.
            Some(server) if server != self.config.server => {
                self.table.drop_offer(&client);
                Act::Silent(Silence::OtherServer)
            }
            Some(_) => {
                let is_offered = self.table.offer(&client, now).is_some_and(|offer| offer.address == address);
                if is_own {
                    self.grant(client, address, query, from, now)
                } else if is_offered && !self.is_anothers(address, &client, from, now) {
                    self.take_offer(client, address, query, from, now)
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

    /// The name that a client gives itself, or gave itself last. The lease book alone knows whether it is another's.
    fn hostname(&self, query: &Query, client: &ClientId) -> Option<String> {
        query.hostname.clone().or_else(|| self.table.lease(client)?.hostname.clone())
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
