//! Containers.

use crate::failure::{Failure, Kind};
use crate::model::{
    Attachment, Candidate, ContainerName, DefaultRoutes, Device, Ending, Interface, NetnsRef, Pool, RunState,
    RunStatus, default_routes, reached_at,
};
use crate::runner::client::Statuses;
use crate::snapshot::{Attached, ContainerStatus, Phase, Plane, Snapshot};
use nix::time::{ClockId, clock_gettime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Whether its links exist.
    pub state: ContainerState,
    /// Whether it runs, if pv-net can start it by its `run.json`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runtime: Option<RuntimeView>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// IPv4 address of the interface with the default route for IPv4, else of the first that has one.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address of the interface with the default route for IPv6, else of the first that has one.
    pub ipv6_address: Option<Ipv6Addr>,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// What a container's runtime says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeView {
    /// Whether it runs.
    pub state: RunStateView,
    /// Its first process, while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Seconds since the start of that process, or else since the change to this state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub age_secs: Option<u64>,
    /// How its first process has ended.
    #[serde(flatten)]
    pub ending: Ending,
    /// Why it has failed, how it has ended, or why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunStateView {
    /// It runs.
    Running,
    /// It is being started or stopped.
    Changing,
    /// It does not run: nobody has started it, it was stopped, or it has ended without an error.
    Stopped,
    /// It could not be started or stopped, or has ended with an error.
    Failed,
    /// The runner, which asks the runtimes, does not run, or its runtime has not answered yet.
    Unknown,
}

impl RuntimeView {
    fn of(status: &RunStatus, now: Option<u64>) -> Self {
        let state = match status.state {
            RunState::Running => RunStateView::Running,
            RunState::Changing => RunStateView::Changing,
            RunState::Stopped => RunStateView::Stopped,
            RunState::Failed => RunStateView::Failed,
        };
        let age_secs = now.zip(status.since_boot_secs).map(|(now, since)| now.saturating_sub(since));
        Self { state, pid: status.pid, age_secs, ending: status.ending, why: status.why.clone() }
    }

    fn unknown(is_runner_there: bool) -> Self {
        let why = if is_runner_there { "its runtime has not answered yet" } else { "the runner does not run" };
        Self {
            state: RunStateView::Unknown,
            pid: None,
            age_secs: None,
            ending: Ending::default(),
            why: Some(why.to_owned()),
        }
    }
}

/// Seconds since the boot.
fn since_boot() -> Option<u64> {
    u64::try_from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?.tv_sec()).ok()
}

/// Whether a container's links exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// All of its links exist.
    Attached,
    /// It was attached, but not all of its links exist any more: its namespace went away, or it has deleted one.
    Detached,
    /// It has a `run.json` and was not attached yet.
    Declared,
}

/// An interface of a container.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceView {
    /// Name inside the container.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// IPv4 address.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6_address: Option<Ipv6Addr>,
    /// MAC.
    pub mac_address: Option<String>,
    /// Name of the host-side link.
    pub host_if: Option<String>,
    /// Kind of its link, `veth` or `netkit`, when it is attached. A pool's `link` counts from the container's next
    /// start on.
    pub link: Option<String>,
    /// Whether a default route goes through it.
    pub default_route: bool,
    /// The gateways of the default routes that go through it, at most one a family.
    pub default_gateways: Vec<IpAddr>,
    /// Flows in the flow table that count for it, when it is attached.
    pub flows: Option<u64>,
    /// How many there may be.
    pub max_flows: Option<u32>,
}

/// All containers, attached or declared.
#[must_use]
pub fn containers(snapshot: &Snapshot, statuses: &Statuses) -> Vec<ContainerView> {
    snapshot.containers.iter().map(|c| view(c, snapshot, statuses)).collect()
}

/// One container.
///
/// # Errors
/// When no container has the name.
pub fn container(snapshot: &Snapshot, statuses: &Statuses, name: &ContainerName) -> Result<ContainerView, Failure> {
    match snapshot.container(name) {
        Some(container) => Ok(view(container, snapshot, statuses)),
        None => Err(Failure::new(Kind::NotFound, format!("container {name}: no such container"))),
    }
}

fn view(container: &ContainerStatus, snapshot: &Snapshot, statuses: &Statuses) -> ContainerView {
    let view = match &container.phase {
        Phase::Attached(attached) => attached_view(container, attached, snapshot),
        Phase::Declared { interfaces, .. } => ContainerView {
            name: container.name.to_string(),
            state: ContainerState::Declared,
            runtime: None,
            ipv4_address: None,
            ipv6_address: None,
            interfaces: declared(interfaces, &snapshot.device),
            conditions: Vec::new(),
        },
    };
    let status = statuses.all.get(&container.name);
    let why = status.and_then(|status| status.why.clone());
    let runtime = status.map(|status| RuntimeView::of(status, since_boot()));
    let runtime = runtime.or_else(|| container.is_startable.then(|| RuntimeView::unknown(statuses.is_told)));
    let lost = status.filter(|status| has_lost_all(container, status)).map(|_| {
        let name = &container.name;
        format!(
            "it runs without its interfaces, which it has deleted: to make them again: pv-net containers restart {name}"
        )
    });
    let conditions = container.conditions.iter().cloned().chain(why).chain(lost).chain(view.conditions).collect();
    ContainerView { runtime, conditions, ..view }
}

