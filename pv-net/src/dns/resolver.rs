//! Answers questions: at once if possible, else when another server has answered.

mod passed_on;

use super::answer::{Answered, Outcome, answer};
use super::cache::{self, Cache, Key};
use super::cookie::Cookies;
use super::device::DeviceServers;
use super::exchange;
use super::metrics::{Ended, Metrics};
use super::name::Name;
use super::reply::{Extended, Reply};
use super::response::Response;
use super::servers::Servers;
use super::share::Shares;
use super::show::{self, Shown};
use super::wire::{Cookie, NoQuery, Query, RecordType, ResponseCode, refuse};
use super::zone::{Client, Route, Whose, Zone};
use hickory_proto::op::{self, Edns, Message};
use passed_on::{fail, is_good, show_kept, show_response};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// How long to wait for other servers. Clients repeat a question after five seconds.
const PATIENCE: Duration = Duration::from_millis(4500);
/// The same when the cache has an old answer (RFC 8767 section 5).
const PATIENCE_STALE: Duration = Duration::from_millis(1800);
/// How long an old answer is used without asking again, after no server has answered.
const REST: Duration = Duration::from_secs(30);
/// How long an attach waits until the container's names are known and its `resolv.conf` is written.
const FOLLOWS: Duration = Duration::from_millis(500);
/// How many times servers are asked for one question at most.
const ATTEMPTS: usize = 4;

/// Extended errors (RFC 8914 section 4).
const LIMITED: Extended = Extended::new(0, "too many questions at once");
const NO_SERVER: Extended = Extended::new(22, "the device knows no server to ask");
const SILENT: Extended = Extended::new(22, "no server answers");

/// What happens to a question at once.
#[derive(Debug)]
pub enum Now {
    /// The answer is written.
    Reply(Ended),
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
}

/// An answer for people, and its source.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// How the question ended.
    pub ended: Ended,
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
    /// Counts of results.
    pub metrics: Metrics,
}

