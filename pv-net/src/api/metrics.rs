//! `GET /metrics`: the OpenMetrics text that Prometheus reads.

use super::{Api, view};
use crate::failure::{Failure, Kind};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

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

pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failure> {
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
    let missed = Counter::<u64>::default();
    missed.inc_by(api.bus.missed());
    registry.register("events_missed", "Events that listeners were too slow for", missed);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|e| Failure::new(Kind::Internal, format!("metrics: {e}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
