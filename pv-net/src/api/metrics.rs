//! `GET /metrics`: the OpenMetrics text that Prometheus reads.

use super::openapi::{content, ok};
use super::{Api, view};
use crate::failure::{Failure, Kind};
use crate::lease::unix_time;
use crate::snapshot::Snapshot;
use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{Operation, StatusCode};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    pool: String,
}

/// The text of the metrics.
pub(super) struct OpenMetrics(String);

impl IntoResponse for OpenMetrics {
    fn into_response(self) -> Response {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], self.0).into_response()
    }
}

impl OperationOutput for OpenMetrics {
    type Inner = String;

    fn inferred_responses(
        ctx: &mut GenContext,
        _: &mut Operation,
    ) -> Vec<(Option<StatusCode>, aide::openapi::Response)> {
        vec![ok(content::<String>(ctx, "application/openmetrics-text", "Counters and gauges"))]
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Question {
    r#type: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    server: String,
}

fn dns(api: &Api, registry: &mut Registry) {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let queries = Family::<Question, Counter>::default();
    for (r#type, result, n) in api.dns.metrics.queries() {
        queries.get_or_create(&Question { r#type, result }).inc_by(n);
    }
    registry.register("dns_queries", "Questions of containers for names, by type and how they ended", queries);
    let latency = api.dns.metrics.upstream_seconds.clone();
    registry.register("dns_upstream_seconds", "What other servers took to answer", latency);
    let (entries, bytes, waiting) = api.dns.used();
    for (name, help, n) in [
        ("dns_cache_entries", "Answers of other servers that are kept", count(entries)),
        ("dns_cache_bytes", "Bytes that they take", count(bytes)),
        ("dns_waiting", "Questions that wait for other servers", i64::from(waiting)),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(n);
        registry.register(name, help, gauge);
    }
    let (failures, takes) = (Family::<Server, Gauge>::default(), Family::<Server, Gauge<f64, AtomicU64>>::default());
    for (server, took, failed) in api.dns.upstreams() {
        let label = Server { server: server.to_string() };
        failures.get_or_create(&label).set(failed.into());
        if let Some(took) = took {
            takes.get_or_create(&label).set(took.as_secs_f64());
        }
    }
    registry.register("dns_server_failures", "Times in a row that a server did not answer", failures);
    registry.register("dns_server_seconds", "What a server takes to answer, smoothed", takes);
    let missed = Counter::<u64>::default();
    missed.inc_by(api.dns.missed());
    registry.register("dns_monitor_missed", "Questions that those who watch were too slow for", missed);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Message {
    r#type: &'static str,
    result: &'static str,
}

fn ra(api: &Api, registry: &mut Registry) {
    let messages = Family::<Message, Counter>::default();
    for (r#type, result, n) in api.advertised.messages() {
        messages.get_or_create(&Message { r#type, result }).inc_by(n);
    }
    registry.register("ra_messages", "Solicitations and advertisements of routers, by what became of them", messages);
}

fn dhcp6(api: &Api, registry: &mut Registry) {
    let messages = Family::<Message, Counter>::default();
    for (r#type, result, n) in api.leased.messages() {
        messages.get_or_create(&Message { r#type, result }).inc_by(n);
    }
    registry.register("dhcp6_messages", "Messages of DHCPv6 clients, by what became of them", messages);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

fn dhcp(api: &Api, snapshot: &Snapshot, registry: &mut Registry) {
    let (received, sent) = (Family::<Type, Counter>::default(), Family::<Type, Counter>::default());
    for (r#type, n) in api.dhcp.all_received() {
        received.get_or_create(&Type { r#type }).inc_by(n);
    }
    for (r#type, n) in api.dhcp.all_sent() {
        sent.get_or_create(&Type { r#type }).inc_by(n);
    }
    let silent = Family::<Why, Counter>::default();
    for (reason, n) in api.dhcp.all_silent() {
        silent.get_or_create(&Why { reason }).inc_by(n);
    }
    registry.register("dhcp_received", "DHCP messages that came, by type, or by why they are not read", received);
    registry.register("dhcp_sent", "DHCP messages that were sent, by type", sent);
    registry.register("dhcp_unanswered", "DHCP messages of clients that were not answered, by why", silent);
    let (used, free) = (Family::<Pool, Gauge>::default(), Family::<Pool, Gauge>::default());
    let (clients, now) = (api.leases.clients().all(), unix_time());
    for pool in snapshot.device.pools.values().filter(|pool| pool.dhcp.is_some()) {
        let Some((first, last)) = pool.v4.as_ref().and_then(|v4| v4.dhcp_range) else { continue };
        let size = i64::from(u32::from(last)) - i64::from(u32::from(first)) + 1;
        let is_in_range = |address| matches!(address, IpAddr::V4(address) if (first..=last).contains(&address));
        let live = clients.iter().filter(|l| l.pool == pool.name && is_in_range(l.address) && !l.is_over(now));
        let live = i64::try_from(live.count()).unwrap_or(i64::MAX);
        let label = Pool { pool: pool.name.to_string() };
        used.get_or_create(&label).set(live);
        free.get_or_create(&label).set(size.saturating_sub(live));
    }
    registry.register("dhcp_leases", "Addresses of a pool's DHCP range that clients have", used);
    registry.register("dhcp_free", "Addresses of a pool's DHCP range that no client has", free);
}

pub(super) async fn metrics(State(api): State<Api>) -> Result<OpenMetrics, Failure> {
    let snapshot = api.snapshot();
    let counters = view::counters(&snapshot)?;
    let mut registry = Registry::with_prefix("pv_net");
    let drops = Family::<Reason, Counter>::default();
    for (reason, n) in counters.drops {
        drops.get_or_create(&Reason { reason }).inc_by(n);
    }
    registry.register("drops", "Dropped packets by reason", drops);
    let packets = Family::<Path, Counter>::default();
    for (path, n) in counters.stats {
        packets.get_or_create(&Path { path }).inc_by(n);
    }
    registry.register("packets", "Packets and events by path", packets);
    let containers = Gauge::<i64>::default();
    containers.set(i64::try_from(snapshot.containers.len()).unwrap_or(i64::MAX));
    registry.register("containers", "Containers, attached or declared", containers);
    let (used, size) = (Family::<Pool, Gauge>::default(), Family::<Pool, Gauge>::default());
    for pool in view::pools(&snapshot) {
        let label = Pool { pool: pool.name };
        used.get_or_create(&label).set(i64::try_from(pool.used).unwrap_or(i64::MAX));
        size.get_or_create(&label).set(i64::try_from(pool.size).unwrap_or(i64::MAX));
    }
    registry.register("pool_leases", "Leases of a pool", used);
    registry.register("pool_addresses", "Addresses that a pool has for containers", size);
    dns(&api, &mut registry);
    ra(&api, &mut registry);
    dhcp(&api, &snapshot, &mut registry);
    dhcp6(&api, &mut registry);
    let missed = Counter::<u64>::default();
    missed.inc_by(api.bus.missed());
    registry.register("events_missed", "Events that listeners were too slow for", missed);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|e| Failure::new(Kind::Internal, format!("metrics: {e}")))?;
    Ok(OpenMetrics(text))
}
