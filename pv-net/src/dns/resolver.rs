//! Answers questions: at once if possible, else when another server has answered.

mod passed_on;
mod race;
mod seen;

use super::answer::{Answered, Outcome, answer};
use super::cache::{self, Cache, Key};
use super::cookie::Cookies;
use super::device::DeviceServers;
use super::metrics::{Ended, Metrics};
use super::reply::{Extended, Reply};
use super::response::Response;
use super::servers::Servers;
use super::share::Shares;
use super::show::Shown;
use super::tls::Connections;
use super::watched::{Begun, Watched};
use super::wire::{Cookie, NoQuery, Query, RecordType, ResponseCode, refuse};
use super::zone::{Client, Part, Route, Zone};
use crate::model::NameServer;
use passed_on::{fail, is_good, show_kept, show_response};
use race::PATIENCE;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

/// The same when the cache has an old answer (RFC 8767 section 5).
const PATIENCE_STALE: Duration = Duration::from_millis(1800);
/// How long an old answer is used without asking again, after no server has answered.
const REST: Duration = Duration::from_secs(30);
/// How long an attach waits until the container's names are known and its `resolv.conf` is written.
const FOLLOWS: Duration = Duration::from_millis(500);

/// Extended errors (RFC 8914 section 4).
const LIMITED: Extended = Extended::new(0, "too many questions at once");
const NO_REACHABLE: u16 = 22;
const NO_SERVER: Extended = Extended::new(NO_REACHABLE, "the device knows no server to ask");
const SILENT: Extended = Extended::new(NO_REACHABLE, "no server answers");

/// What happens to a question at once.
#[derive(Debug)]
pub enum Now {
    /// The answer is written.
    Reply(Ended),
    /// The same, from the cache; until then the same question has the same answer.
    Kept(Ended, Instant),
    /// The question is not answered.
    Silent,
    /// Another server must be asked, by [`Dns::later`].
    Later(Box<Pending>),
}

/// A question that another server must answer.
#[derive(Debug)]
pub struct Pending {
    message: Vec<u8>,
    cookie: Option<Cookie>,
    client: Client,
    route: Route,
    limit: usize,
    /// What is told to those who watch; none while nobody does.
    begun: Option<Begun>,
}

/// An answer for people, and its source.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// How the question ended.
    pub ended: Ended,
    /// The other server that has given the answer, now or some time ago.
    pub server: Option<NameServer>,
    /// The answer.
    pub shown: Shown,
}

type Flight = Arc<OnceCell<Option<Arc<Response>>>>;

/// The DNS service, shared by all sockets.
pub struct Dns {
    zone: watch::Sender<Arc<Zone>>,
    device: DeviceServers,
    cache: Mutex<Cache>,
    servers: Mutex<Servers>,
    shares: Mutex<Shares>,
    /// Questions that are being asked now. Further clients with the same question wait for the same answer.
    flights: Mutex<HashMap<Key, Flight>>,
    /// The newest snapshot whose names are known, and whose containers have their files.
    followed: watch::Sender<u64>,
    cookies: Cookies,
    watched: Watched,
    tls: Connections,
    /// Counts of results.
    pub metrics: Metrics,
}

/// No data are half changed while these locks are held, so a panic does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scope(servers: &[NameServer]) -> u64 {
    let mut hasher = DefaultHasher::new();
    servers.hash(&mut hasher);
    hasher.finish()
}

impl Dns {
    /// A service without names yet. `resolv_conf` is the device's file.
    #[must_use]
    pub fn new(resolv_conf: PathBuf) -> Self {
        Self {
            zone: watch::Sender::default(),
            device: DeviceServers::new(resolv_conf),
            cache: Mutex::default(),
            servers: Mutex::default(),
            shares: Mutex::default(),
            flights: Mutex::default(),
            followed: watch::Sender::default(),
            cookies: Cookies::default(),
            watched: Watched::default(),
            tls: Connections::default(),
            metrics: Metrics::default(),
        }
    }

    /// The present names.
    #[must_use]
    pub fn zone(&self) -> Arc<Zone> {
        self.zone.borrow().clone()
    }

    /// Replaces the names.
    pub fn set_zone(&self, zone: Zone) {
        self.tls.retain(zone.ca_file(), |server| zone.asks(server));
        self.zone.send_replace(Arc::new(zone));
    }

    /// Notes that everything for this snapshot is done.
    pub fn set_followed(&self, revision: u64) {
        self.followed.send_replace(revision);
    }

    /// Waits for a limited time until everything for this snapshot is done. A longer delay shows in the status.
    pub async fn follows(&self, revision: u64) {
        let mut followed = self.followed.subscribe();
        let _ = timeout(FOLLOWS, followed.wait_for(|at| *at >= revision)).await;
    }

