//! Observe, plan, apply: after a start and a reload, and when a link goes away.

use super::Daemon;
use crate::failure::Failure;
use crate::ipam::store::{self, ContainerRecord};
use crate::ipam::{Lease, LeaseKey};
use crate::kernel::netlink::{LinkInfo, NetEvent, alias};
use crate::model::{Attachment, ContainerName, IfName};
use crate::plan::{Desired, Observed, ObservedLink, Op, diff, endpoint};
use pv_net_common::Ip;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Daemon {
    /// Brings the kernel to what configuration and state say.
    pub(super) async fn reconcile(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        let _quick = self.grace.expedite();
        // The uplinks in use, that pools take their MTU from, are known only when the pools' bridges are.
        for _ in 0..2 {
            self.ensure_pools().await?;
            self.refresh_uplinks().await?;
            if !std::mem::take(&mut self.mtu_changed) {
                break;
            }
        }
        let links = self.net.links().await?;
        self.note_links(&links);
        self.container_conditions.clear();
        let desired = self.desired();
        let observed = self.observed(&links)?;
        for op in diff(&desired, &observed) {
            tracing::debug!(%op, "apply");
            self.apply(&op).await?;
        }
        self.fit_links(&links).await;
        self.look_at_firewall();
        self.refresh_port_map()?;
        store::save(&self.paths.state_dir, &self.state)?;
        Ok(())
    }

    /// Which of the attached containers' links are there.
    fn note_links(&mut self, links: &[LinkInfo]) {
        let index: BTreeMap<&str, u32> = links.iter().map(|l| (l.name.as_str(), l.index)).collect();
        self.links.clear();
        for (name, record) in &self.state.containers {
            for attachment in &record.attachments {
                if let Some(index) = index.get(attachment.host_if.as_str()) {
                    self.links.insert(*index, (name.clone(), attachment.host_if.clone()));
                }
            }
        }
    }

    /// What should exist for the containers that are attached.
    fn desired(&mut self) -> Desired {
        let mut desired = Desired::new();
        let attachments: Vec<Attachment> =
            self.state.containers.values().flat_map(|r| r.attachments.iter().cloned()).collect();
        for attachment in attachments {
            let pool = self.device.pools.get(&attachment.pool).zip(self.pools.get(&attachment.pool));
            let Some((pool, link)) = pool else {
                let why = format!("pool {} is not available", attachment.pool);
                self.container_conditions.entry(attachment.container).or_default().push(why);
                continue;
            };
            let identity = self.state.identity(&attachment.container);
            desired.insert(attachment.host_if.clone(), endpoint(&attachment, pool, link, identity));
        }
        desired
    }

    /// What the kernel holds.
    fn observed(&mut self, links: &[LinkInfo]) -> Result<Observed, Failure> {
        let mut observed = Observed::default();
        for link in links {
            if let Some((_, host_if)) = self.links.get(&link.index) {
                let seen = ObservedLink { index: link.index, up: link.up, controller: link.controller };
                observed.links.insert(host_if.clone(), seen);
            }
        }
        let plane = self.plane()?;
        observed.interfaces = plane.interfaces().into_iter().collect();
        observed.endpoints = plane.endpoints().into_iter().collect();
        observed.hooks = plane.hooked()?.into_iter().collect();
        Ok(observed)
    }

    /// Carries out one step.
    pub(super) async fn apply(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::SetInterface { index, info, .. } => self.plane()?.set_interface(*index, info)?,
            Op::AttachProgram { host_if } => self.plane()?.attach(host_if)?,
            Op::Enslave { host_if, index, bridge, mac } => {
                self.net.enslave(host_if.as_str(), *index, *bridge).await?;
                self.net.hold_mac(host_if.as_str(), *index, *mac).await?;
            }
            Op::SetUp { host_if, index } => self.net.set_up(host_if.as_str(), *index).await?,
            Op::SetEndpoint { addr, info } => self.plane()?.set_endpoint(*addr, info)?,
            Op::RemoveEndpoint { addr } => {
                self.plane()?.remove_endpoint(*addr)?;
                self.plane()?.end_flows(&[*addr])?;
            }
            Op::RemoveInterface { index } => self.plane()?.remove_interface(*index)?,
            Op::DetachProgram { host_if } => self.plane()?.detach(host_if)?,
        }
        Ok(())
    }

    /// Containers whose links are there but of whom the state knows nothing: their addresses are in use.
    pub(super) async fn learn_leases(&mut self) -> Result<(), Failure> {
        for link in self.net.links().await? {
            let found = link.alias.as_deref().and_then(|a| alias::to_attachment(&link.name, a));
            let Some(attachment) = found else { continue };
            let known = self.state.containers.get(&attachment.container);
            if known.is_some_and(|r| r.attachments.contains(&attachment)) {
                continue;
            }
            let lease = Lease {
                key: LeaseKey {
                    pool: attachment.pool.clone(),
                    container: attachment.container.clone(),
                    interface: attachment.interface.clone(),
                },
                ipv4: attachment.ipv4,
                ipv6: attachment.ipv6,
                mac: attachment.mac,
                fixed: false,
            };
            if let Err(holder) = self.state.ipam.learn(lease) {
                let why = format!("link {}: its address is leased to {holder}; left as it is", link.name);
                self.start_conditions.push(why);
                continue;
            }
            self.start_conditions
                .push(format!("lease of {} learned again from link {}", attachment.container, link.name));
            self.learn_record(attachment);
        }
        Ok(())
    }

    fn learn_record(&mut self, attachment: Attachment) {
        let name = attachment.container.clone();
        let record = self.state.containers.entry(name).or_insert_with(|| {
            Arc::new(ContainerRecord {
                run: serde_json::json!({
                    "name": attachment.container, "network": {"interfaces": []},
                }),
                netns: None,
                attachments: Vec::new(),
            })
        });
        let record = Arc::make_mut(record);
        let interface = serde_json::json!({
            "name": attachment.interface, "pool": attachment.pool, "default_route": attachment.default_route,
        });
        if let Some(list) = record.run.pointer_mut("/network/interfaces").and_then(serde_json::Value::as_array_mut) {
            list.push(interface);
        }
        record.attachments.push(attachment);
    }

    /// A link, address or route changed. A container's link that goes takes its map entries along; its lease stays.
    /// What becomes of containers' links is nothing to the device's own side.
    pub async fn on_event(&mut self, event: &NetEvent) {
        let inside = match event {
            NetEvent::LinkGone { ours, .. } => *ours,
            NetEvent::Link { index, .. } | NetEvent::LeftBridge { index } => self.links.contains_key(index),
            NetEvent::Changed | NetEvent::Route { .. } => false,
        };
        if let NetEvent::Route { outputs } = event {
            let is_inside = |link| self.links.contains_key(link) || self.pools.values().any(|p| p.index == *link);
            self.routes_changed |= outputs.is_empty() || !outputs.iter().all(is_inside);
        }
        if let NetEvent::LinkGone { index, .. } = event
            && let Some((container, host_if)) = self.links.remove(index)
        {
            tracing::info!(%container, %host_if, "link gone");
            if let Err(e) = self.forget_link(*index, &container, &host_if) {
                tracing::warn!(%container, error = %e, "link not forgotten");
            }
        }
        if let NetEvent::LeftBridge { index } | NetEvent::Link { index, up: false } = event
            && inside
        {
            self.unbridged.insert(*index);
        }
        self.uplinks_changed |= !inside;
    }

    /// Reads addresses and routes again when something changed since the last time, and puts containers' links back
    /// where they belong.
    pub async fn settle(&mut self) {
        for index in std::mem::take(&mut self.unbridged) {
            if let Err(e) = self.put_back(index).await {
                tracing::warn!(index, error = %e, "container's link not put back on its bridge");
            }
        }
        if !std::mem::take(&mut self.uplinks_changed) {
            return;
        }
        if let Err(e) = self.refresh_uplinks().await {
            tracing::warn!(error = %e, "uplinks not refreshed");
        }
        if std::mem::take(&mut self.mtu_changed)
            && let Err(e) = self.reconcile().await
        {
            tracing::warn!(error = %e, "pools do not follow the uplinks' MTU");
        }
        // Of an uplink's first filter.
        self.put_away_object();
        self.refresh_policy().await;
    }

    /// Makes a container's link a port of its bridge again when somebody took it off, and sets it up when it was set
    /// down.
    async fn put_back(&mut self, index: u32) -> Result<(), Failure> {
        let Some((container, host_if)) = self.links.get(&index) else { return Ok(()) };
        let attachments = self.state.containers.get(container).map(|r| &r.attachments[..]).unwrap_or_default();
        let attachment = attachments.iter().find(|a| a.host_if == *host_if);
        let found = attachment.and_then(|a| Some((self.pools.get(&a.pool)?.index, a.mac)));
        let Some((bridge, mac)) = found else { return Ok(()) };
        // A link that is deleted leaves its bridge first.
        let Some(link) = self.net.link(host_if.as_str()).await?.filter(|l| l.index == index) else { return Ok(()) };
        if link.controller != Some(bridge) {
            tracing::warn!(%container, %host_if, "link was taken off its bridge: put back");
            self.net.enslave(host_if.as_str(), index, bridge).await?;
            self.net.hold_mac(host_if.as_str(), index, mac).await?;
        }
        if !link.up {
            tracing::warn!(%container, %host_if, "link was set down: set up again");
            self.net.set_up(host_if.as_str(), index).await?;
        }
        Ok(())
    }

    /// Removes what the maps and pins hold for a link that is gone.
    pub(super) fn forget_link(
        &mut self,
        index: u32,
        container: &ContainerName,
        host_if: &IfName,
    ) -> Result<(), Failure> {
        let attachment = self
            .state
            .containers
            .get(container)
            .and_then(|r| r.attachments.iter().find(|a| a.host_if == *host_if))
            .cloned();
        let Some(plane) = &mut self.plane else { return Ok(()) };
        let mut addresses = Vec::new();
        if let Some(a) = attachment {
            let link_local = Ip::link_local(a.mac.0);
            addresses.extend(a.ipv4.map(Ip::from).into_iter().chain(a.ipv6.map(Ip::from)).chain([link_local]));
            plane.remove_endpoint(link_local.of_pool(self.state.pool_id(&a.pool)))?;
        }
        for addr in addresses.iter().filter(|a| !a.is_link_local()) {
            plane.remove_endpoint(*addr)?;
        }
        plane.remove_interface(index)?;
        plane.detach(host_if.as_str())?;
        plane.end_flows(&addresses)?;
        Ok(())
    }
}
