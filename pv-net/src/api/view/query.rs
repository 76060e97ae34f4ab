//! A question for a name that was answered, for `monitor --dns`.

use super::names::{RecordView, record};
use crate::dns::metrics::Ended;
use crate::dns::{Exchange, Whose};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;
use std::net::IpAddr;

/// A question for a name, and its answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct QueryView {
    /// When it was answered, in seconds since boot.
    pub time: f64,
    /// The container that asked; none for the device and for other hosts of a pool.
    pub container: Option<String>,
    /// The pool in which it was asked; none for the device.
    pub pool: Option<String>,
    /// The address that the question came from.
    pub client: IpAddr,
    /// How it came.
    pub transport: QueryTransport,
    /// The name; none when the message was no question.
    pub name: Option<String>,
    /// Type of the records that were asked for.
    pub r#type: Option<String>,
    /// How it ended, such as `NOERROR` or `NXDOMAIN`.
    pub status: String,
    /// Where the answer comes from.
    pub source: Ended,
    /// The other server that has given the answer, now or some time ago.
    pub server: Option<String>,
    /// Why there is no answer, where that is known, or how much of it is not in `records`.
    pub reason: Option<String>,
    /// The first records of the answer; none of one that is larger than a datagram.
    pub records: Vec<RecordView>,
    /// How long the answer took, in seconds.
    pub took_secs: f64,
}

/// How a question came.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueryTransport {
    /// In a datagram.
    Udp,
    /// By a connection.
    Tcp,
}

/// The question with the container's name.
#[must_use]
pub fn query(snapshot: &Snapshot, exchange: &Exchange) -> QueryView {
    let container = match exchange.whose {
        Whose::Container(identity) => snapshot.with_identity(identity).map(ToString::to_string),
        Whose::Others(_) | Whose::Device => None,
    };
    let (name, kind) = exchange.asked().unzip();
    let shown = exchange.shown();
    QueryView {
        time: exchange.time.as_secs_f64(),
        container,
        pool: exchange.pool.as_ref().map(ToString::to_string),
        client: exchange.address,
        transport: if exchange.is_datagram { QueryTransport::Udp } else { QueryTransport::Tcp },
        name,
        r#type: kind,
        status: shown.status,
        source: exchange.ended,
        server: exchange.server.as_ref().map(ToString::to_string),
        reason: shown.why,
        records: shown.records.into_iter().map(record).collect(),
        took_secs: exchange.took.as_secs_f64(),
    }
}
