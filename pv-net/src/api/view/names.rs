//! What a container would be answered when it asks for a name.

use crate::dns::{Dns, Resolved, metrics::Ended, name, show};
use crate::failure::{Failure, Kind};
use crate::model::ContainerName;
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// The query of `GET /resolve`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveQuery {
    /// The name. One label is a name in the device's domain.
    pub name: String,
    /// Type of the records, such as `AAAA`; those of addresses unless given.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The container that asks; the device, which sees all names, unless given.
    pub from: Option<String>,
}

/// What would be answered.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ResolveView {
    /// The name that was asked for.
    pub name: String,
    /// An answer a type.
    pub answers: Vec<AnswerView>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AnswerView {
    /// Type of the records that were asked for.
    pub r#type: String,
    /// How it ended, such as `NOERROR` or `NXDOMAIN`.
    pub status: String,
    /// Where the answer comes from.
    pub source: Ended,
    /// The other server that has given the answer, now or some time ago.
    pub server: Option<String>,
    /// Why there is none, where that is known.
    pub reason: Option<String>,
    /// Its records.
    pub records: Vec<RecordView>,
}

/// A record.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RecordView {
    /// Whose.
    pub name: String,
    /// Its type.
    pub r#type: String,
    /// How long it may be kept, in seconds.
    pub ttl_secs: u32,
    /// What it says.
    pub data: String,
}

/// A record of an answer.
pub(super) fn record(r: show::Line) -> RecordView {
    RecordView { name: r.name, r#type: r.kind, ttl_secs: r.ttl, data: r.data }
}

fn view(kind: &str, resolved: Resolved) -> AnswerView {
    let Resolved { ended, server, shown } = resolved;
    AnswerView {
        r#type: kind.to_owned(),
        status: shown.status,
        source: ended,
        server: server.map(|server| server.to_string()),
        reason: shown.why,
        records: shown.records.into_iter().map(record).collect(),
    }
}

/// What would be answered.
///
/// # Errors
/// When the name, the type or the container is invalid, or no gateway answers the container's questions.
pub async fn resolve(snapshot: &Snapshot, dns: &Arc<Dns>, query: &ResolveQuery) -> Result<ResolveView, Failure> {
    let usage = |why: String| Failure::new(Kind::Usage, why);
    let is_bare = !query.name.trim_end_matches('.').contains('.') && !query.name.ends_with('.');
    let text = if is_bare { format!("{}.{}", query.name, snapshot.device.domain) } else { query.name.clone() };
    let wire = name::from_text(&text).ok_or_else(|| {
        usage(format!("name {:?}: a label has 1 to 63 characters, and all of it at most 253", query.name))
    })?;
    let zone = dns.zone();
    let client = match &query.from {
        None => zone.device(),
        Some(from) => {
            let name: ContainerName = from.parse().map_err(|e| usage(format!("container {from:?}: {e}")))?;
            let found = snapshot.container(&name).and_then(|c| c.attached());
            let attached = found.ok_or_else(|| {
                Failure::new(Kind::NotFound, format!("container {from}: not attached"))
                    .help("pv-net containers lists all")
            })?;
            let main = attached.main().into_iter().chain(&attached.record.attachments);
            let addresses = main.flat_map(|a| a.ipv4.map(IpAddr::from).into_iter().chain(a.ipv6.map(IpAddr::from)));
            zone.client_of(addresses).ok_or_else(|| {
                let why = format!("container {from}: no gateway of its pools answers questions for names");
                Failure::new(Kind::Conflict, why).help("pools of type bridge answer, unless they have \"dns\": false")
            })?
        }
    };
    let kinds = match &query.kind {
        Some(kind) => vec![kind.to_ascii_uppercase()],
        None => vec!["A".to_owned(), "AAAA".to_owned()],
    };
    let mut answers = Vec::new();
    for kind in kinds {
        let number = show::type_of(&kind)
            .ok_or_else(|| usage(format!("type {kind:?}: not known")).help("such as A, AAAA, PTR or TYPE65"))?;
        answers.push(view(&kind, dns.resolve(client, &wire, number).await));
    }
    Ok(ResolveView { name: name::to_text(&wire), answers })
}
