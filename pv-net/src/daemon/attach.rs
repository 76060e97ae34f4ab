//! Attaching a container: all of its interfaces, or none.

use super::Daemon;
use super::attach_request::check_mode;
use super::attach_state::AttachState;
use super::execute::all_or_nothing;
use super::leases::missing;
use super::segments::segment_bytes;
use crate::command::{AttachRequest, Halt, Prepared};
use crate::config::check_container;
use crate::failure::{Failure, Kind};
use crate::ipam::Lease;
use crate::ipam::store::{ContainerRecord, RunText, State};
use crate::kernel::bpf::Hook;
use crate::kernel::bpf::children::is_number;
use crate::kernel::errand::Found;
use crate::kernel::link::{self, LinkKind, LinkSpec, host_if_name};
use crate::kernel::netlink::{LinkInfo, NetError, Netns, alias};
use crate::kernel::{Host, Kernel, kill_point};
use crate::model::{
    Attachment, Container, ContainerName, DefaultRoutes, IfName, Interface, NetnsRef, PairKind, Pool, PoolIpam,
};
use crate::plan::{Leg, Observed, Op, PoolLink, ProgramState, endpoint, endpoint_ops, misplaced};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

impl Daemon {
    /// Attaches a container. Attaching the same again succeeds, and restores what is missing. Another container under
    /// the same name is refused, unless the first one's namespace is gone.
    ///
    /// # Errors
    /// The failure; links, maps and leases are then as before. Or the errands whose results must be in `found`.
    pub async fn attach(
        &mut self,
        name: &ContainerName,
        request: &AttachRequest,
        prepared: Result<&Prepared, &Failure>,
        found: &Found,
    ) -> Result<(), Halt> {
        self.follow_revision().await?;
        let _points = kill_point::begin("attach");
        let (run, container) = self.container_of(name, request)?;
        let Prepared { reference, netns } = prepared.map_err(Failure::clone)?;
        let errors = check_container(&format!("container {name}"), &container, &self.device);
        if !errors.is_empty() {
            return Err(Failure::from(errors).into());
        }
        check_mode(&container)?;
        if request.annotated {
            self.check_annotated(request, &container)?;
        }
        let about = |failure: Failure| failure.about(format!("container {name}"));
        let netns = netns.as_ref().map_err(|e| about(e.into()))?;
        let left = match self.attach_state(name, &run, reference, netns, found).await? {
            AttachState::Attached => return Ok(self.make_whole(name, None, netns).await.map_err(about)?),
            AttachState::Absent => Vec::new(),
            AttachState::Left(links) => links,
        };
        if let Some(other) = self.other_in(name, netns).await.map_err(about)? {
            let why = format!("container {name}: its namespace is container {other}'s");
            return Err(Failure::new(Kind::Conflict, why)
                .help(format!(
                    "who shares a namespace needs no attach, and has {other}'s addresses, rights and ports; if {other} is no \
                     more: pv-net detach {other}"
                ))
                .into());
        }
        self.check_links(name, &container.interfaces).map_err(about)?;
        self.check_ports(&container, found)?;
        let given = self.ask_for(name, &container.interfaces, found).await?;
        self.open_plane()?;
        self.take_over()?;
        let _quick = self.grace.expedite();
        // Its last links go here, which nobody else notes; the record stays if this attach fails.
        self.thinned.extend((!left.is_empty()).then(|| name.clone()));
        for (index, attachment) in left {
            self.disconnect(index, &attachment).await.map_err(about)?;
        }
        let (before, leases) = (self.state.clone(), self.leases.of(name));
        let begun = (reference.clone(), request.auto_detach);
        self.gets_all(name, None);
        let Err(failure) = self.try_attach(&container, &given, run, begun, netns).await else {
            let kept = self.leases.of(name);
            let over = leases.into_iter().filter(|lease| kept.iter().all(|kept| kept.key != lease.key));
            self.give_back(&over.collect::<Vec<_>>());
            return Ok(());
        };
        self.restore_state(before);
        let not_restored = self.forget_attach(name, &leases).await;
        Err(about(failure.not_restored(not_restored)).into())
    }

    /// Restores the state as it was `before`, except for what pv-net has added to the device's reserved ports since.
    pub(super) fn restore_state(&mut self, before: State) {
        let reserved_ports = self.state.reserved_ports.take();
        self.state = State { reserved_ports, ..before };
    }

    /// Undoes a failed attach except for its links: state, leases, rules and ports. Returns what could not be restored.
    pub(super) async fn forget_attach(&mut self, name: &ContainerName, before: &[Arc<Lease>]) -> Vec<Failure> {
        let saved = self.save();
        let leases = self.restore_leases(name, before).await;
        let policy = if self.has_rules() { self.enforce_policy(false).await } else { Ok(()) };
        let ports = self.refresh_port_map().await;
        [saved, leases, policy, ports].into_iter().filter_map(Result::err).collect()
    }

