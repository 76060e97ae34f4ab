//! pv-net's own paths: a device with its daemon, and who can tell that the eBPF programs carried the packets.

use crate::load::{Ends, Work};
use crate::nets::PORT;
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use anyhow::{Context, Result, bail};
use harness::unix_http;
use harness::{Container, Device, Namespace};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// Containers and hosts by their namespace and address.
pub struct End<'a> {
    /// Its namespace.
    pub ns: &'a Namespace,
    /// Its address.
    pub address: IpAddr,
}

impl<'a> From<&'a Container> for End<'a> {
    fn from(container: &'a Container) -> Self {
        Self { ns: &container.ns, address: container.v4.into() }
    }
}

/// Forwarded packets by the data plane's own counters. Only a connection's first and last packets may take the slow
/// path, and short connections have little else.
pub fn fast_path(device: &Device) -> Witness {
    let socket = device.file("run").join("api.sock");
    Witness::new("pv-net's fast path", move |work| {
        let status: Value = serde_json::from_str(&unix_http::ask(&socket, "GET", "/status", "")?)?;
        let stat = |name: &str| status["data_plane"]["stats"][name].as_u64().with_context(|| format!("stats: {name}"));
        Ok(stat("fast-path")? + if work == Work::Crr { stat("slow-path")? } else { 0 })
    })
}

/// The path between two ends of a device; both have `eth0`. It keeps nothing alive yet.
pub fn wire(device: &Device, client: &End<'_>, server: &End<'_>) -> Wire {
    let at = SocketAddr::new(server.address, PORT);
    Wire {
        ends: Ends { client: client.ns.path(), server: server.ns.path(), listen: at, connect: at },
        links: [Link::new(client.ns, "eth0"), Link::new(server.ns, "eth0")],
        witness: fast_path(device),
        marks: Vec::new(),
        seen_as: client.address,
        carriers: Vec::new(),
        keep: Box::new(()),
    }
}

/// Fails when the daemon has accepted a part of the configuration that it does not act on.
///
/// # Errors
/// With the daemon's own words.
pub fn all_in_force(device: &Device) -> Result<()> {
    for command in ["status", "containers"] {
        let said = device.json(&[command])?.to_string();
        if let Some(condition) = said.split('"').find(|s| s.contains("not acted on yet")) {
            bail!("pv-net says: {condition}");
        }
    }
    Ok(())
}
