//! Published ports.

use super::Daemon;
use crate::command::Halt;
use crate::config::parse_run_named;
use crate::dns::PORT;
use crate::failure::{Failure, Kind};
use crate::ipam::store::ContainerRecord;
use crate::kernel::errand::{Errand, Found};
use crate::kernel::{Kernel, listeners};
use crate::model::{Container, ContainerName, Interface, Pool, PortMapping};
use crate::plan::{Op, Published, Tables, prefixes, reservations};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The port mappings of the containers' `run.json`, each parsed once.
#[derive(Default)]
pub(super) struct Mappings(RefCell<BTreeMap<ContainerName, Parsed>>);

/// The port mappings of one container.
struct Parsed {
    of: Arc<ContainerRecord>,
    mappings: Arc<[PortMapping]>,
}

impl Mappings {
    /// Those of an attached container.
    fn of(&self, name: &ContainerName, record: &Arc<ContainerRecord>) -> Arc<[PortMapping]> {
        let mut all = self.0.borrow_mut();
        if let Some(parsed) = all.get(name).filter(|parsed| Arc::ptr_eq(&parsed.of, record)) {
            return parsed.mappings.clone();
        }
        let mappings = parse_run_named("run", record.run.text(), Some(name)).map(|c| c.ports).unwrap_or_default();
        let mappings: Arc<[PortMapping]> = mappings.into();
        all.insert(name.clone(), Parsed { of: record.clone(), mappings: mappings.clone() });
        mappings
    }

    /// Forgets those of containers that are not attached.
    fn keep(&self, attached: &BTreeMap<ContainerName, Arc<ContainerRecord>>) {
        self.0.borrow_mut().retain(|name, _| attached.contains_key(name));
    }
}

impl Daemon {
    fn published(&self) -> Vec<(ContainerName, Published)> {
        let mut all = Vec::new();
        for (name, record) in &self.state.containers {
            let identity = self.state.identities.get(name).copied().unwrap_or_default();
            let pools = &self.device.pools;
            let published = |mapping: &PortMapping| {
                (name.clone(), Published::new(mapping.clone(), identity, &record.attachments, pools))
            };
            all.extend(self.mappings.of(name, record).iter().map(published));
        }
        self.mappings.keep(&self.state.containers);
        all
    }

    /// The ports of the device that are published.
    pub(super) fn all_published(&self) -> Vec<Published> {
        self.published().into_iter().map(|(_, p)| p).filter(|p| !p.direct).collect()
    }

    /// Notes the ports that lead nowhere, because the interface that they name was removed.
    fn note_unpublished(&mut self, all: &[(ContainerName, Published)]) {
        self.unpublished.clear();
        let gateways: BTreeSet<IpAddr> =
            self.device.pools.values().filter(|p| p.dns.is_some()).flat_map(Pool::gateways).map(|g| g.ip()).collect();
        let is_gateways = |mapping: &PortMapping| match mapping.host {
            None => !gateways.is_empty(),
            Some(host) => gateways.iter().any(|g| *g == host || host.is_unspecified() && g.is_ipv4() == host.is_ipv4()),
        };
        for (name, published) in all.iter().filter(|(_, p)| !p.direct && p.mapping.host_ports.contains(&PORT)) {
            if is_gateways(&published.mapping) {
                let why = format!(
                    "port {}: containers that ask pv-net for names, at their gateways, are led to this container: publish it \
                     on one of the device's other addresses, if that is not wanted",
                    published.mapping
                );
                self.unpublished.entry(name.clone()).or_default().push(why);
            }
        }
        for (name, Published { mapping, .. }) in all {
            let Some(interface) = &mapping.interface else { continue };
            let has = |record: &Arc<ContainerRecord>| record.attachments.iter().any(|a| a.interface == *interface);
            if !self.state.containers.get(name).is_some_and(has) {
                let why = format!(
                    "port {mapping}: not published: the container has no interface {interface}: add it with \
                     pv-net attach {name} --interface {interface} --pool POOL"
                );
                self.unpublished.entry(name.clone()).or_default().push(why);
            }
        }
    }

    /// Whether the container `name` publishes any port.
    pub(super) fn publishes(&self, name: &ContainerName) -> bool {
        self.state.containers.get(name).is_some_and(|record| !self.mappings.of(name, record).is_empty())
    }

