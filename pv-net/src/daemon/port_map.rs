//! Published ports.

use super::Daemon;
use crate::config::parse_run_named;
use crate::failure::{Failure, Kind};
use crate::ipam::store::ContainerRecord;
use crate::kernel::listeners;
use crate::model::{Container, ContainerName, PortMapping};
use crate::plan::{Published, prefixes, range_of, reservations};
use pv_net_common::flow::FLOW_REPLY;

/// The mappings that a container's `run.json` asks for.
fn mappings(name: &ContainerName, record: &ContainerRecord) -> Vec<PortMapping> {
    parse_run_named("run", &record.run.to_string(), Some(name)).map(|c| c.ports).unwrap_or_default()
}

impl Daemon {
    fn published(&self) -> Vec<(ContainerName, Published)> {
        let mut all = Vec::new();
        for (name, record) in &self.state.containers {
            let Some(main) = record.attachments.iter().find(|a| a.default_route).or(record.attachments.first()) else {
                continue;
            };
            let identity = self.state.identities.get(name).copied().unwrap_or_default();
            for mapping in mappings(name, record) {
                all.push((name.clone(), Published { mapping, identity, ipv4: main.ipv4, ipv6: main.ipv6 }));
            }
        }
        all
    }

    pub(super) fn all_published(&self) -> Vec<Published> {
        self.published().into_iter().map(|(_, p)| p).collect()
    }

    /// Whether the container `name` publishes any.
    pub(super) fn publishes(&self, name: &ContainerName) -> bool {
        self.state.containers.get(name).is_some_and(|record| !mappings(name, record).is_empty())
    }

    /// Brings the kernel's table to what the attached containers publish. Flows of a mapping that is gone end.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub(super) fn refresh_port_map(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        let published = self.all_published();
        let entries: Vec<_> = published.iter().flat_map(|p| prefixes(p).into_iter().chain(reservations(p))).collect();
        // Before they are published: no socket gets one in between.
        self.keep_ports_apart(&published)?;
        let plane = self.plane()?;
        let gone = plane.set_port_map(&entries)?;
        if gone.is_empty() {
            return Ok(());
        }
        let ended = plane.end_flows_where(|key, entry| {
            gone.iter().any(|(prefix, former)| {
                let (host_port, target) =
                    if entry.flags & FLOW_REPLY == 0 { (key.dport_be, entry.dst) } else { (entry.sport_be, key.src) };
                let translated =
                    if entry.flags & FLOW_REPLY == 0 { key.dst != entry.dst } else { key.src != entry.src };
                translated && target == former.addr && range_of(prefix).contains(&u16::from_be(host_port))
            })
        })?;
        super::uplinks::tell(&ended);
        Ok(())
    }

    /// Whether the ports that `container` asks for are free: of other containers, and of sockets of the device.
    ///
    /// # Errors
    /// The first that is not, with its owner.
    pub(super) fn check_ports(&self, container: &Container) -> Result<(), Failure> {
        if container.ports.is_empty() {
            return Ok(());
        }
        let others = self.published();
        let listeners = listeners::all();
        for (i, mapping) in container.ports.iter().enumerate() {
            let conflict = |why: String| {
                Failure::new(Kind::Conflict, format!("network.ports[{i}] = \"{mapping}\": {why}"))
                    .help("publish another port, or on another address")
            };
            let taken = others.iter().find(|(name, p)| *name != container.name && overlap(&p.mapping, mapping));
            if let Some((name, p)) = taken {
                return Err(conflict(format!("container {name} publishes {}", p.mapping)));
            }
            if let Some(l) = listeners::conflict(&listeners, mapping.transport, mapping.host, &mapping.host_ports) {
                let owner = l.owner().unwrap_or_else(|| "a socket of the device".to_owned());
                return Err(conflict(format!("{owner} listens on {}", l.addr)));
            }
        }
        Ok(())
    }
}

/// Whether two mappings claim a port of the same address.
fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    let addresses = match (a.host, b.host) {
        (Some(a), Some(b)) => a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())),
        _ => true,
    };
    a.transport == b.transport
        && addresses
        && a.host_ports.start() <= b.host_ports.end()
        && b.host_ports.start() <= a.host_ports.end()
}
