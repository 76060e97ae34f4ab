//! The server of one pool: one task, that owns all that it knows.

use super::sockets::Sockets;
use crate::dhcp::{Now, Origin, Sender};
use crate::dhcp6::metrics::Ended;
use crate::dhcp6::{Answer, Ignored, Metrics, Server, Table, answer, frame, wire};
use crate::ipam::LendError;
use crate::kernel::netlink::Net;
use crate::kernel::packet::{Came, read_all};
use crate::lease::{LeaseError, LeaseHandle, OfContainers, Step, unix_time};
use crate::model::{Mac, PoolName};
use crate::services::bridge_ports::BridgePorts;
use crate::snapshot::Snapshot;
use dhcproto::v6::{Encodable, Message};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;

/// How often an address is chosen for one message. The lease book refuses an address that a container has got since it was
/// chosen; then another one is.
const TRIES: usize = 4;
/// How long an address that the book refused is not chosen again.
const TAKEN: Duration = Duration::from_secs(600);
/// Messages whose leases are being written. Further ones are not answered: their clients ask again.
const MOST_WRITING: usize = 4096;

/// What a server needs.
pub(super) struct PoolServer {
    pub duid: Arc<[u8]>,
    pub pool: PoolName,
    pub link: u32,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub leases: LeaseHandle,
    pub metrics: Arc<Metrics>,
    /// Whether all addresses of the range are in use, and who is told when that changes.
    pub is_exhausted: Arc<AtomicBool>,
    pub changed: Arc<Notify>,
}

/// A message, and who sent it.
struct Asked {
    request: Message,
    /// The first octet of the message.
    kind: u8,
    address: Ipv6Addr,
    from: Origin,
    /// How often an address was chosen for it.
    tries: usize,
}

/// A message whose leases are being written.
struct Writing {
    asked: Asked,
    reply: Message,
    ended: Ended,
    steps: Vec<Step>,
}

type Write = BoxFuture<'static, (Writing, Result<(), LeaseError>)>;

/// A server that runs.
struct Running {
    with: PoolServer,
    sockets: Sockets,
    table: Table,
    ports: BridgePorts,
    writes: FuturesUnordered<Write>,
    /// The addresses of containers that the table knows.
    of_containers: Option<OfContainers>,
    /// The range of the last message.
    range: Option<(Ipv6Addr, Ipv6Addr)>,
    /// Of the last snapshot: the addresses of the pool's containers, by their MAC.
    containers: HashMap<Mac, Option<Ipv6Addr>>,
    snapshot: Option<Arc<Snapshot>>,
}

fn now() -> Now {
    Now { unix: unix_time(), at: Instant::now() }
}

impl PoolServer {
    /// Answers for as long as the sockets work.
    pub async fn serve(self, sockets: Sockets) -> io::Result<()> {
        let table = Table::new(&self.pool, &self.leases.clients().all());
        let ports = BridgePorts::of(self.link, Net::here().map_err(io::Error::other)?);
        let (writes, containers) = (FuturesUnordered::new(), HashMap::new());
        let (of_containers, range, snapshot) = (None, None, None);
        let with = self;
        Running { with, sockets, table, ports, writes, of_containers, range, containers, snapshot }.run().await
    }
}

impl Running {
    async fn run(mut self) -> io::Result<()> {
        loop {
            tokio::select! {
                Some((writing, result)) = self.writes.next() => {
                    self.written(writing, result);
                    // Others of the same batch.
                    while let Some(Some((writing, result))) = self.writes.next().now_or_never() {
                        self.written(writing, result);
                    }
                }
                ready = self.sockets.messages.readable() => {
                    for (packet, came) in read_all(&mut ready?) {
                        self.message(&packet, came).await;
                    }
                    // A socket that is never empty must not keep the thread from others.
                    yield_now().await;
                }
            }
            let is_exhausted = self.table.is_exhausted();
            if self.with.is_exhausted.swap(is_exhausted, Ordering::Relaxed) != is_exhausted {
                self.with.changed.notify_one();
            }
        }
    }

    async fn message(&mut self, packet: &[u8], came: Came) {
        let Some((address, message)) = frame::read(packet) else { return };
        let (kind, mac) = (message.first().copied().unwrap_or_default(), came.mac);
        self.follow();
        let Some(from) = self.ports.admit(mac, self.sender(mac)).await else {
            return self.with.metrics.count(kind, Ended::Limited);
        };
        match wire::read(message) {
            Some(request) => self.answer(Asked { request, kind, address, from, tries: 0 }),
            None => self.with.metrics.count(kind, Ended::Ignored),
        }
    }

