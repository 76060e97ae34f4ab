//! Drop events: from the kernel's ring buffer to everyone who listens.

use super::Shared;
use crate::daemon::Daemon;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use futures_util::stream;
use pv_net_common::{DropEvent, DropReason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast::error::RecvError;

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
    loop {
        let mut guard = ring.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(item) = guard.get_inner_mut().next() {
            events.extend(DropEvent::from_bytes(&item));
        }
        guard.clear_ready();
        if shared.events.receiver_count() == 0 {
            continue;
        }
        let daemon = shared.daemon().await;
        for event in &events {
            // Nobody listens any more: nothing is lost.
            let _ = shared.events.send(DropEventView::new(event, &daemon));
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
