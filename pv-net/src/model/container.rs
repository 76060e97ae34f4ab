//! Containers and their interfaces.

use super::{ContainerName, HealthCommand, IfName, Mac, Network, PoolName, PortMapping, Sockets, Startable};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// A container as its `run.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name, by which rules know it.
    pub name: ContainerName,
    /// Who starts it.
    pub kind: ContainerKind,
    /// The path of its network namespace, which need not exist yet. Only for containers that somebody else starts.
    pub netns: Option<PathBuf>,
    /// How pv-net starts and stops it, if it can.
    pub startable: Option<Startable>,
    /// The command that tells whether it works, if its health check is one.
    pub health: Option<HealthCommand>,
    /// How it is connected.
    pub mode: NetworkMode,
    /// Host name; the container's name unless set.
    pub hostname: String,
    /// More names that it is found by, in the device's domain.
    pub aliases: Vec<String>,
    /// Its interfaces, in order; empty unless `mode` is [`NetworkMode::Pool`]. At most one claims the default route.
    pub interfaces: Vec<Interface>,
    /// Ports of the device that lead to it.
    pub ports: Vec<PortMapping>,
    /// The only sockets that it may have; any where this is none.
    pub sockets: Option<Sockets>,
    /// JSON paths of accepted settings that this version does not act on yet; shown as conditions.
    pub inactive: Vec<String>,
}

/// Who starts a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// LXC.
    Lxc,
    /// An OCI runtime.
    Oci,
    /// A WebAssembly runtime.
    Wasm,
    /// Somebody else; pv-net is given the namespace.
    #[default]
    Netns,
}

/// How a container is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// By interfaces in pools.
    #[default]
    Pool,
    /// It shares the device's namespace.
    Host,
    /// It has no network.
    None,
}

/// One interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name inside the container.
    pub name: IfName,
    /// The pool it is in.
    pub pool: PoolName,
    /// Whether the container's default routes go through it; [`default_routes`](super::default_routes) decides where it
    /// is not said.
    pub default_route: Option<bool>,
    /// The IPv4 address it asks for.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address it asks for.
    pub ipv6: Option<Ipv6Addr>,
    /// The MAC it asks for.
    pub mac: Option<Mac>,
}

/// Where a container's network namespace is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetnsRef {
    /// A file that is the namespace, such as `/run/netns/web`.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

impl NetnsRef {
    /// The file to open for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(p) => p.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

/// One interface of an attached container, with all choices made. The links and map entries are made from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    pub container: ContainerName,
    /// Name inside the container.
    pub interface: IfName,
    /// The pool.
    pub pool: PoolName,
    /// Name of the host-side link, derived from container and interface.
    pub host_if: IfName,
    /// MAC inside the container.
    pub mac: Mac,
    /// IPv4 address, when the pool has IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address, when the pool has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether the container's default routes go through it; [`default_routes`](super::default_routes) decides where it
    /// is not said. State files of earlier versions have it for each interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_route: Option<bool>,
    /// What the network of the pool's parent has given it, when the pool leaves that to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}
