//! Attaching a container: all of its interfaces, or nothing.

use super::attach_state::AttachState;
use super::segments::segment_bytes;
use super::{Daemon, lease_key};
use crate::command::{AttachRequest, Prepared};
use crate::config::{check_container, parse_run_named};
use crate::failure::{Failure, Kind};
use crate::ipam::store::{self, ContainerRecord};
use crate::ipam::{Lease, Request};
use crate::kernel::netlink::{VethSpec, address_inside, alias, attach_veth, host_if_name, raise_inside};
use crate::kernel::netns::Netns;
use crate::model::{Attachment, Container, ContainerName, IfName, Interface, NetnsRef, PoolName};
use crate::plan::{ObservedLink, endpoint, endpoint_ops};
use ipnetwork::IpNetwork;
use std::net::IpAddr;
use std::sync::Arc;

impl Daemon {
    /// Attaches a container. The same again is fine; another one under its name is not, unless the first one's namespace
    /// is gone.
    ///
    /// # Errors
    /// Whatever is wrong; links, maps and leases are then as before.
    pub async fn attach(
        &mut self,
        name: &ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Result<(), Failure> {
        let (run, container) = self.container_of(name, &request)?;
        let Prepared { reference, netns } = prepared?;
        let errors = check_container(&format!("container {name}"), &container, &self.device);
        if !errors.is_empty() {
            return Err(errors.into());
        }
        let netns = netns.map_err(|e| Failure::from(e).about(format!("container {name}")))?;
        let left = match self.attach_state(name, &run, &reference, &netns).await? {
            AttachState::Attached => return Ok(()),
            AttachState::Absent => Vec::new(),
            AttachState::Left(links) => links,
        };
        self.check_ports(&container)?;
        self.open_plane()?;
        let _quick = self.grace.expedite();
        for (index, attachment) in left {
            self.disconnect(index, &attachment).await?;
        }
        let before = self.state.clone();
        match self.try_attach(&container, run, reference, &netns).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                let reserved = self.state.reserved_ports.take();
                self.state = before;
                self.state.reserved_ports = reserved;
                store::save(&self.paths.state_dir, &self.state)?;
                Err(failure.about(format!("container {name}")))
            }
        }
    }

    /// The container that a request is about, and its `run.json`.
    fn container_of(
        &self,
        name: &ContainerName,
        request: &AttachRequest,
    ) -> Result<(serde_json::Value, Container), Failure> {
        let run = match (&request.run, &request.pool) {
            (Some(_), Some(_)) => {
                return Err(Failure::new(Kind::Usage, "a run.json and a pool were given: give one of them"));
            }
            (Some(run), None) => run.clone(),
            (None, Some(pool)) => {
                let pool: PoolName =
                    pool.parse().map_err(|e| Failure::new(Kind::Usage, format!("pool {pool:?}: {e}")))?;
                serde_json::json!({"name": name, "network": {"pool": pool}})
            }
            (None, None) => match self.declared.get(name) {
                Some(declared) => {
                    let run = serde_json::from_str(&declared.text).unwrap_or_default();
                    return Ok((run, declared.container.clone()));
                }
                None => {
                    let why = format!("container {name}: no run.json is declared for it");
                    return Err(Failure::new(Kind::Usage, why).help("give it one with --run FILE, or a --pool"));
                }
            },
        };
        let container = parse_run_named(&format!("container {name}"), &run.to_string(), Some(name))?;
        Ok((run, container))
    }

    pub(super) fn link_index(&self, host_if: &IfName) -> Option<u32> {
        self.links.iter().find(|(_, (_, name))| name == host_if).map(|(index, _)| *index)
    }

    async fn try_attach(
        &mut self,
        container: &Container,
        run: serde_json::Value,
        reference: NetnsRef,
        netns: &Netns,
    ) -> Result<(), Failure> {
        let mut attachments = Vec::new();
        for interface in &container.interfaces {
            let lease = self.lease(container, interface)?;
            attachments.push(attachment(interface, lease));
        }
        self.release_others(container);
        // Reading what all the others publish takes time that grows with their number.
        let ports = !container.ports.is_empty() || self.publishes(&container.name);
        let record = ContainerRecord { run, netns: Some(reference), attachments: attachments.clone() };
        self.state.containers.insert(container.name.clone(), Arc::new(record));
        self.state.identity(&container.name);
        // The lease is on disk before the link exists: after a power cut nobody else is given its address.
        store::save(&self.paths.state_dir, &self.state)?;
        // Before its first packet the rules know the container.
        if !self.device.policies.is_empty() {
            self.enforce_policy(false).await?;
        }
        let mut made = Vec::new();
        for attachment in &attachments {
            match self.connect(attachment, netns).await {
                Ok(index) => made.push((index, attachment)),
                Err(failure) => {
                    for (index, attachment) in made {
                        self.disconnect(index, attachment).await?;
                    }
                    return Err(failure);
                }
            }
        }
        if ports && let Err(failure) = self.refresh_port_map() {
            for (index, attachment) in made {
                self.disconnect(index, attachment).await?;
            }
            return Err(failure);
        }
        Ok(())
    }

    fn lease(&mut self, container: &Container, interface: &Interface) -> Result<Lease, Failure> {
        let pool = self.device.pools.get(&interface.pool).ok_or_else(|| missing(&interface.pool))?;
        let key = lease_key(&container.name, interface);
        let request = Request { key: &key, ipv4: interface.ipv4, ipv6: interface.ipv6, mac: interface.mac };
        Ok(self.state.ipam.assign(pool, &request)?)
    }

    /// Leases of interfaces that the container had, and has no more.
    fn release_others(&mut self, container: &Container) {
        let keep: Vec<_> = container.interfaces.iter().map(|i| lease_key(&container.name, i)).collect();
        let gone: Vec<_> =
            self.state.leases_of(&container.name).map(|l| l.key.clone()).filter(|k| !keep.contains(k)).collect();
        for key in gone {
            self.state.ipam.release(&key);
        }
    }

    /// Makes one interface; the index of its host-side link.
    async fn connect(&mut self, attachment: &Attachment, netns: &Netns) -> Result<u32, Failure> {
        let pool = self.device.pools.get(&attachment.pool).ok_or_else(|| missing(&attachment.pool))?.clone();
        let link = match self.pools.get(&attachment.pool) {
            Some(link) => link.clone(),
            None => {
                let why = self.pool_conditions.get(&attachment.pool).cloned().unwrap_or_default();
                return Err(Failure::new(Kind::Internal, format!("pool {}: not available: {why}", attachment.pool)));
            }
        };
        let spec = VethSpec {
            host_if: attachment.host_if.clone(),
            bridge_index: link.index,
            container_if: attachment.interface.clone(),
            mac: attachment.mac,
            mtu: link.mtu,
            segment_bytes: segment_bytes(&pool),
            addresses: addresses(attachment, &pool),
            gateways: if attachment.default_route { pool.gateways().map(|g| g.ip()).collect() } else { Vec::new() },
            alias: alias::of_attachment(attachment),
        };
        let made = attach_veth(&self.net, &spec, netns).await?;
        let identity = self.state.identity(&attachment.container);
        let endpoint = endpoint(attachment, &pool, &link, identity);
        let seen = ObservedLink { index: made.index, up: made.up, controller: made.controller };
        self.links.insert(made.index, (attachment.container.clone(), attachment.host_if.clone()));
        let connected = async {
            // First: the kernel's worker makes an IPv6 address usable while the programs are attached.
            address_inside(&spec, netns).await?;
            for op in endpoint_ops(&endpoint, &seen) {
                self.apply(&op).await?;
            }
            Ok(raise_inside(&spec, netns).await?)
        };
        if let Err(failure) = connected.await {
            self.disconnect(made.index, attachment).await?;
            return Err(failure);
        }
        self.resize_bridge(&pool).await;
        self.net.wait_until_it_carries(&[made.index, link.index]).await;
        Ok(made.index)
    }

    /// Takes one interface down again: the link first, so that nothing passes without its guard.
    pub(super) async fn disconnect(&mut self, index: u32, attachment: &Attachment) -> Result<(), Failure> {
        self.links.remove(&index);
        self.net.delete_link(attachment.host_if.as_str(), index).await?;
        self.forget_link(index, &attachment.container, &attachment.host_if)
    }
}

fn missing(pool: &PoolName) -> Failure {
    Failure::new(Kind::Usage, format!("pool {pool}: no such pool"))
}

fn attachment(interface: &Interface, lease: Lease) -> Attachment {
    Attachment {
        host_if: host_if_name(&lease.key.container, &lease.key.interface),
        container: lease.key.container,
        interface: lease.key.interface,
        pool: lease.key.pool,
        mac: lease.mac,
        ipv4: lease.ipv4,
        ipv6: lease.ipv6,
        default_route: interface.default_route,
    }
}

fn addresses(attachment: &Attachment, pool: &crate::model::Pool) -> Vec<IpNetwork> {
    let with = |addr: IpAddr, prefix: Option<u8>| IpNetwork::new(addr, prefix?).ok();
    let v4 = attachment.ipv4.and_then(|a| with(a.into(), pool.v4.as_ref().map(|s| s.net.prefix())));
    let v6 = attachment.ipv6.and_then(|a| with(a.into(), pool.v6.as_ref().map(|s| s.net.prefix())));
    v4.into_iter().chain(v6).collect()
}
