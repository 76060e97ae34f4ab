//! The daemon as a whole.

use crate::kernel::bpf::BpfError;
use crate::model::IfName;
use crate::runner::client::Statuses;
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether the daemon works.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HealthView {
    /// Always true: a daemon that does not work answers with an error.
    pub healthy: bool,
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusView {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// What it took over from an earlier one.
    pub adopted: AdoptedView,
    /// Policy generation in the kernel.
    pub generation: u32,
    /// `tcx` or `clsact`; none while nothing is loaded.
    pub hook: Option<String>,
    /// Counters.
    pub data_plane: DataPlaneView,
    /// Uplinks.
    pub uplinks: Vec<UplinkView>,
    /// Pools.
    pub pools: usize,
    /// Attached containers.
    pub containers: usize,
    /// What is wrong.
    pub conditions: Vec<String>,
}

/// What was taken over.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AdoptedView {
    /// The maps were there.
    pub maps: bool,
    /// The programs were, the same that the daemon would have loaded.
    pub programs: bool,
    /// Host-side links that it put its programs on.
    pub links: usize,
    /// Containers that were attached.
    pub containers: usize,
}

/// Counters of the data plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DataPlaneView {
    /// Packets by path.
    pub stats: BTreeMap<String, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<String, u64>,
}

/// An uplink.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UplinkView {
    /// Its name.
    pub name: String,
    /// How the filter runs there: `native`, `generic` or `off`.
    pub xdp: String,
}

/// Counters by name.
///
/// # Errors
/// When the kernel refuses to read them.
pub fn counters(snapshot: &Snapshot) -> Result<DataPlaneView, BpfError> {
    let Some(plane) = &snapshot.plane else { return Ok(DataPlaneView::default()) };
    Ok(DataPlaneView {
        stats: plane.reader.stats()?.into_iter().map(|(s, n)| (s.label().to_owned(), n)).collect(),
        drops: plane.reader.drops()?.into_iter().map(|(r, n)| (r.label().to_owned(), n)).collect(),
    })
}

/// The daemon as a whole.
///
/// # Errors
/// When the counters or the pins cannot be read.
pub fn status(snapshot: &Snapshot, statuses: &Statuses) -> Result<StatusView, BpfError> {
    let adopted = snapshot.adopted;
    let known = statuses.all.iter().filter(|(name, _)| snapshot.container(name).is_some());
    let failed = known.filter_map(|(name, status)| Some(format!("container {name}: {}", status.why.as_ref()?)));
    Ok(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        adopted: AdoptedView {
            maps: adopted.maps,
            programs: adopted.programs,
            links: adopted.links,
            containers: adopted.containers,
        },
        generation: snapshot.policy.generation,
        hook: snapshot.plane.as_ref().map(|p| p.hook.label().to_owned()),
        data_plane: counters(snapshot)?,
        uplinks: uplinks(snapshot)?,
        pools: snapshot.device.pools.len(),
        containers: snapshot.attached().count(),
        conditions: snapshot.conditions.iter().cloned().chain(failed).collect(),
    })
}

/// The uplinks that are there.
fn uplinks(snapshot: &Snapshot) -> Result<Vec<UplinkView>, BpfError> {
    let filtered = match &snapshot.plane {
        Some(plane) => plane.reader.filtered_uplinks()?,
        None => Vec::new(),
    };
    let mode = |index: u32| filtered.iter().find(|(i, _)| *i == index).map_or("off", |(_, mode)| mode.label());
    let view = |(name, index): (&IfName, &u32)| UplinkView { name: name.to_string(), xdp: mode(*index).to_owned() };
    Ok(snapshot.uplinks.iter().map(view).collect())
}