    /// Restores what is missing of an attached container with the namespace `netns`, or of one of its interfaces: links,
    /// addresses, routes, programs and map entries. Each step of an attach has no effect on what is there already. An
    /// interface that cannot be restored does not keep the others from it.
    ///
    /// # Errors
    /// Why interfaces are not whole.
    pub(super) async fn make_whole(
        &mut self,
        name: &ContainerName,
        only: Option<&IfName>,
        netns: &Netns,
    ) -> Result<(), Failure> {
        let Some(record) = self.state.containers.get(name).cloned() else { return Ok(()) };
        let _quick = self.grace.expedite();
        let (mut made, mut failures) = (Vec::new(), Vec::new());
        for attachment in record.attachments.iter().filter(|a| only.is_none_or(|only| a.interface == *only)) {
            match self.connect(attachment, netns).await {
                Ok(connected) => made.push(connected),
                Err(failure) => failures.push(failure),
            }
        }
        match self.arrange(&record.attachments, netns, &made).await {
            Ok(()) => self.finish(&made).await,
            Err(failure) => failures.push(self.take_back(&made, failure).await),
        }
        if let Some(failure) = failures.into_iter().reduce(Failure::and) {
            return Err(failure);
        }
        self.has_ended(name);
        Ok(())
    }

    /// Makes these interfaces of a container, or what is missing of them, and arranges the routes for `all` that it has.
    /// When anything fails, those that were made are removed again.
    pub(super) async fn connect_and_arrange(
        &mut self,
        these: &[Attachment],
        all: &[Attachment],
        netns: &Netns,
    ) -> Result<Vec<Connected>, Failure> {
        let made = self.connect_all(these, netns).await?;
        match self.arrange(all, netns, &made).await {
            Ok(()) => Ok(made),
            Err(failure) => Err(self.take_back(&made, failure).await),
        }
    }

    pub(super) fn link_index(&self, host_if: &IfName) -> Option<u32> {
        self.links.iter().find(|(_, (_, name))| name == host_if).map(|(index, _)| *index)
    }

    async fn try_attach(
        &mut self,
        container: &Container,
        given: &[Option<Arc<Lease>>],
        run: RunText,
        (reference, auto_detach): (NetnsRef, bool),
        netns: &Netns,
    ) -> Result<(), Failure> {
        // Leases are on disk before the link exists, so that after a power cut nobody else gets the address.
        let leases = self.lease_all(container, given).await?;
        let attachments: Vec<_> = container.interfaces.iter().zip(&leases).map(|(i, l)| attachment(i, l)).collect();
        // Reading what all containers publish takes time that grows with their number, so it is done only when needed.
        let ports = !container.ports.is_empty() || self.publishes(&container.name);
        let record = ContainerRecord {
            run,
            netns: Some(reference),
            attachments: attachments.clone(),
            auto_detach,
            begun: None,
            sockets: container.sockets.clone().map(Arc::new),
        };
        self.state.containers.insert(container.name.clone(), Arc::new(record));
        self.state.identity(&container.name);
        self.save()?;
        // The rules must know the container before its first packet.
        if self.has_rules() {
            self.enforce_policy(false).await?;
        }
        let made = self.connect_and_arrange(&attachments, &attachments, netns).await?;
        if ports && let Err(failure) = self.refresh_port_map().await {
            return Err(self.take_back(&made, failure).await);
        }
        self.finish(&made).await;
        Ok(())
    }

    /// Makes all interfaces, or none.
    async fn connect_all(&mut self, attachments: &[Attachment], netns: &Netns) -> Result<Vec<Connected>, Failure> {
        let mut made = Vec::new();
        for attachment in attachments {
            match self.connect(attachment, netns).await {
                Ok(connected) => made.push(connected),
                Err(failure) => return Err(self.take_back(&made, failure).await),
            }
        }
        Ok(made)
    }

    /// Removes the interfaces that were made before `failure`, which is returned with what could not be removed.
    pub(super) async fn take_back(&mut self, made: &[Connected], failure: Failure) -> Failure {
        let mut not_restored = Vec::new();
        for Connected { link, attachment, .. } in made.iter().filter(|c| c.is_new) {
            not_restored.extend(self.disconnect(link.index, attachment).await.err());
        }
        failure.not_restored(not_restored)
    }

