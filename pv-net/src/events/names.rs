//! Turns the kernel's records into events with names instead of numbers.

use super::{BindEventView, Change, ChangeEventView, DropEventView, EventView};
use crate::model::{ContainerName, proto_name};
use crate::snapshot::Snapshot;
use nix::time::{ClockId, clock_gettime};
use pv_net_common::{BindEvent, DropEvent, DropReason};
use std::time::Duration;

/// The event for a dropped packet.
pub(super) fn dropped(event: &DropEvent, snapshot: &Snapshot) -> DropEventView {
    let place = snapshot.interfaces.get(&event.ifindex);
    let host_if = place.and_then(|p| p.attachment()).map(|a| &a.host_if);
    // Packets that are not IP have no addresses.
    let has_addresses = !event.dst.is_unspecified();
    DropEventView {
        time: event.time_ns as f64 / 1e9,
        reason: DropReason::from_number(event.reason)
            .map_or_else(|| event.reason.to_string(), |r| r.label().to_owned()),
        container: place.map(|p| p.container.name.to_string()),
        interface: host_if
            .or_else(|| snapshot.uplink_at(event.ifindex))
            .map_or_else(|| event.ifindex.to_string(), ToString::to_string),
        src: has_addresses.then(|| event.src.into()),
        dst: has_addresses.then(|| event.dst.into()),
        sport: u16::from_be(event.sport_be),
        dport: u16::from_be(event.dport_be),
        proto: proto_name(event.proto),
    }
}

/// The event for a refused bind.
pub(super) fn refused(event: &BindEvent, snapshot: &Snapshot) -> BindEventView {
    let name = event.comm.split(|b| *b == 0).next().unwrap_or_default();
    BindEventView {
        time: event.time_ns as f64 / 1e9,
        reason: "port-published".to_owned(),
        container: snapshot.with_identity(event.identity).map(ToString::to_string),
        address: event.addr.into(),
        port: u16::from_be(event.port_be),
        proto: proto_name(event.proto),
        // The program chooses its name, so control characters are escaped: a log entry must stay one line.
        program: String::from_utf8_lossy(name).escape_debug().to_string(),
        pid: event.pid,
    }
}

impl EventView {
    /// The event for a change that just happened.
    #[must_use]
    pub fn change(event: Change, container: Option<ContainerName>, text: Option<String>) -> Self {
        // The same clock as `bpf_ktime_get_ns`.
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let container = container.map(|name| name.to_string());
        Self::Change(ChangeEventView { time: time.as_secs_f64(), event, container, text })
    }
}