    /// Brings the map `port_map` to what the attached containers publish. Flows of removed mappings end.
    ///
    /// # Errors
    /// When the kernel refuses to write a map, for example because it is full.
    pub(super) async fn refresh_port_map(&mut self) -> Result<(), Failure> {
        if !self.is_active() {
            return Ok(());
        }
        let all = self.published();
        self.note_unpublished(&all);
        let published: Vec<Published> = all.into_iter().map(|(_, p)| p).collect();
        let entries: Vec<_> = published.iter().flat_map(|p| prefixes(p).into_iter().chain(reservations(p))).collect();
        // Ports are reserved before they are published, so that no socket gets one in between.
        let observed = self.host().observe_device().await?;
        let of_device: Vec<Published> = published.into_iter().filter(|p| !p.direct).collect();
        self.keep_ports_apart(&of_device, &observed).await?;
        let known = observed.tables;
        let wanted = Tables { ports: entries.into_iter().collect(), ..Tables::default() };
        let (gone, mut ops): (Vec<Op>, Vec<Op>) = known.port_steps(&wanted).into_iter().partition(Op::removes);
        let ports = known.lost_ports(&wanted);
        let end = (!ports.is_empty()).then_some(Op::EndPortFlows { ports });
        // Flows end before the entries are removed, so that an interrupted daemon's successor finds both; and again
        // afterwards, for flows that began in between.
        ops.extend(end.clone());
        ops.extend(gone);
        ops.extend(end);
        self.apply_all(&ops).await
    }

    /// Checks that the ports that `container` asks for are used neither by other containers nor by sockets of the
    /// device.
    ///
    /// # Errors
    /// The first port that is used, with its owner. Or an errand to find the owner, whose result must be in `found`.
    pub(super) fn check_ports(&self, container: &Container, found: &Found) -> Result<(), Halt> {
        if container.ports.is_empty() {
            return Ok(());
        }
        let is_direct =
            |interface: &Interface| self.device.pools.get(&interface.pool).is_some_and(|pool| pool.parent().is_some());
        // Ports of macvlan interfaces are at the container's own address.
        if container.interfaces.iter().all(is_direct) {
            return Ok(());
        }
        let others: Vec<_> = self.published().into_iter().filter(|(_, p)| !p.direct).collect();
        let listeners = listeners::all();
        for (i, mapping) in container.ports.iter().enumerate() {
            let conflict = |why: String| {
                Failure::new(Kind::Conflict, format!("network.ports[{i}] = \"{mapping}\": {why}"))
                    .help("publish another port, or on another address")
            };
            let taken = others.iter().find(|(name, p)| *name != container.name && overlap(&p.mapping, mapping));
            if let Some((name, p)) = taken {
                return Err(conflict(format!("container {name} publishes {}", p.mapping)).into());
            }
            if let Some(l) = listeners::conflict(&listeners, mapping.transport, mapping.host, &mapping.host_ports) {
                let Some(owner) = found.owner(l) else { return Err(Halt::Needs(vec![Errand::Owner(l.clone())])) };
                let owner = owner.unwrap_or("a socket of the device");
                return Err(conflict(format!("{owner} listens on {}", l.addr)).into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::store::RunText;

    #[test]
    fn a_container_that_starts_again_may_publish_other_ports() {
        let name: ContainerName = "web".parse().expect("name");
        let record = |ports: &[&str]| {
            let run = serde_json::json!({"name": "web", "network": {"pool": "internal", "ports": ports}});
            Arc::new(ContainerRecord { run: RunText::from(&run), ..ContainerRecord::default() })
        };
        let published = |mappings: &Mappings, record: &Arc<ContainerRecord>| -> Vec<String> {
            mappings.of(&name, record).iter().map(ToString::to_string).collect()
        };
        let mappings = Mappings::default();
        let (first, second) = (record(&["8080:80/tcp"]), record(&["8081:80/tcp", "53:53/udp"]));
        assert_eq!(published(&mappings, &first), ["8080:80/tcp"]);
        assert_eq!(published(&mappings, &second), ["8081:80/tcp", "53:53/udp"]);
        assert_eq!(published(&mappings, &first), ["8080:80/tcp"]);
        mappings.keep(&BTreeMap::new());
        assert!(mappings.0.borrow().is_empty(), "what is not attached is forgotten");
    }
}