    /// Gives a container the routes for these interfaces, which are all that it has. Those that are not in its namespace
    /// any more get none, and do not keep the others from theirs. Routes that a parent's network has chosen may be any: one
    /// that the kernel refuses is a condition.
    ///
    /// # Errors
    /// When one that was `made` just now cannot have its routes, or the kernel refuses something else.
    pub(super) async fn arrange(
        &mut self,
        attachments: &[Attachment],
        netns: &Netns,
        made: &[Connected],
    ) -> Result<(), Failure> {
        let mut there = Vec::new();
        for attachment in attachments {
            let pool = self.device.pools.get(&attachment.pool);
            let (Some(pool), Some(index)) = (pool, self.link_index(&attachment.host_if)) else { continue };
            let Some(link) = link::end_in(&self.net, index, netns).await? else { continue };
            there.push((attachment, pool, link));
        }
        let routes = DefaultRoutes::of(there.iter().map(|(attachment, ..)| *attachment));
        let leg = |(place, (a, pool, link)): (usize, &(&Attachment, &Pool, u32))| Leg {
            link: *link,
            addresses: addresses(a, pool),
            gateways: pool.seen_by(a).gateways().map(|g| g.ip()).collect(),
            default4: routes.ipv4 == Some(place),
            default6: routes.ipv6 == Some(place),
            claims: a.default_route == Some(true),
        };
        let legs: Vec<Leg> = there.iter().enumerate().map(leg).collect();
        let mut failed = link::arrange(&legs, netns).await?;
        let given = there.iter().filter(|(_, pool, _)| pool.ipam == PoolIpam::Dhcp);
        let given = given.filter_map(|(a, _, link)| Some(((*a).clone(), failed.remove(link)?.to_string())));
        let given: Vec<_> = given.collect();
        for Connected { attachment, .. } in made.iter().filter(|c| c.is_new) {
            let Some((_, _, link)) = there.iter().find(|(a, ..)| *a == attachment) else {
                return Err(NetError::Vanished { name: attachment.interface.to_string() }.into());
            };
            if let Some(e) = failed.remove(link) {
                return Err(e.into());
            }
        }
        for (link, e) in failed {
            let interface = there.iter().find(|(_, _, index)| *index == link).map(|(a, ..)| a.interface.as_str());
            tracing::warn!(interface, error = %e, "interface of a container without its routes");
        }
        for (attachment, why) in given {
            self.note_lack(&attachment, Some(&why));
        }
        Ok(())
    }

    /// Marks the attach as finished. If the mark stays, the next daemon only checks the container once more.
    pub(super) async fn finish(&self, made: &[Connected]) {
        for Connected { link, .. } in made {
            if let Err(e) = link::finish(&self.net, link).await {
                tracing::warn!(link = %link.name, error = %e, "link stays marked as unfinished");
            }
        }
    }

    /// Makes one interface, or what is missing of it. If that fails, a newly made link is removed again.
    pub(super) async fn connect(&mut self, attachment: &Attachment, netns: &Netns) -> Result<Connected, Failure> {
        let pool = self.device.pools.get(&attachment.pool).ok_or_else(|| missing(&attachment.pool))?.clone();
        let link = match self.pools.get(&attachment.pool) {
            Some(link) => link.clone(),
            None => {
                let why = self.pool_conditions.get(&attachment.pool).cloned().unwrap_or_default();
                return Err(Failure::new(Kind::Internal, format!("pool {}: not available: {why}", attachment.pool)));
            }
        };
        if let Some(why) = misplaced(attachment, &pool) {
            let remedy = format!("detach it first: pv-net detach {}", attachment.container);
            return Err(Failure::new(Kind::Conflict, why).help(remedy));
        }
        let spec = spec(attachment, &pool, &link);
        if link.on_parent {
            self.check_not_devices(attachment).await?;
        }
        let known = self.link_index(&attachment.host_if);
        let made = spec.make(&self.net, netns, self.plane.as_mut()).await?;
        let is_new = known != Some(made.index);
        if let Some(old) = known.filter(|_| is_new) {
            // An old link that could not be adopted was removed; its pins and map entries are useless to the new one.
            self.links.remove(&old);
            for e in self.forget_link(old, &attachment.container, &attachment.host_if).await {
                tracing::warn!(link = %attachment.host_if, error = %e, "what was left of a link");
            }
        }
        let identity = self.state.identity(&attachment.container);
        let endpoint = endpoint(attachment, &pool, &link, identity);
        self.note_link(&made, attachment);
        let connected = async {
            // Done first, because the kernel's worker makes an IPv6 address usable while the programs are being
            // attached.
            spec.address_inside(&made, netns).await?;
            let mut host = self.host();
            // A new link has no map entries and no programs; for an old one the kernel is observed.
            let before = if is_new { fresh(&made, &host) } else { host.observe().await? };
            let ops = endpoint_ops(&endpoint, &made, &before);
            all_or_nothing(&mut host, &ops, &before).await?;
            Ok(spec.raise_inside(&made, netns).await?)
        };
        if let Err(failure) = connected.await {
            let connected = Connected { link: made, attachment: attachment.clone(), is_new };
            return Err(self.take_back(&[connected], failure).await);
        }
        // The link is complete now, so former problems with it are over.
        self.held.remove(&made.index);
        self.closed.remove(&made.index);
        self.end_misfit(attachment, &made, link.mtu).await;
        self.resize_bridge(&pool).await;
        if link.on_parent {
            self.follow_device_ifs().await;
        } else {
            self.net.wait_until_it_carries(&[made.index, link.index]).await;
        }
        Ok(Connected { link: made, attachment: attachment.clone(), is_new })
    }

