//! What the API shows of containers.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store::ContainerRecord;
use crate::model::{Attachment, ContainerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Whether its links are there.
    pub state: ContainerState,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// IPv4 address of the interface with the default route, else of the first.
    pub ipv4_address: Option<Ipv4Addr>,
    /// IPv6 address of the same interface.
    pub ipv6_address: Option<Ipv6Addr>,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// Whether a container's links are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// All of them.
    Attached,
    /// Not all: its namespace went away.
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

impl Daemon {
    /// All containers, attached or declared.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerView> {
        let mut views: BTreeMap<&ContainerName, ContainerView> =
            self.state.containers.iter().map(|(name, record)| (name, self.attached(name, record))).collect();
        for name in self.declared.keys() {
            views.entry(name).or_insert_with(|| self.declared_view(name));
        }
        views.into_values().collect()
    }

    /// One container.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn container(&self, name: &ContainerName) -> Result<ContainerView, Failure> {
        match self.state.containers.get(name) {
            Some(record) => Ok(self.attached(name, record)),
            None if self.declared.contains_key(name) => Ok(self.declared_view(name)),
            None => Err(Failure::new(Kind::NotFound, format!("container {name}: no such container"))),
        }
    }

    fn attached(&self, name: &ContainerName, record: &ContainerRecord) -> ContainerView {
        let all = record.attachments.iter().all(|a| self.link_index(&a.host_if).is_some());
        let main = record.attachments.iter().find(|a| a.default_route).or(record.attachments.first());
        let mut conditions = self.container_conditions.get(name).cloned().unwrap_or_default();
        if let Ok(container) = crate::config::parse_run_named("run", &record.run.to_string(), Some(name)) {
            conditions.extend(container.inactive.iter().map(|p| format!("{p}: accepted, not acted on yet")));
        }
        ContainerView {
            name: name.to_string(),
            state: if all { ContainerState::Attached } else { ContainerState::Detached },
            ipv4_address: main.and_then(|a| a.ipv4),
            ipv6_address: main.and_then(|a| a.ipv6),
            interfaces: record.attachments.iter().map(|a| self.interface(a)).collect(),
            conditions,
        }
    }

    fn declared_view(&self, name: &ContainerName) -> ContainerView {
        let interfaces = self.declared.get(name).map(|d| d.container.interfaces.as_slice()).unwrap_or_default();
        let interfaces: Vec<InterfaceView> = interfaces
            .iter()
            .map(|i| InterfaceView {
                name: i.name.to_string(),
                pool: i.pool.to_string(),
                ipv4_address: i.ipv4,
                ipv6_address: i.ipv6,
                mac_address: i.mac.map(|m| m.to_string()),
                host_if: None,
                default_route: i.default_route,
                flows: None,
                max_flows: None,
            })
            .collect();
        ContainerView {
            name: name.to_string(),
            state: ContainerState::Declared,
            ipv4_address: None,
            ipv6_address: None,
            interfaces,
            conditions: Vec::new(),
        }
    }

    fn interface(&self, a: &Attachment) -> InterfaceView {
        let used = self.link_index(&a.host_if).zip(self.plane.as_ref()).and_then(|(i, plane)| plane.flow_use(i));
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
}
