//! Attaching a container: all of its interfaces, or nothing.

use super::attach_state::AttachState;
use super::execute::all_or_nothing;
use super::segments::segment_bytes;
use super::{Daemon, lease_key};
use crate::command::{AttachRequest, Prepared};
use crate::config::{check_container, parse_run_named};
use crate::failure::{Failure, Kind};
use crate::ipam::store::{self, ContainerRecord};
use crate::ipam::{Lease, Request};
use crate::kernel::bpf::Hook;
use crate::kernel::netlink::{
    LinkInfo, VethSpec, address_inside, alias, attach_veth, finish_veth, has_end_of, host_if_name, raise_inside,
};
use crate::kernel::netns::{self, Netns};
use crate::kernel::{Host, Kernel, kill_point};
use crate::model::{Attachment, Container, ContainerName, IfName, Interface, NetnsRef, PoolName};
use crate::plan::{Observed, Op, endpoint, endpoint_ops};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

impl Daemon {
    /// Attaches a container. The same again is fine, and puts back what is missing of it; another one under its name is
    /// not, unless the first one's namespace is gone.
    ///
    /// # Errors
    /// Whatever is wrong; links, maps and leases are then as before.
    pub async fn attach(
        &mut self,
        name: &ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Result<(), Failure> {
        let _points = kill_point::begin("attach");
        let (run, container) = self.container_of(name, &request)?;
        let Prepared { reference, netns } = prepared?;
        let errors = check_container(&format!("container {name}"), &container, &self.device);
        if !errors.is_empty() {
            return Err(errors.into());
        }
        let about = |failure: Failure| failure.about(format!("container {name}"));
        let netns = netns.map_err(|e| about(e.into()))?;
        let left = match self.attach_state(name, &run, &reference, &netns).await? {
            AttachState::Attached => return self.make_whole(name, &netns).await.map_err(about),
            AttachState::Absent => Vec::new(),
            AttachState::Left(links) => links,
        };
        self.check_ports(&container)?;
        self.open_plane()?;
        self.take_over()?;
        let _quick = self.grace.expedite();
        for (index, attachment) in left {
            self.disconnect(index, &attachment).await.map_err(about)?;
        }
        let before = self.state.clone();
        let Err(failure) = self.try_attach(&container, run, reference, &netns).await else { return Ok(()) };
        let reserved = self.state.reserved_ports.take();
        self.state = before;
        self.state.reserved_ports = reserved;
        let not_restored = self.forget_attach().await;
        Err(about(failure.not_restored(not_restored)))
    }

    /// What is left of an attach that failed, beside its links: state, rules and ports; all that cannot be put back.
    async fn forget_attach(&mut self) -> Vec<Failure> {
        let saved = store::save(&self.paths.state_dir, &self.state).map_err(Failure::from);
        let policy = if self.device.policies.is_empty() { Ok(()) } else { self.enforce_policy(false).await };
        let ports = self.refresh_port_map();
        [saved, policy, ports].into_iter().filter_map(Result::err).collect()
    }

    /// Puts back what is missing of an attached container whose namespace is `netns`: links, addresses, routes, programs and
    /// entries of maps. Whatever an attach does is fine when it is there already.
    async fn make_whole(&mut self, name: &ContainerName, netns: &Netns) -> Result<(), Failure> {
        let attachments = self.state.containers.get(name).map(|r| r.attachments.clone()).unwrap_or_default();
        let _quick = self.grace.expedite();
        let made = self.connect_all(&attachments, netns).await?;
        self.finish(&made).await;
        Ok(())
    }

    /// Containers whose attach an earlier daemon began and did not end: it is done again. Where that cannot be, its links
    /// go, so that nobody takes it for attached.
    pub(super) async fn finish_interrupted(&mut self) {
        let links = match self.net.links().await {
            Ok(links) => links,
            Err(e) => return tracing::warn!(error = %e, "links not listed"),
        };
        let begun: BTreeSet<ContainerName> = links
            .iter()
            .filter(|l| l.is_unfinished())
            .filter_map(|l| self.links.get(&l.index).map(|(container, _)| container.clone()))
            .collect();
        for name in begun {
            let done = self.finish_attach(&name).await;
            let Err(failure) = done else {
                tracing::info!(container = %name, "attach finished that an earlier daemon began");
                continue;
            };
            let why = format!("its attach did not come to its end, and cannot be finished: {}", failure.line());
            tracing::warn!(container = %name, %why, "links removed");
            let attachments = self.state.containers.get(&name).map(|r| r.attachments.clone()).unwrap_or_default();
            for attachment in attachments {
                if let Some(index) = self.link_index(&attachment.host_if)
                    && let Err(e) = self.disconnect(index, &attachment).await
                {
                    tracing::warn!(container = %name, error = %e, "link not removed");
                }
            }
            self.container_conditions.entry(name).or_default().push(format!("{why}: attach it again"));
        }
    }

    /// Does an attach again. A name or number of a namespace may be another one's by now: only where its links end it is
    /// the container's.
    async fn finish_attach(&mut self, name: &ContainerName) -> Result<(), Failure> {
        let record = self.state.containers.get(name);
        let attachments = record.map(|r| r.attachments.clone()).unwrap_or_default();
        let Some(reference) = record.and_then(|r| r.netns.clone()) else {
            return Err(Failure::new(Kind::Internal, "its namespace is not known"));
        };
        let netns = netns::open(&reference)?;
        let there: Vec<u32> = attachments.iter().filter_map(|a| self.link_index(&a.host_if)).collect();
        if !has_end_of(&there, &netns).await? {
            return Err(Failure::new(Kind::Internal, "its namespace is gone"));
        }
        self.make_whole(name, &netns).await
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
        let made = self.connect_all(&attachments, netns).await?;
        if ports && let Err(failure) = self.refresh_port_map() {
            return Err(self.take_back(made, failure).await);
        }
        self.finish(&made).await;
        Ok(())
    }

    /// Makes all interfaces, or none.
    pub(super) async fn connect_all(
        &mut self,
        attachments: &[Attachment],
        netns: &Netns,
    ) -> Result<Vec<Connected>, Failure> {
        let mut made = Vec::new();
        for attachment in attachments {
            match self.connect(attachment, netns).await {
                Ok(connected) => made.push(connected),
                Err(failure) => return Err(self.take_back(made, failure).await),
            }
        }
        Ok(made)
    }

    /// Removes what was made before `failure`.
    async fn take_back(&mut self, made: Vec<Connected>, failure: Failure) -> Failure {
        let mut not_restored = Vec::new();
        for Connected { link, attachment, .. } in made.into_iter().filter(|c| c.is_new) {
            not_restored.extend(self.disconnect(link.index, &attachment).await.err());
        }
        failure.not_restored(not_restored)
    }

    /// The attach is over. A mark that stays makes the next daemon look at the container once more, and no more than that.
    pub(super) async fn finish(&self, made: &[Connected]) {
        for Connected { link, .. } in made {
            if let Err(e) = finish_veth(&self.net, link).await {
                tracing::warn!(link = %link.name, error = %e, "link stays marked as unfinished");
            }
        }
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

    /// Makes one interface, or what is missing of it. When that fails, a link that it made is gone again.
    async fn connect(&mut self, attachment: &Attachment, netns: &Netns) -> Result<Connected, Failure> {
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
        let known = self.link_index(&attachment.host_if);
        let made = attach_veth(&self.net, &spec, netns).await?;
        let is_new = known != Some(made.index);
        if let Some(old) = known.filter(|_| is_new) {
            // One that could not be adopted went, and its pins and entries are of no use to the new one.
            self.links.remove(&old);
            for e in self.forget_link(old, &attachment.container, &attachment.host_if).await {
                tracing::warn!(link = %attachment.host_if, error = %e, "what was left of a link");
            }
        }
        let identity = self.state.identity(&attachment.container);
        let endpoint = endpoint(attachment, &pool, &link, identity);
        self.links.insert(made.index, (attachment.container.clone(), attachment.host_if.clone()));
        let connected = async {
            // First: the kernel's worker makes an IPv6 address usable while the programs are attached.
            address_inside(&spec, netns).await?;
            let mut host = self.host();
            // A new link is in no map and has no program; what is known of an old one is looked up.
            let before = if is_new { fresh(&made, &host) } else { host.observe().await? };
            let ops = endpoint_ops(&endpoint, &made, &before);
            all_or_nothing(&mut host, &ops, &before).await?;
            Ok(raise_inside(&spec, netns).await?)
        };
        if let Err(failure) = connected.await {
            let connected = Connected { link: made, attachment: attachment.clone(), is_new };
            return Err(self.take_back(vec![connected], failure).await);
        }
        self.resize_bridge(&pool).await;
        self.net.wait_until_it_carries(&[made.index, link.index]).await;
        Ok(Connected { link: made, attachment: attachment.clone(), is_new })
    }

    /// Takes one interface down again: the link first, so that nothing passes without its guard.
    ///
    /// # Errors
    /// When the link cannot be deleted: then all is as before. Or what the maps and pins still have of one that is gone.
    pub(super) async fn disconnect(&mut self, index: u32, attachment: &Attachment) -> Result<(), Failure> {
        let link = attachment.host_if.to_string();
        self.host().apply(&Op::DeleteLink { link, index }).await?;
        self.links.remove(&index);
        let left = self.forget_link(index, &attachment.container, &attachment.host_if).await;
        left.into_iter().reduce(Failure::and).map_or(Ok(()), Err)
    }
}

/// An interface that is there.
pub(super) struct Connected {
    link: LinkInfo,
    attachment: Attachment,
    /// It was made just now.
    is_new: bool,
}

/// What the kernel holds of a link that was just made.
fn fresh(link: &LinkInfo, host: &Host<'_>) -> Observed {
    let tracks_hooks = host.plane.as_ref().is_some_and(|plane| plane.hook() == Hook::Tcx);
    Observed {
        links: [(link.name.clone(), link.clone())].into(),
        hooks: tracks_hooks.then(BTreeSet::new),
        ..Observed::default()
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
