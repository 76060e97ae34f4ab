//! Dropped packets, refused binds and binds of masquerade's ports: from the kernel's ring buffer to everyone who listens.

use super::Shared;
use crate::daemon::Daemon;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use futures_util::stream;
use pv_net_common::event::NOBODY;
use pv_net_common::{BindEvent, DropEvent, DropReason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast::error::RecvError;

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventView {
    /// A packet was dropped.
    Drop(DropEventView),
    /// A program of the device was refused a port.
    Bind(BindEventView),
}

/// A dropped packet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DropEventView {
    /// Seconds since boot.
    pub time: f64,
    /// Why.
    pub reason: String,
    /// Container that sent it.
    pub container: Option<String>,
    /// Link that it came in on.
    pub interface: String,
    /// Source address; none for what is not IP.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port, or echo identifier.
    pub sport: u16,
    /// Destination port, or echo identifier.
    pub dport: u16,
    /// Protocol.
    pub proto: String,
}

/// A program of the device that could not bind to a port, for a container publishes it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BindEventView {
    /// Seconds since boot.
    pub time: f64,
    /// `port-published`.
    pub reason: String,
    /// Container that publishes the port.
    pub container: Option<String>,
    /// The address that the program named.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Protocol.
    pub proto: String,
    /// Name of the program, at most 15 bytes of it.
    pub program: String,
    /// Its process.
    pub pid: u32,
}

impl BindEventView {
    fn new(event: &BindEvent, daemon: &Daemon) -> Self {
        let name = event.comm.split(|b| *b == 0).next().unwrap_or_default();
        Self {
            time: event.time_ns as f64 / 1e9,
            reason: "port-published".to_owned(),
            container: daemon.with_identity(event.identity).map(ToString::to_string),
            address: event.addr.into(),
            port: u16::from_be(event.port_be),
            proto: crate::daemon::proto_name(event.proto),
            // It is the program's to choose: a log line stays one line.
            program: String::from_utf8_lossy(name).escape_debug().to_string(),
            pid: event.pid,
        }
    }

    fn log(&self) {
        let container = self.container.as_deref().unwrap_or("a container that is gone");
        let (address, port, proto, program, pid) = (self.address, self.port, &self.proto, &self.program, self.pid);
        tracing::warn!(%address, port, %proto, %program, pid, %container, "refused to bind: the port is published");
    }
}

/// Which refused binds were logged lately: a program that tries again and again says it once a while.
#[derive(Default)]
struct Logged(HashMap<(IpAddr, u16, String, String), Instant>);

impl Logged {
    fn is_new(&mut self, event: &BindEventView) -> bool {
        const QUIET: Duration = Duration::from_secs(60);
        let now = Instant::now();
        self.0.retain(|_, at| now.duration_since(*at) < QUIET);
        let key = (event.address, event.port, event.proto.clone(), event.program.clone());
        if self.0.contains_key(&key) {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

/// A record of the ring buffer.
enum Record {
    Drop(DropEvent),
    Bind(BindEvent),
}

impl Record {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let drop = DropEvent::from_bytes(bytes).map(Self::Drop);
        drop.or_else(|| BindEvent::from_bytes(bytes).map(Self::Bind))
    }
}

impl DropEventView {
    fn new(event: &DropEvent, daemon: &Daemon) -> Self {
        let at = daemon.container_at(event.ifindex);
        // Packets that are not IP have no addresses.
        let has_addresses = !event.dst.is_unspecified();
        Self {
            time: event.time_ns as f64 / 1e9,
            reason: DropReason::from_number(event.reason)
                .map_or_else(|| event.reason.to_string(), |r| r.label().to_owned()),
            container: at.map(|(container, _)| container.to_string()),
            interface: at
                .map(|(_, host_if)| host_if)
                .or_else(|| daemon.uplink_at(event.ifindex))
                .map_or_else(|| event.ifindex.to_string(), ToString::to_string),
            src: has_addresses.then(|| event.src.into()),
            dst: has_addresses.then(|| event.dst.into()),
            sport: u16::from_be(event.sport_be),
            dport: u16::from_be(event.dport_be),
            proto: crate::daemon::proto_name(event.proto),
        }
    }
}

/// Starts to forward the kernel's events, when the data plane is loaded and nobody does yet.
pub async fn forward_events(shared: &Shared) {
    if shared.forwarding.load(Ordering::Relaxed) {
        return;
    }
    let ring = {
        let mut daemon = shared.daemon().await;
        let Ok(plane) = daemon.plane() else { return };
        match plane.events() {
            Ok(ring) => ring,
            Err(e) => {
                tracing::warn!(error = %e, "no drop events");
                return;
            }
        }
    };
    shared.forwarding.store(true, Ordering::Relaxed);
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Err(e) = forward(ring, &shared).await {
            tracing::warn!(error = %e, "drop events ended");
        }
    });
}

async fn forward(ring: RingBuf<MapData>, shared: &Shared) -> std::io::Result<()> {
    // SAFETY: the ring buffer owns its file descriptor and closes it only when it is dropped.
    let mut ring = unsafe { AsyncFd::register(ring) }?;
    let mut logged = Logged::default();
    loop {
        let mut guard = ring.readable_mut().await?;
        let mut records = Vec::new();
        while let Some(item) = guard.get_inner_mut().next() {
            records.extend(Record::from_bytes(&item));
        }
        guard.clear_ready();
        if shared.events.receiver_count() == 0 {
            // Refused binds are logged, and flows end, all the same.
            records.retain(|record| matches!(record, Record::Bind(_)));
        }
        if records.is_empty() {
            continue;
        }
        let mut daemon = shared.daemon().await;
        for record in &records {
            let view = match record {
                Record::Bind(event) if event.identity == NOBODY => {
                    daemon.port_is_taken(event.proto, u16::from_be(event.port_be));
                    continue;
                }
                Record::Drop(event) => EventView::Drop(DropEventView::new(event, &daemon)),
                Record::Bind(event) => {
                    let view = BindEventView::new(event, &daemon);
                    if logged.is_new(&view) {
                        view.log();
                    }
                    EventView::Bind(view)
                }
            };
            // Nobody listens any more: nothing is lost.
            let _ = shared.events.send(view);
        }
    }
}

/// `GET /events`: one JSON object a line, until the client hangs up.
pub(super) async fn stream(State(shared): State<Shared>) -> Response {
    let receiver = shared.events.subscribe();
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let line = match receiver.recv().await {
            Ok(event) => serde_json::to_string(&event).unwrap_or_default(),
            Err(RecvError::Lagged(n)) => format!(r#"{{"missed":{n}}}"#),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line + "\n")), receiver))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
