//! pv-net's own paths: a device with its daemon, and the counters that prove that the eBPF programs carried the
//! packets.

use crate::load::{Ends, Work};
use crate::nets::PORT;
use crate::wire::{Least, SHARE, Wire};
use crate::witness::{Link, Witness};
use anyhow::{Context, Result, bail};
use harness::unix_http;
use harness::{Container, Device, Namespace};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// A container or host.
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

/// The sum of counters of the data plane. `fast-path` counts packets that one look-up in the flow table forwarded,
/// `slow-path` those that the stages forwarded. Packets left to the bridge or the host's stack are in neither.
fn stats(device: &Device, counters: &'static [&'static str]) -> Witness {
    let socket = device.file("run").join("api.sock");
    Witness::new(format!("pv-net's {}", counters.join(" and ")), move |_| {
        let status: Value = serde_json::from_str(&unix_http::ask(&socket, "GET", "/status", "")?)?;
        let stat =
            |name: &&str| status["data_plane"]["stats"][*name].as_u64().with_context(|| format!("stats: {name}"));
        counters.iter().map(stat).sum()
    })
}

/// All packets that pv-net forwarded.
pub fn any_path(device: &Device) -> Witness {
    stats(device, &["fast-path", "slow-path"])
}

/// Flows for which the flow table had no room.
pub fn without_room(device: &Device) -> Witness {
    stats(device, &["flow-table-full", "flow-limit"])
}

/// The fast path, and the least share of packets that must take it. A connection's first and last packets take the slow
/// path, and a short connection has few others.
pub fn fast_path(device: &Device) -> (Witness, Least) {
    (stats(device, &["fast-path"]), |work| if work == Work::Crr { CRR_FAST } else { SHARE })
}

/// The least share for a connection with one exchange: four of its five packets take the fast path.
const CRR_FAST: f64 = 0.7;

/// The path between two ends on a device; both have `eth0`. The path does not keep them alive.
pub fn wire(device: &Device, client: &End<'_>, server: &End<'_>) -> Wire {
    let at = SocketAddr::new(server.address, PORT);
    Wire {
        ends: Ends { client: client.ns.path(), server: server.ns.path(), listen: at, connect: at },
        links: vec![Link::new(client.ns, "eth0"), Link::new(server.ns, "eth0")],
        witness: any_path(device),
        shares: vec![fast_path(device)],
        marks: Vec::new(),
        seen_as: client.address,
        carriers: Vec::new(),
        keep: Box::new(()),
    }
}

/// Fails when a part of the accepted configuration is not in force.
///
/// # Errors
/// A text with the daemon's own words.
pub fn all_in_force(device: &Device) -> Result<()> {
    for command in ["status", "containers"] {
        let said = device.json(&[command])?.to_string();
        if let Some(condition) = said.split('"').find(|s| s.contains("not acted on yet")) {
            bail!("pv-net says: {condition}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Path;
    use harness::configs;
    use pv_net_common::names;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn what_falls_back_to_the_bridge_gives_no_figure() -> Result<()> {
        let device = Device::started(&configs::open_pools())?;
        let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
        let mut path = wire(&device, &(&a).into(), &(&b).into());
        path.verify()?;
        // Without their pins the programs are detached, and the bridge below carries the packets.
        std::fs::remove_dir_all(device.pins().join("links").join(names::PROG_FROM_CONTAINER))?;
        let why = path.verify().err().context("it was taken for pv-net's path")?.to_string();
        anyhow::ensure!(why.contains("fast-path") && why.contains("another way"), "{why}");
        Ok(())
    }
}
