//! The server of one pool: one task, that owns all that it knows.

use super::Shared;
use super::sockets::Sockets;
use crate::dhcp::message;
use crate::dhcp::{Act, Config, Now, Outcome, Received, Reply, Sender, Server, frame};
use crate::events::{Change, EventView};
use crate::ipam::ClientId;
use crate::kernel::netlink::Net;
use crate::kernel::packet::{read_all, read_now};
use crate::lease::{LeaseError, LeaseHandle, OfContainers, Step, unix_time};
use crate::model::Mac;
use crate::services::bridge_ports::BridgePorts;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::sleep_until;

/// A write that has ended.
type Write = BoxFuture<'static, (ClientId, Outcome)>;

/// Serves a pool until its configuration ends.
pub(super) struct PoolServer {
    shared: Arc<Shared>,
    sockets: Sockets,
    server: Server,
    ports: BridgePorts,
    /// The addresses of containers that the server knows.
    of_containers: Option<OfContainers>,
    writes: FuturesUnordered<Write>,
    is_exhausted: Arc<AtomicBool>,
}

fn now() -> Now {
    Now { unix: unix_time(), at: Instant::now() }
}

impl PoolServer {
    /// A server with these sockets. It says in `is_exhausted` whether all addresses are in use.
    ///
    /// # Errors
    /// When there is no netlink socket.
    pub fn new(
        shared: Arc<Shared>,
        config: Config,
        sockets: Sockets,
        is_exhausted: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let net = Net::here().map_err(io::Error::other)?;
        let ports = BridgePorts::of(config.link, net);
        let clients = shared.leases.clients().all();
        let server = Server::new(config, &clients, now());
        let (of_containers, writes) = (None, FuturesUnordered::new());
        Ok(Self { shared, sockets, server, ports, of_containers, writes, is_exhausted })
    }

    /// Serves until there is no configuration any more, or a socket fails.
    pub async fn run(mut self, mut configs: watch::Receiver<Config>) {
        self.reserve();
        self.probe();
        loop {
            let deadline = self.server.deadline();
            let tick = async { if let Some(at) = deadline { sleep_until(at.into()).await } else { pending().await } };
            tokio::select! {
                changed = configs.changed() => match changed {
                    Ok(()) => self.server.follow(configs.borrow_and_update().clone()),
                    Err(_) => return,
                },
                Some((client, outcome)) = self.writes.next() => {
                    self.written(&client, outcome);
                    // Others of the same batch.
                    while let Some(Some((client, outcome))) = self.writes.next().now_or_never() {
                        self.written(&client, outcome);
                    }
                }
                () = tick => {
                    self.answers_so_far().await;
                    let acts = self.server.tick(now());
                    acts.into_iter().for_each(|act| self.act(act));
                }
                ready = self.sockets.answers.readable() => {
                    let Ok(came) = ready.map(|mut ready| read_all(&mut ready)) else { return };
                    for (packet, came) in &came {
                        self.answered(packet, came.mac).await;
                    }
                    // A socket that is never empty must not keep the thread from others.
                    yield_now().await;
                }
                ready = self.sockets.messages.readable() => {
                    let Ok(came) = ready.map(|mut ready| read_all(&mut ready)) else { return };
                    self.answers_so_far().await;
                    self.reserve();
                    for (packet, came) in &came {
                        self.message(packet, came.mac).await;
                    }
                    yield_now().await;
                }
            }
            self.probe();
            let is_exhausted = self.server.is_exhausted();
            if self.is_exhausted.swap(is_exhausted, Ordering::Relaxed) != is_exhausted {
                self.shared.changed.notify_one();
            }
        }
    }

    fn probe(&mut self) {
        for address in self.server.take_probes() {
            // Without the question nobody answers, and the address is given.
            if let Err(e) = self.sockets.probe(address) {
                tracing::debug!(%address, error = %e, "probe not sent");
            }
        }
    }

