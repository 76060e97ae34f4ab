//! The flow table.

use crate::kernel::bpf::{BpfError, FlowRecord};
use crate::model::proto_name;
use crate::snapshot::Snapshot;
use pv_net_common::flow::FLOW_REPLY;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One direction of a flow.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or echo identifier.
    pub sport: u16,
    /// Destination port, or echo identifier.
    pub dport: u16,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub proto: String,
    /// Link that it comes in on.
    pub interface: String,
    /// Container that sends.
    pub container: Option<String>,
    /// `original` or `reply`.
    pub direction: String,
    /// Packets forwarded by the entry.
    pub packets: u64,
    /// Bytes forwarded by the entry.
    pub bytes: u64,
    /// `opening`, `established` or `closing`.
    pub state: String,
    /// Seconds since the last packet; none when this direction had no packet yet.
    pub age: Option<f64>,
}

/// The flow table. The time grows with the number of flows.
///
/// # Errors
/// When the kernel refuses to read it.
pub fn flows(snapshot: &Snapshot) -> Result<Vec<FlowView>, BpfError> {
    let Some(plane) = &snapshot.plane else { return Ok(Vec::new()) };
    Ok(plane.reader.flows()?.iter().map(|record| view(record, snapshot)).collect())
}

fn view(record: &FlowRecord, snapshot: &Snapshot) -> FlowView {
    let place = snapshot.interfaces.get(&record.key.link.number());
    let host_if = place.and_then(|p| p.attachment()).map(|a| a.host_if.to_string());
    FlowView {
        src: record.key.src.into(),
        dst: record.key.dst.into(),
        sport: u16::from_be(record.key.sport_be),
        dport: u16::from_be(record.key.dport_be),
        proto: proto_name(record.key.proto),
        interface: host_if.unwrap_or_else(|| record.key.link.to_string()),
        container: place.map(|p| p.container.name.to_string()),
        direction: if record.entry.flags & FLOW_REPLY == 0 { "original" } else { "reply" }.to_owned(),
        packets: record.entry.packets,
        bytes: record.entry.bytes,
        state: record.state.label().to_owned(),
        age: record.age_secs.map(|secs| (secs * 1000.0).round() / 1000.0),
    }
}