/// Whether a container runs as the very process by which it was attached, and none of its links exists. Without a process
/// that is known to run, its namespace may as well be gone.
fn has_lost_all(container: &ContainerStatus, status: &RunStatus) -> bool {
    let Phase::Attached(attached) = &container.phase else { return false };
    let runs = status.state == RunState::Running
        && status.pid.is_some_and(|pid| attached.record.netns == Some(NetnsRef::Pid(pid)));
    runs && !attached.links.is_empty() && attached.links.iter().all(Option::is_none)
}

fn attached_view(container: &ContainerStatus, attached: &Attached, snapshot: &Snapshot) -> ContainerView {
    let (ipv4_address, ipv6_address) = reached_at(&attached.record.attachments, None);
    let routes = attached.default_routes();
    let plane = snapshot.plane.as_deref();
    let interface = |(place, (a, link)): (usize, (&Attachment, Option<u32>))| {
        let kind = attached.pairs.get(place).copied().flatten();
        let mut view = interface(a, link, gateways(&routes, place, seen(a, &snapshot.device)), plane);
        view.link = kind.map(|kind| kind.name().to_owned());
        // The MAC of the lease is in no frame of an ipvlan interface.
        let shares_mac = snapshot.device.pools.get(&a.pool).is_some_and(Pool::shares_mac);
        if let Some(parent) = snapshot.pools.get(&a.pool).and_then(|pool| pool.link.as_ref()).filter(|_| shares_mac) {
            view.mac_address = Some(parent.mac.to_string());
        }
        view
    };
    let all = attached.links.iter().all(Option::is_some);
    ContainerView {
        name: container.name.to_string(),
        state: if all { ContainerState::Attached } else { ContainerState::Detached },
        runtime: None,
        ipv4_address,
        ipv6_address,
        interfaces: attached.attachments().enumerate().map(interface).collect(),
        conditions: attached.inactive.iter().map(|p| format!("{p}: accepted, not acted on yet")).collect(),
    }
}

/// The gateways of the default routes that go through the interface at this place.
fn gateways(routes: &DefaultRoutes, place: usize, pool: Option<Cow<'_, Pool>>) -> Vec<IpAddr> {
    let all = pool.into_iter().flat_map(|pool| pool.gateways().map(|g| g.ip()).collect::<Vec<_>>());
    let has = |gateway: &IpAddr| (if gateway.is_ipv4() { routes.ipv4 } else { routes.ipv6 }) == Some(place);
    all.filter(has).collect()
}

/// The pool of an interface, as that sees it.
fn seen<'a>(attachment: &Attachment, device: &'a Device) -> Option<Cow<'a, Pool>> {
    device.pools.get(&attachment.pool).map(|pool| pool.seen_by(attachment))
}

fn declared(interfaces: &[Interface], device: &Device) -> Vec<InterfaceView> {
    let candidate = |i: &Interface| {
        let pool = device.pools.get(&i.pool);
        Candidate {
            wish: i.default_route,
            ipv4: pool.is_some_and(|pool| pool.v4.is_some()),
            ipv6: pool.is_some_and(|pool| pool.v6.is_some()),
        }
    };
    let routes = default_routes(&interfaces.iter().map(candidate).collect::<Vec<_>>());
    let view = |(place, i): (usize, &Interface)| {
        declared_interface(i, gateways(&routes, place, device.pools.get(&i.pool).map(Cow::Borrowed)))
    };
    interfaces.iter().enumerate().map(view).collect()
}

fn declared_interface(interface: &Interface, default_gateways: Vec<IpAddr>) -> InterfaceView {
    InterfaceView {
        name: interface.name.to_string(),
        pool: interface.pool.to_string(),
        ipv4_address: interface.ipv4,
        ipv6_address: interface.ipv6,
        mac_address: interface.mac.map(|m| m.to_string()),
        host_if: None,
        link: None,
        default_route: !default_gateways.is_empty(),
        default_gateways,
        flows: None,
        max_flows: None,
    }
}

fn interface(a: &Attachment, link: Option<u32>, default_gateways: Vec<IpAddr>, plane: Option<&Plane>) -> InterfaceView {
    let used = link.zip(plane).and_then(|(index, plane)| plane.reader.flow_use(index));
    InterfaceView {
        name: a.interface.to_string(),
        pool: a.pool.to_string(),
        ipv4_address: a.ipv4,
        ipv6_address: a.ipv6,
        mac_address: Some(a.mac.to_string()),
        host_if: Some(a.host_if.to_string()),
        link: None,
        default_route: !default_gateways.is_empty(),
        default_gateways,
        flows: used.map(|(flows, _)| flows),
        max_flows: used.map(|(_, most)| most),
    }
}