    async fn message(&mut self, packet: &[u8], mac: Mac) {
        let Some(bytes) = frame::read(packet, self.server.config().server) else { return };
        let metrics = &self.shared.metrics;
        let query = match message::read(bytes) {
            Ok(query) => query,
            Err(why) => return metrics.received(Received::Unread(why)),
        };
        if query.mac != mac {
            return metrics.received(Received::Forged);
        }
        let sender = self.sender(mac);
        let Some(from) = self.ports.admit(mac, sender).await else { return metrics.received(Received::Limited) };
        metrics.received(Received::Query(query.kind));
        let act = self.server.receive(query, from, now());
        self.act(act);
    }

    fn sender(&self, mac: Mac) -> Sender {
        match mac {
            _ if self.server.config().managed.contains_key(&mac) => Sender::Container,
            _ if self.server.is_client(mac) => Sender::Client,
            _ => Sender::Stranger,
        }
    }

    /// An answer to a probe that is here came in time, however late this task is.
    async fn answers_so_far(&mut self) {
        for (packet, came) in read_now(self.sockets.answers.get_ref()) {
            self.answered(&packet, came.mac).await;
        }
    }

    /// Notes the addresses of containers, if they have changed.
    fn reserve(&mut self) {
        let now = self.shared.leases.of_containers();
        if self.of_containers.as_ref().is_some_and(|before| now.is_as(before)) {
            return;
        }
        let v4 = |address| if let IpAddr::V4(address) = address { Some(address) } else { None };
        self.server.reserve(now.addresses().filter_map(v4).collect());
        self.of_containers = Some(now);
    }

    async fn answered(&mut self, packet: &[u8], mac: Mac) {
        let Some(address) = frame::answer(packet) else { return };
        if !self.server.is_asked_for(address, now()) {
            return;
        }
        let Some(from) = self.ports.find(mac, self.sender(mac)).await else { return };
        let Some(act) = self.server.answered(address, from, now()) else { return };
        tracing::info!(pool = %self.server.config().pool, %address, %mac, "DHCP: an address of the range is in use");
        let text = format!("pool {}: {address} of its DHCP range is used by {mac}", self.server.config().pool);
        self.tell(Change::AddressConflict, text);
        self.act(act);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Silent(why) => self.shared.metrics.silent(why),
            Act::Send(reply) => self.send(&reply),
            Act::Wait => {}
            Act::Write(client, steps) => self.writes.push(Box::pin(write(self.shared.leases.clone(), client, steps))),
        }
    }

    fn written(&mut self, client: &ClientId, outcome: Outcome) {
        let written = self.server.written(client, outcome, now());
        if let Some(reply) = &written.reply {
            self.send(reply);
        }
        if let Some(lease) = written.is_new {
            let who = lease.mac.map_or_else(|| lease.client.to_string(), |mac| mac.to_string());
            let name = lease.hostname.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            self.tell(Change::Leased, format!("pool {}: {} to {who}{name}", lease.pool, lease.address));
        }
    }

    fn send(&self, reply: &Reply) {
        match self.sockets.send(self.server.config().server, reply) {
            Ok(()) => self.shared.metrics.sent(reply.kind),
            // The client asks again.
            Err(e) => tracing::debug!(to = %reply.mac, error = %e, "DHCP message not sent"),
        }
    }

    fn tell(&self, event: Change, text: String) {
        self.shared.bus.publish(EventView::change(event, None, Some(text)));
    }
}

async fn write(leases: LeaseHandle, client: ClientId, steps: Vec<Step>) -> (ClientId, Outcome) {
    let outcome = match leases.change(steps).await {
        Ok(_) => Outcome::Done,
        Err(LeaseError::Lend(e)) => {
            tracing::info!(error = %e, "DHCP: an address was given already");
            Outcome::Taken
        }
        Err(e) => {
            tracing::warn!(error = %e, "DHCP: lease not written, and the client not answered");
            Outcome::Failed
        }
    };
    (client, outcome)
}
