//! Observe, plan, apply: after a start and a reload, and when a link goes away.

use super::Daemon;
use super::execute::{Failed, carry_out};
use crate::failure::Failure;
use crate::ipam::store::{self, ContainerRecord};
use crate::ipam::{Lease, LeaseKey};
use crate::kernel::netlink::{LinkInfo, NetEvent, alias};
use crate::kernel::{Host, Kernel};
use crate::model::{Attachment, ContainerName, IfName, PoolName};
use crate::plan::{Desired, Observed, Op, addresses, diff, endpoint, forget, misplaced};
use pv_net_common::Ip;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Daemon {
    /// Brings the kernel to what configuration and state say.
    pub(super) async fn reconcile(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        let _quick = self.grace.expedite();
        self.failed_steps.clear();
        // The uplinks in use, that pools take their MTU from, are known only when the pools' bridges are.
        for _ in 0..2 {
            self.ensure_pools().await?;
            self.refresh_uplinks().await?;
            if !std::mem::take(&mut self.mtu_changed) {
                break;
            }
        }
        self.container_conditions.clear();
        let observed = self.host().observe().await?;
        self.note_links(&observed);
        let desired = self.desired(&observed);
        let ops = diff(&desired, &observed);
        let failed = carry_out(&mut self.host(), &ops).await;
        self.note_failures(failed);
        self.hold(&desired, &observed).await?;
        let links: Vec<LinkInfo> = observed.links.into_values().collect();
        self.fit_links(&links).await;
        self.look_at_firewall();
        self.refresh_port_map()?;
        store::save(&self.paths.state_dir, &self.state)?;
        Ok(())
    }

    /// The kernel, for the steps of a plan.
    pub(super) fn host(&mut self) -> Host<'_> {
        Host { net: &self.net, plane: self.plane.as_mut() }
    }

    /// Which of the attached containers' links are there.
    fn note_links(&mut self, observed: &Observed) {
        self.links.clear();
        for (name, record) in &self.state.containers {
            for attachment in &record.attachments {
                if let Some(link) = observed.links.get(attachment.host_if.as_str()) {
                    self.links.insert(link.index, (name.clone(), attachment.host_if.clone()));
                }
            }
        }
    }

    /// What should exist for the containers that are attached. One whose pool is not there as it was is held.
    pub(super) fn desired(&mut self, observed: &Observed) -> Desired {
        let mut desired = Desired::default();
        let attachments: Vec<Attachment> =
            self.state.containers.values().flat_map(|r| r.attachments.iter().cloned()).collect();
        let of_state: BTreeSet<&str> = attachments.iter().map(|a| a.host_if.as_str()).collect();
        for link in observed.links.values().filter(|l| l.is_containers() && !of_state.contains(l.name.as_str())) {
            if let Ok(name) = link.name.parse() {
                let why = format!("link {}: no attached container has it: its traffic is stopped", link.name);
                desired.held.insert(name, why);
            }
        }
        for attachment in attachments {
            let pool = self.device.pools.get(&attachment.pool).zip(self.pools.get(&attachment.pool));
            let why = match pool {
                None => Some(self.why_not_available(&attachment.pool)),
                Some((pool, _)) => misplaced(&attachment, pool),
            };
            if let Some(why) = why {
                let Attachment { container, interface, host_if, .. } = attachment;
                let why = format!("interface {interface}: its traffic is stopped: {why}");
                self.container_conditions.entry(container.clone()).or_default().push(why.clone());
                desired.held.insert(host_if, format!("container {container}: {why}"));
            } else if let Some((pool, link)) = pool {
                let identity = self.state.identity(&attachment.container);
                desired.endpoints.insert(attachment.host_if.clone(), endpoint(&attachment, pool, link, identity));
            }
        }
        desired
    }

    fn why_not_available(&self, pool: &PoolName) -> String {
        let why = self.pool_conditions.get(pool).map_or("it is not in the configuration", String::as_str);
        format!("pool {pool} is not available: {why}")
    }

    /// What failed is a condition, of its container too.
    fn note_failures(&mut self, failed: Vec<Failed>) {
        for Failed { link, why } in failed {
            if let Some((container, _)) = link.and_then(|index| self.links.get(&index)) {
                self.container_conditions.entry(container.clone()).or_default().push(why.clone());
            }
            self.failed_steps.push(why);
        }
    }

    /// Notes the links that are held. Their flows end each time: a daemon that died between two steps may have left some,
    /// and a flow that is known passes without a look at its interface.
    async fn hold(&mut self, desired: &Desired, observed: &Observed) -> Result<(), Failure> {
        self.held.clear();
        for (host_if, why) in &desired.held {
            if let Some(link) = observed.links.get(host_if.as_str()) {
                tracing::warn!(%host_if, %why, "held");
                self.held.insert(link.index, (host_if.clone(), why.clone()));
            }
        }
        let is_held = |a: &&Attachment| desired.held.contains_key(&a.host_if);
        let attachments = self.state.containers.values().flat_map(|r| &r.attachments).filter(is_held);
        let addresses: Vec<Ip> = attachments.flat_map(|a| addresses(a, 0)).collect();
        if !addresses.is_empty() {
            self.host().apply(&Op::EndFlows { addresses }).await?;
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
                let why = format!("link {}: its address is leased to {holder}", link.name);
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
            for e in self.forget_link(*index, &container, &host_if).await {
                tracing::warn!(%container, error = %e, "link not forgotten");
            }
        }
        match event {
            NetEvent::LeftBridge { index } | NetEvent::Link { index, up: false } if inside => {
                self.unbridged.insert(*index);
            }
            NetEvent::Link { index, up: true } if self.held.contains_key(index) => {
                self.unbridged.insert(*index);
            }
            NetEvent::LinkGone { index, name, .. } => {
                self.held.remove(index);
                if self.in_the_way.remove(name) {
                    self.tried_again = None;
                }
            }
            _ => {}
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
        self.try_held_again().await;
        self.repair_bridges().await;
        // Of an uplink's first filter.
        self.put_away_object();
        self.refresh_policy().await;
    }

    /// What was in the way of a pool may be gone: its containers need not be held any longer.
    pub(super) async fn try_held_again(&mut self) {
        const PAUSE: Duration = Duration::from_secs(5);
        if self.pool_conditions.is_empty() || self.tried_again.is_some_and(|then| then.elapsed() < PAUSE) {
            return;
        }
        // What is tried and fails is a change of its own: without a pause it would be tried for ever.
        self.tried_again = Some(Instant::now());
        if let Err(e) = self.reconcile().await {
            tracing::warn!(error = %e, "pools that are not available were tried again");
        }
    }

    /// Makes a container's link a port of its bridge again when somebody took it off, and sets it up when it was set
    /// down.
    async fn put_back(&mut self, index: u32) -> Result<(), Failure> {
        if let Some((host_if, why)) = self.held.get(&index) {
            let link = host_if.to_string();
            tracing::warn!(%link, %why, "link was set up: set down again");
            return Ok(self.host().apply(&Op::SetDown { link, index }).await?);
        }
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

    /// Removes what the maps and pins hold for a link that is gone. What cannot be removed is said, and the rest goes on.
    pub(super) async fn forget_link(
        &mut self,
        index: u32,
        container: &ContainerName,
        host_if: &IfName,
    ) -> Vec<Failure> {
        self.held.remove(&index);
        if self.plane.is_none() {
            return Vec::new();
        }
        let record = self.state.containers.get(container);
        let attachment = record.and_then(|r| r.attachments.iter().find(|a| a.host_if == *host_if)).cloned();
        let addresses = attachment.map(|a| addresses(&a, self.state.pool_id(&a.pool))).unwrap_or_default();
        let mut failures = Vec::new();
        for op in forget(host_if.as_str(), index, &addresses) {
            if let Err(e) = self.host().apply(&op).await {
                failures.push(Failure::from(e).about(&op));
            }
        }
        failures
    }
}