    /// Removes one interface. The link goes first, so that no packet passes without the guard. A macvlan that its container
    /// has moved away cannot be deleted: it stays behind its programs, which let nothing pass without its map entries.
    ///
    /// # Errors
    /// When the link cannot be deleted; then everything is as before. Or what could not be removed from maps and pins
    /// afterwards.
    pub(super) async fn disconnect(&mut self, index: u32, attachment: &Attachment) -> Result<(), Failure> {
        let link = attachment.host_if.to_string();
        if let Err(e) = self.host().apply(&Op::DeleteLink { link, index }).await {
            if !is_number(index) {
                return Err(e.into());
            }
            self.host().apply(&Op::RemoveInterface { index }).await?;
            tracing::warn!(container = %attachment.container, error = %e, "interface closed");
            self.links.remove(&index);
            // Its programs stay, so what says so is no failure.
            for e in self.forget_link(index, &attachment.container, &attachment.host_if).await {
                tracing::warn!(container = %attachment.container, error = %e, "interface closed");
            }
            self.follow_device_ifs().await;
            return Ok(());
        }
        self.links.remove(&index);
        let left = self.forget_link(index, &attachment.container, &attachment.host_if).await;
        if is_number(index) {
            self.follow_device_ifs().await;
        }
        left.into_iter().reduce(Failure::and).map_or(Ok(()), Err)
    }
}

/// An interface that exists.
pub(super) struct Connected {
    link: LinkInfo,
    attachment: Attachment,
    /// Whether this attach has made the interface.
    is_new: bool,
}

/// What the kernel holds of a link that was just made.
fn fresh(link: &LinkInfo, host: &Host<'_>) -> Observed {
    let tracks_hooks = host.plane.as_ref().is_some_and(|plane| plane.hook() == Hook::Tcx);
    // A macvlan interface gets its programs while it is made.
    let hooks = if is_number(link.index) { [(link.index, ProgramState::Own)].into() } else { BTreeMap::new() };
    Observed {
        links: [(link.name.clone(), link.clone())].into(),
        hooks: tracks_hooks.then_some(hooks),
        ..Observed::default()
    }
}

/// How a new interface is connected to the pool.
fn kind(pool: &Pool, link: &PoolLink) -> LinkKind {
    if let Some((_, mode)) = pool.macvlan() {
        return LinkKind::Macvlan { parent: link.index, mode };
    }
    if pool.shares_mac() {
        return LinkKind::Ipvlan { parent: link.index };
    }
    match pool.link {
        PairKind::Veth => LinkKind::Veth { bridge: link.index },
        PairKind::Netkit => LinkKind::Netkit { bridge: link.index },
    }
}

/// The interface as it should be.
pub(super) fn spec(attachment: &Attachment, pool: &Pool, link: &PoolLink) -> LinkSpec {
    LinkSpec {
        kind: kind(pool, link),
        host_if: attachment.host_if.clone(),
        container_if: attachment.interface.clone(),
        mac: attachment.mac,
        mtu: link.mtu,
        segment_bytes: segment_bytes(pool),
        addresses: addresses(attachment, pool),
        alias: alias::of_attachment(attachment),
    }
}

pub(super) fn attachment(interface: &Interface, lease: &Lease) -> Attachment {
    Attachment {
        host_if: host_if_name(&lease.key.container, &lease.key.interface),
        container: lease.key.container.clone(),
        interface: lease.key.interface.clone(),
        pool: lease.key.pool.clone(),
        mac: lease.mac,
        ipv4: lease.ipv4,
        ipv6: lease.ipv6,
        default_route: interface.default_route,
        network: lease.terms.as_ref().map(|terms| terms.network()),
    }
}

pub(super) fn addresses(attachment: &Attachment, pool: &Pool) -> Vec<IpNetwork> {
    let pool = pool.seen_by(attachment);
    let with = |addr: IpAddr, prefix: Option<u8>| IpNetwork::new(addr, prefix?).ok();
    let v4 = attachment.ipv4.and_then(|a| with(a.into(), pool.v4.as_ref().map(|s| s.net.prefix())));
    let v6 = attachment.ipv6.and_then(|a| with(a.into(), pool.v6.as_ref().map(|s| s.net.prefix())));
    v4.into_iter().chain(v6).collect()
}