/// No data are half changed while these locks are held, so a panic does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scope(servers: &[SocketAddr]) -> u64 {
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

    /// Answers a question of `asker`; the answer is in `out`. For a datagram the question says how large it may be.
    pub fn now(self: &Arc<Self>, zone: &Zone, asker: Asker, message: &[u8], out: &mut Vec<u8>) -> Now {
        out.clear();
        let mut query = match Query::parse(message) {
            Ok(query) => query,
            Err(NoQuery::Silent) => return Now::Silent,
            Err(NoQuery::Refused(code)) => {
                self.metrics.count(RecordType::ZERO, Ended::Malformed);
                refuse(message, code, out);
                return Now::Reply(Ended::Malformed);
            }
        };
        if self.cookies.answer(&mut query, asker.address).is_err() {
            self.metrics.count(query.rtype(), Ended::Malformed);
            Reply::new(&query, ResponseCode::FormErr).finish(query.datagram(), out);
            return Now::Reply(Ended::Malformed);
        }
        let limit = if asker.is_datagram { query.datagram() } else { usize::from(u16::MAX) };
        let now = self.answer(zone, &query, asker.client, limit, out);
        if let Now::Reply(ended) = now {
            self.metrics.count(query.rtype(), ended);
        }
        now
    }

    fn answer(
        self: &Arc<Self>,
        zone: &Zone,
        query: &Query<'_>,
        client: Client,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Now {
        let route = match answer(zone, client, query, limit, out) {
            Outcome::Answered(Answered::Found) => return Now::Reply(Ended::Own),
            Outcome::Answered(Answered::NoData) => return Now::Reply(Ended::NoData),
            Outcome::Answered(Answered::NoName) => return Now::Reply(Ended::NoName),
            Outcome::Answered(Answered::Refused) => return Now::Reply(Ended::Refused),
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
                return Now::Reply(show_kept(&kept, query, &route, limit, Ended::Cache, out));
            }
        }
        if !lock(&self.shares).take(client.whose(), now) {
            fail(query, ResponseCode::Refused, &LIMITED, limit, out);
            return Now::Reply(Ended::Limited);
        }
        Now::Later(Box::new(Pending { message: query.message.to_vec(), cookie: query.cookie, client, route, limit }))
    }

    /// Fetches an answer again that is used often, before it ends. The question counts for the client that asked last.
    fn fetch_again(self: &Arc<Self>, key: &Key, query: &Query<'_>, client: Client, servers: &[SocketAddr]) {
        let servers: Vec<_> = servers.iter().copied().filter(|s| !self.zone().is_own(s.ip())).collect();
        if servers.is_empty() || lock(&self.flights).contains_key(key) {
            return;
        }
        if lock(&self.shares).take(client.whose(), Instant::now()) {
            let flight = self.fly(key, query.message, &servers);
            let (dns, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                let share = Waiting { dns: &dns, whose: client.whose() };
                // After a failure it is not tried again at once, or each use would be another question.
                if !flight.await.is_some_and(|response| is_good(&response)) {
                    lock(&dns.cache).rest(&key, Instant::now() + REST);
                }
                drop(share);
            });
        }
    }

    /// The answer of another server, or an error when there is none.
    pub async fn later(self: &Arc<Self>, pending: Pending) -> (Vec<u8>, Ended) {
        let share = Waiting { dns: self, whose: pending.client.whose() };
        let mut out = Vec::new();
        let Ok(mut query) = Query::parse(&pending.message) else { return (out, Ended::Malformed) };
        query.cookie = pending.cookie;
        let ended = self.ask_others(&query, &pending, &mut out).await;
        drop(share);
        self.metrics.count(query.rtype(), ended);
        (out, ended)
    }

    async fn ask_others(self: &Arc<Self>, query: &Query<'_>, pending: &Pending, out: &mut Vec<u8>) -> Ended {
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
                return show_kept(kept, query, route, *limit, Ended::Cache, out);
            }
            Some(kept) if kept.rests(now) => return show_kept(kept, query, route, *limit, Ended::Stale, out),
            _ => {}
        }
        let zone = self.zone();
        let servers: Vec<_> = servers.iter().copied().filter(|s| !zone.is_own(s.ip())).collect();
        tracing::trace!(name = ?query.name, kind = ?query.rtype(), ?client, ?servers, "asked");
        let response = if servers.is_empty() {
            None
        } else {
            let flight = self.fly(&key, &pending.message, &servers);
            let patience = if kept.is_some() { PATIENCE_STALE } else { PATIENCE * 2 };
            timeout(patience, flight).await.ok().flatten()
        };
        match (response, kept) {
            (Some(response), None) => show_response(&response, query, route, *limit, out),
            (Some(response), Some(_)) if is_good(&response) => show_response(&response, query, route, *limit, out),
            (_, Some(kept)) => {
                lock(&self.cache).rest(&key, Instant::now() + REST);
                show_kept(&kept, query, route, *limit, Ended::Stale, out)
            }
            (None, None) => {
                let why = if servers.is_empty() { &NO_SERVER } else { &SILENT };
                fail(query, ResponseCode::ServFail, why, *limit, out);
                Ended::Failed
            }
        }
    }

    /// Waits for the servers' answer, and asks them unless that is being done. The servers are asked even when no
    /// client waits any more, since the answer is kept for the next one.
    fn fly(
        self: &Arc<Self>,
        key: &Key,
        message: &[u8],
        servers: &[SocketAddr],
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

    /// Asks one server after the other, and the next one also when one takes long. The first good answer is used, else
    /// the last one.
    async fn exchange(&self, message: &[u8], servers: &[SocketAddr]) -> Option<Response> {
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let order = lock(&self.servers).order(servers, begun);
        let mut turns = order.iter().copied().cycle().take((order.len() * 2).clamp(3, ATTEMPTS));
        let mut running = JoinSet::new();
        let (mut asked, mut last): (Vec<(SocketAddr, Instant)>, _) = (Vec::new(), None);
        // When the next server is asked; `None` after the last one.
        let mut next = Some(begun);
        loop {
            let now = Instant::now();
            if now >= deadline {
                asked.iter().for_each(|(server, since)| lock(&self.servers).failed(*server, *since, now));
                return last;
            }
            if next.is_some_and(|at| at <= now) {
                // No second round when a server has answered with an error: it would do so again a moment later.
                let again = asked.len() >= order.len() && last.is_some();
                next = turns.next().filter(|_| !again).map(|server| {
                    let message = message.to_vec();
                    running.spawn(async move { (server, now, ask(&message, server).await) });
                    asked.push((server, now));
                    let round = asked.len().div_ceil(order.len());
                    now + lock(&self.servers).patience(server) * u32::try_from(round).unwrap_or(1)
                });
            }
            if running.is_empty() && next.is_none() {
                return last;
            }
            let done = tokio::select! {
                Some(Ok(done)) = running.join_next() => done,
                () = sleep_until(next.unwrap_or(deadline).min(deadline).into()) => continue,
            };
            let now = Instant::now();
            let (server, since, answer) = done;
            match answer {
                Ok(response) if is_good(&response) => {
                    let mut health = lock(&self.servers);
                    // Servers that were asked earlier and have not answered yet are asked later the next time.
                    for (slow, at) in asked.iter().filter(|(slow, at)| *slow != server && *at < since) {
                        health.failed(*slow, *at, now);
                    }
                    let took = now.saturating_duration_since(since);
                    health.answered(server, took, now);
                    self.metrics.upstream(took);
                    return Some(response);
                }
                Ok(response) => last = Some(response),
                Err(e) => tracing::debug!(%server, error = %e, "no answer"),
            }
            lock(&self.servers).failed(server, since, now);
            next = next.map(|_| now);
        }
    }

    /// The answer that `client` would get about `name`.
    pub async fn resolve(self: &Arc<Self>, client: Client, name: &Name, kind: RecordType) -> Resolved {
        let mut message = Message::new(0, op::MessageType::Query, op::OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(op::Query::query(name.clone(), kind)).set_edns(Edns::new());
        let message = message.to_vec().unwrap_or_default();
        let mut out = Vec::new();
        let limit = usize::from(u16::MAX);
        let now = match Query::parse(&message) {
            Ok(query) => self.answer(&self.zone(), &query, client, limit, &mut out),
            Err(_) => Now::Silent,
        };
        let ended = match now {
            Now::Reply(ended) => ended,
            Now::Silent => Ended::Malformed,
            Now::Later(pending) => {
                let (answer, ended) = self.later(*pending).await;
                out = answer;
                ended
            }
        };
        Resolved { ended, shown: show::show(&out) }
    }

    /// The number of kept answers, their bytes, and the number of waiting questions.
    #[must_use]
    pub fn used(&self) -> (usize, usize, u32) {
        let (entries, bytes) = lock(&self.cache).used();
        (entries, bytes, lock(&self.shares).waiting())
    }

    /// The servers that were asked, each with the time that an answer takes, and its failures since the last answer.
    #[must_use]
    pub fn upstreams(&self) -> Vec<(SocketAddr, Option<Duration>, u32)> {
        lock(&self.servers).all().collect()
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
    whose: Whose,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.dns.shares).done(self.whose);
    }
}

async fn ask(message: &[u8], server: SocketAddr) -> Result<Response, exchange::NoAnswer> {
    match Query::parse(message) {
        Ok(query) => exchange::ask(&query, server).await,
        Err(_) => Err(exchange::NoAnswer::Broken),
    }
}