    /// Whether somebody watches questions and answers. All questions must then be answered here.
    pub fn is_watched(&self) -> bool {
        self.watched.is_heard()
    }

    /// Answers a question of `asker`; the answer is in `out`. For a datagram the question says how large it may be.
    pub fn now(self: &Arc<Self>, zone: &Zone, asker: Asker, message: &[u8], out: &mut Vec<u8>) -> Now {
        let begun = self.watched.begin(asker.client, asker.address, asker.is_datagram);
        let (mut now, server) = self.reply(zone, asker, message, out);
        match (begun, &mut now) {
            (Some(begun), Now::Reply(ended) | Now::Kept(ended, _)) => {
                self.watched.tell(&begun, zone, message, out, *ended, server)
            }
            (Some(begun), Now::Later(pending)) => pending.begun = Some(begun),
            _ => {}
        }
        now
    }

    /// The same, with the other server that has given the answer.
    fn reply(
        self: &Arc<Self>,
        zone: &Zone,
        asker: Asker,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> (Now, Option<NameServer>) {
        out.clear();
        let mut query = match Query::parse(message) {
            Ok(query) => query,
            Err(NoQuery::Silent) => return (Now::Silent, None),
            Err(NoQuery::Refused(code)) => {
                self.metrics.count(RecordType::ZERO, Ended::Malformed);
                refuse(message, code, out);
                return (Now::Reply(Ended::Malformed), None);
            }
        };
        if self.cookies.answer(&mut query, asker.address).is_err() {
            self.metrics.count(query.rtype(), Ended::Malformed);
            Reply::new(&query, ResponseCode::FormErr).finish(query.datagram(), out);
            return (Now::Reply(Ended::Malformed), None);
        }
        let limit = if asker.is_datagram { query.datagram() } else { usize::from(u16::MAX) };
        let (now, server) = self.answer(zone, &query, asker.client, limit, out);
        if let Now::Reply(ended) | Now::Kept(ended, _) = now {
            self.metrics.count(query.rtype(), ended);
        }
        (now, server)
    }

    fn answer(
        self: &Arc<Self>,
        zone: &Zone,
        query: &Query<'_>,
        client: Client,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> (Now, Option<NameServer>) {
        let route = match answer(zone, client, query, limit, out) {
            Outcome::Answered(Answered::Found) => return (Now::Reply(Ended::Own), None),
            Outcome::Answered(Answered::NoData) => return (Now::Reply(Ended::NoData), None),
            Outcome::Answered(Answered::NoName) => return (Now::Reply(Ended::NoName), None),
            Outcome::Answered(Answered::Refused) => return (Now::Reply(Ended::Refused), None),
            Outcome::Upstream(route) => route,
        };
        let now = Instant::now();
        let servers = route.servers.clone().or_else(|| self.device.known(now));
        if let Some(servers) = servers {
            let key = cache::key(query, scope(&servers));
            let kept = lock(&self.cache).get(&key, now);
            if let Some(kept) = kept.filter(|kept| kept.holds(now)) {
                if kept.is_due(now) {
                    self.fetch_again(&key, query, client, &servers);
                }
                let ended = show_kept(&kept, query, &route, limit, Ended::Cache, out);
                return (Now::Kept(ended, kept.lasts(now)), kept.response.server.clone());
            }
        }
        if !lock(&self.shares).take(client.part(), now) {
            fail(query, ResponseCode::Refused, &LIMITED, limit, out);
            return (Now::Reply(Ended::Limited), None);
        }
        let message = query.message.to_vec();
        let pending = Pending { message, cookie: query.cookie, client, route, limit, begun: None };
        (Now::Later(Box::new(pending)), None)
    }

    /// Fetches an answer again that is used often, before it ends. The question counts for the client that asked last.
    fn fetch_again(self: &Arc<Self>, key: &Key, query: &Query<'_>, client: Client, servers: &[NameServer]) {
        let servers = self.not_own(servers);
        if servers.is_empty() || lock(&self.flights).contains_key(key) {
            return;
        }
        if lock(&self.shares).take(client.part(), Instant::now()) {
            let flight = self.fly(key, query.message, &servers);
            let (dns, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                let share = Waiting { dns: &dns, part: client.part() };
                // After a failure it is not tried again at once, or each use would be another question.
                if !flight.await.is_some_and(|response| is_good(&response)) {
                    lock(&dns.cache).rest(&key, Instant::now() + REST);
                }
                drop(share);
            });
        }
    }

    /// Those of `servers` that are not this one, which must not ask itself.
    fn not_own(&self, servers: &[NameServer]) -> Vec<NameServer> {
        let zone = self.zone();
        servers.iter().filter(|server| !zone.is_own(server.address.ip())).cloned().collect()
    }

    /// The answer of another server, or an error when there is none.
    pub async fn later(self: &Arc<Self>, pending: Pending) -> (Vec<u8>, Ended) {
        let (out, ended, _) = self.fetched(pending).await;
        (out, ended)
    }

    /// The same, with the server that has given the answer.
    async fn fetched(self: &Arc<Self>, pending: Pending) -> (Vec<u8>, Ended, Option<NameServer>) {
        let share = Waiting { dns: self, part: pending.client.part() };
        let mut out = Vec::new();
        let Ok(mut query) = Query::parse(&pending.message) else { return (out, Ended::Malformed, None) };
        query.cookie = pending.cookie;
        let (ended, server) = self.ask_others(&query, &pending, &mut out).await;
        drop(share);
        self.metrics.count(query.rtype(), ended);
        if let Some(begun) = &pending.begun {
            self.watched.tell(begun, &self.zone(), &pending.message, &out, ended, server.clone());
        }
        (out, ended, server)
    }

    async fn ask_others(
        self: &Arc<Self>,
        query: &Query<'_>,
        pending: &Pending,
        out: &mut Vec<u8>,
    ) -> (Ended, Option<NameServer>) {
        let Pending { route, limit, client, .. } = pending;
        let servers = match &route.servers {
            Some(servers) => servers.clone(),
            None => self.device.current().await,
        };
        let key = cache::key(query, scope(&servers));
        let now = Instant::now();
        let kept = lock(&self.cache).get(&key, now);
        match &kept {
            Some(kept) if kept.holds(now) => {
                if kept.is_due(now) {
                    self.fetch_again(&key, query, *client, &servers);
                }
                return from(&kept.response, show_kept(kept, query, route, *limit, Ended::Cache, out));
            }
            Some(kept) if kept.rests(now) => {
                return from(&kept.response, show_kept(kept, query, route, *limit, Ended::Stale, out));
            }
            _ => {}
        }
        let servers = self.not_own(&servers);
        tracing::trace!(name = ?query.name, kind = ?query.rtype(), ?client, ?servers, "asked");
        let response = if servers.is_empty() {
            None
        } else {
            let flight = self.fly(&key, &pending.message, &servers);
            let patience = if kept.is_some() { PATIENCE_STALE } else { PATIENCE * 2 };
            timeout(patience, flight).await.ok().flatten()
        };
        match (response, kept) {
            (Some(response), None) => from(&response, show_response(&response, query, route, *limit, out)),
            (Some(response), Some(_)) if is_good(&response) => {
                from(&response, show_response(&response, query, route, *limit, out))
            }
            (_, Some(kept)) => {
                lock(&self.cache).rest(&key, Instant::now() + REST);
                from(&kept.response, show_kept(&kept, query, route, *limit, Ended::Stale, out))
            }
            (None, None) => {
                let why = if servers.is_empty() { NO_SERVER } else { self.distrust_of(&servers).unwrap_or(SILENT) };
                fail(query, ResponseCode::ServFail, &why, *limit, out);
                (Ended::Failed, None)
            }
        }
    }

    /// Waits for the servers' answer, and asks them unless that is being done. The servers are asked even when no
    /// client waits any more, since the answer is kept for the next one.
    fn fly(
        self: &Arc<Self>,
        key: &Key,
        message: &[u8],
        servers: &[NameServer],
    ) -> impl Future<Output = Option<Arc<Response>>> + use<> {
        let flight = lock(&self.flights).entry(key.clone()).or_default().clone();
        let (dns, key, message, servers) = (self.clone(), key.clone(), message.to_vec(), servers.to_vec());
        let task = tokio::spawn(async move {
            let asked = flight.get_or_init(async || {
                let response = dns.exchange(&message, &servers).await.map(Arc::new);
                if let Some(response) = &response {
                    let mut cache = lock(&dns.cache);
                    // An error does not replace an old answer.
                    if is_good(response) || cache.get(&key, Instant::now()).is_none() {
                        cache.put(key.clone(), response.clone(), Instant::now());
                    }
                }
                lock(&dns.flights).remove(&key);
                response
            });
            asked.await.clone()
        });
        async { task.await.ok().flatten() }
    }
}

/// The sender of a question.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The client.
    pub client: Client,
    /// The address that the question came from.
    pub address: IpAddr,
    /// Whether it came in a datagram, which may be too small for the answer.
    pub is_datagram: bool,
}

/// A waiting question. Dropping this ends the wait, for any reason.
struct Waiting<'a> {
    dns: &'a Dns,
    part: Part,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.dns.shares).done(self.part);
    }
}

/// How a question ended, and the server that has given the answer.
fn from(response: &Response, ended: Ended) -> (Ended, Option<NameServer>) {
    (ended, response.server.clone())
}
