//! Containers.

use crate::failure::{Failure, Kind};
use crate::model::{Attachment, ContainerName, Interface};
use crate::snapshot::{Attached, ContainerStatus, Phase, Plane, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Whether its links exist.
    pub state: ContainerState,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// IPv4 address of the interface with the default route, else of the first.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address of the same interface.
    pub ipv6_address: Option<Ipv6Addr>,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// Whether a container's links exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// All of its links exist.
    Attached,
    /// It was attached, but not all of its links exist any more: its namespace went away.
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
    /// Whether the default routes go through it.
    pub default_route: bool,
    /// Flows in the flow table that count for it, when it is attached.
    pub flows: Option<u64>,
    /// How many there may be.
    pub max_flows: Option<u32>,
}

/// All containers, attached or declared.
#[must_use]
pub fn containers(snapshot: &Snapshot) -> Vec<ContainerView> {
    snapshot.containers.iter().map(|c| view(c, snapshot.plane.as_deref())).collect()
}

/// One container.
///
/// # Errors
/// When no container has the name.
pub fn container(snapshot: &Snapshot, name: &ContainerName) -> Result<ContainerView, Failure> {
    match snapshot.container(name) {
        Some(container) => Ok(view(container, snapshot.plane.as_deref())),
        None => Err(Failure::new(Kind::NotFound, format!("container {name}: no such container"))),
    }
}

fn view(container: &ContainerStatus, plane: Option<&Plane>) -> ContainerView {
    let view = match &container.phase {
        Phase::Attached(attached) => attached_view(container, attached, plane),
        Phase::Declared(interfaces) => ContainerView {
            name: container.name.to_string(),
            state: ContainerState::Declared,
            ipv4_address: None,
            ipv6_address: None,
            interfaces: interfaces.iter().map(declared_interface).collect(),
            conditions: Vec::new(),
        },
    };
    ContainerView { conditions: container.conditions.iter().cloned().chain(view.conditions).collect(), ..view }
}

fn attached_view(container: &ContainerStatus, attached: &Attached, plane: Option<&Plane>) -> ContainerView {
    let main = attached.main();
    let all = attached.links.iter().all(Option::is_some);
    ContainerView {
        name: container.name.to_string(),
        state: if all { ContainerState::Attached } else { ContainerState::Detached },
        ipv4_address: main.and_then(|a| a.ipv4),
        ipv6_address: main.and_then(|a| a.ipv6),
        interfaces: attached.attachments().map(|(a, link)| interface(a, link, plane)).collect(),
        conditions: attached.inactive.iter().map(|p| format!("{p}: accepted, not acted on yet")).collect(),
    }
}

fn declared_interface(interface: &Interface) -> InterfaceView {
    InterfaceView {
        name: interface.name.to_string(),
        pool: interface.pool.to_string(),
        ipv4_address: interface.ipv4,
        ipv6_address: interface.ipv6,
        mac_address: interface.mac.map(|m| m.to_string()),
        host_if: None,
        default_route: interface.default_route,
        flows: None,
        max_flows: None,
    }
}

fn interface(a: &Attachment, link: Option<u32>, plane: Option<&Plane>) -> InterfaceView {
    let used = link.zip(plane).and_then(|(index, plane)| plane.reader.flow_use(index));
    InterfaceView {
        name: a.interface.to_string(),
        pool: a.pool.to_string(),
        ipv4_address: a.ipv4,
        ipv6_address: a.ipv6,
        mac_address: Some(a.mac.to_string()),
        host_if: Some(a.host_if.to_string()),
        default_route: a.default_route,
        flows: used.map(|(flows, _)| flows),
        max_flows: used.map(|(_, most)| most),
    }
}