    fn sender(&self, mac: Mac) -> Sender {
        match mac {
            _ if self.containers.contains_key(&mac) => Sender::Container,
            _ if self.table.is_client(mac) => Sender::Client,
            _ => Sender::Stranger,
        }
    }

    /// Notes the containers of a new snapshot.
    fn follow(&mut self) {
        let snapshot = self.with.snapshots.borrow().clone();
        if self.snapshot.as_ref().is_some_and(|before| Arc::ptr_eq(before, &snapshot)) {
            return;
        }
        // A container sends from its own MAC alone, which the source guard ensures.
        let attachments = snapshot.attached().flat_map(|(_, attached)| &attached.record.attachments);
        let own = attachments.filter(|attachment| attachment.pool == self.with.pool);
        self.containers = own.map(|attachment| (attachment.mac, attachment.ipv6)).collect();
        self.snapshot = Some(snapshot);
    }

    /// Answers a message at once, or when its leases are on disk.
    fn answer(&mut self, asked: Asked) {
        let Ok(Answer { reply, steps, ended }) = self.decide(&asked) else {
            return self.with.metrics.count(asked.kind, Ended::Ignored);
        };
        if steps.is_empty() {
            return self.send(&asked, &reply, ended);
        }
        if self.writes.len() >= MOST_WRITING {
            return self.with.metrics.count(asked.kind, Ended::Failed);
        }
        self.table.begin(&steps, asked.from, now());
        let leases = self.with.leases.clone();
        self.writes.push(Box::pin(async move {
            let result = leases.change(steps.clone()).await;
            (Writing { asked, reply, ended, steps }, result.map(drop))
        }));
    }

    fn decide(&mut self, asked: &Asked) -> Result<Answer, Ignored> {
        let snapshot = self.snapshot.clone().ok_or(Ignored)?;
        let pool = snapshot.device.pools.get(&self.with.pool).ok_or(Ignored)?;
        let (subnet, settings) = pool.v6.as_ref().zip(pool.dhcp6.as_ref()).ok_or(Ignored)?;
        let server = Server {
            duid: &self.with.duid,
            pool: &self.with.pool,
            net: subnet.net,
            settings,
            dns: pool.dns.as_ref().map(|_| subnet.gateway),
            domain: &snapshot.device.domain,
            container: self.containers.get(&asked.from.mac).copied(),
        };
        if self.range != settings.range {
            self.range = settings.range;
            self.table.note_exhausted(false);
        }
        let of_containers = self.with.leases.of_containers();
        if self.of_containers.as_ref().is_none_or(|before| !of_containers.is_as(before)) {
            let v6 = |address| if let IpAddr::V6(address) = address { Some(address) } else { None };
            self.table.reserve(of_containers.addresses().filter_map(v6).collect());
            self.of_containers = Some(of_containers);
        }
        answer(&server, &asked.request, asked.from, &mut self.table, now())
    }

    /// The lease book has answered.
    fn written(&mut self, writing: Writing, result: Result<(), LeaseError>) {
        let Writing { mut asked, reply, ended, steps } = writing;
        match result {
            Ok(()) => {
                self.table.done(&steps);
                self.send(&asked, &reply, ended);
            }
            Err(LeaseError::Lend(LendError::Container { address, .. } | LendError::Client { address, .. })) => {
                self.table.undo(&steps);
                let now = now();
                if let IpAddr::V6(address) = address {
                    self.table.refused(address, now.at + TAKEN, now);
                }
                asked.tries += 1;
                if asked.tries < TRIES {
                    self.answer(asked);
                } else {
                    self.with.metrics.count(asked.kind, Ended::Failed);
                }
            }
            Err(e) => {
                self.table.undo(&steps);
                let (pool, mac) = (&self.with.pool, asked.from.mac);
                tracing::warn!(%pool, %mac, error = %e, "DHCPv6 lease not written");
                self.with.metrics.count(asked.kind, Ended::Failed);
            }
        }
    }

    fn send(&self, asked: &Asked, reply: &Message, ended: Ended) {
        let sent = reply.to_vec().map_err(io::Error::other);
        let sent = sent.and_then(|reply| self.sockets.answer(&reply, asked.address, asked.from.mac));
        let ended = match sent {
            Ok(()) => ended,
            // The client asks again.
            Err(e) => {
                tracing::debug!(pool = %self.with.pool, to = %asked.address, error = %e, "DHCPv6 answer not sent");
                Ended::Failed
            }
        };
        self.with.metrics.count(asked.kind, ended);
    }
}
