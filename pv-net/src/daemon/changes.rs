//! Changes that the kernel reports: they are noted as they come, and acted on together afterwards.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::bpf::Hook;
use crate::kernel::netlink::NetEvent;
use crate::kernel::{Kernel, Repair};
use crate::model::{ContainerName, IfName};
use crate::plan::{Op, addresses, forget};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

impl Daemon {
    /// Notes a change of a link, address or route. The map entries of a container's link that is gone are removed; its
    /// lease stays. Changes of containers' links do not affect the device's own addresses and uplinks.
    pub async fn on_event(&mut self, event: &NetEvent) {
        let inside = match event {
            NetEvent::LinkGone { ours, .. } => *ours,
            NetEvent::Link { index, .. } | NetEvent::LeftBridge { index } => self.links.contains_key(index),
            NetEvent::Filter { program } => {
                // With tcx pv-net has no filters.
                let is_own = program.is_some_and(|id| self.plane.as_ref().is_some_and(|plane| plane.has_program(id)));
                self.filters_changed |= self.hook() == Hook::Clsact && !is_own;
                true
            }
            NetEvent::Changed | NetEvent::Route { .. } => false,
        };
        if let NetEvent::Route { outputs } = event {
            let is_inside = |link| {
                let own = self.links.contains_key(link) || self.device_ifs.contains(link);
                own || self.pools.values().any(|p| p.index == *link && !p.on_parent)
            };
            self.routes_changed |= outputs.is_empty() || !outputs.iter().all(is_inside);
        }
        if let NetEvent::LinkGone { index, .. } = event
            && let Some((container, host_if)) = self.links.remove(index)
        {
            tracing::info!(%container, %host_if, "link gone");
            self.thinned.insert(container.clone());
            for e in self.forget_link(*index, &container, &host_if).await {
                tracing::warn!(%container, error = %e, "link not forgotten");
            }
        }
        // The kernel reports nothing of interfaces in other namespaces, but that their parent has changed when one goes.
        if let NetEvent::Link { index, .. } | NetEvent::LinkGone { index, .. } = event {
            self.children_changed |= self.pools.values().any(|pool| pool.on_parent && pool.index == *index);
        }
        if let NetEvent::Link { index, name: Some(name), .. } = event {
            self.misnamed |= self.is_renamed(*index, name);
        }
        if let NetEvent::Link { index, alias: Some(alias), .. } = event
            && let Some(own) = self.marked(*index)
        {
            if own.is_marked(Some(alias)) {
                self.unmarked.remove(index);
            } else {
                self.unmarked.insert(*index);
            }
        }
        match event {
            NetEvent::Link { index, up: false, .. } if self.held.contains_key(index) || self.closed.contains(index) => {
            }
            NetEvent::LeftBridge { index } | NetEvent::Link { index, up: false, .. } if inside => {
                self.unbridged.insert(*index);
            }
            NetEvent::Link { index, up: true, .. } if self.held.contains_key(index) || self.closed.contains(index) => {
                self.unbridged.insert(*index);
            }
            NetEvent::LinkGone { index, name, .. } => {
                self.held.remove(index);
                self.closed.remove(index);
                // The pool may be marked as without its bridge already, since the bridge's ports were removed first.
                let bridges = self.device.pools.values().filter_map(|pool| pool.bridge());
                self.bridge_gone |= self.pools.values().any(|pool| pool.index == *index)
                    || bridges.into_iter().any(|bridge| bridge.as_str() == name);
                if self.in_the_way.remove(name) {
                    self.tried_again = None;
                }
            }
            _ => {}
        }
        self.uplinks_changed |= !inside;
    }

    /// Reads addresses and routes again if something has changed since the last call, puts containers' links back on their
    /// bridges, and acts on lost links.
    pub async fn settle(&mut self) {
        self.follow_changes().await;
        // The last step, since the others may find that links are gone before the kernel's messages say so.
        self.follow_thinned().await;
        self.free_taken().await;
    }

    async fn follow_changes(&mut self) {
        if std::mem::take(&mut self.children_changed) {
            self.forget_gone_children().await;
            if self.has_lost_a_parent().await {
                self.put_right(Vec::new()).await;
            }
        }
        for index in std::mem::take(&mut self.unbridged) {
            if let Err(e) = self.put_back(index).await {
                tracing::warn!(index, error = %e, "container's link not put back on its bridge");
            }
        }
        if std::mem::take(&mut self.filters_changed) {
            self.repair().await;
        }
        let mut unmarked = false;
        for index in std::mem::take(&mut self.unmarked) {
            // A link that has just been made is reported before it gets its mark.
            match self.has_lost_its_mark(index).await {
                Ok(lost) => unmarked |= lost,
                Err(e) => tracing::warn!(index, error = %e, "link not looked at: the next audit does"),
            }
        }
        if self.misnamed || unmarked {
            self.put_right(Vec::new()).await;
        }
        if std::mem::take(&mut self.bridge_gone) {
            if self.pools.len() < self.device.pools.len() {
                self.put_right(Vec::new()).await;
            } else {
                self.repair_bridges().await;
            }
        }
        if !std::mem::take(&mut self.uplinks_changed) {
            return;
        }
        let available = self.pools.len();
        let known: BTreeSet<u32> = self.uplinks.values().chain(self.hooked_bridges.values()).copied().collect();
        self.under_repair = Some(Repair::default());
        let refreshed = self.refresh_uplinks().await;
        // Most of these changes are the administrator's and no damage, but a link that has lost its program is.
        for (op, found) in self.under_repair.take().unwrap_or_default().done {
            if matches!(&op, Op::Hook { index, .. } if known.contains(index)) {
                self.note_repair(None, &found, &op.to_string());
            }
        }
        if let Err(e) = refreshed {
            tracing::warn!(error = %e, "uplinks not refreshed: tried again with the next change or audit");
            self.uplinks_changed = true;
        }
        self.follow_device_ifs_again().await;
        if std::mem::take(&mut self.mtu_changed)
            && let Err(e) = self.reconcile().await
        {
            tracing::warn!(error = %e, "pools do not follow the uplinks' MTU");
        }
        if self.pools.len() < available {
            // A bridge that is deleted takes its program along. The kernel tells of its addresses first, so that may be
            // found here, before the message that it is gone.
            self.put_right(Vec::new()).await;
        } else {
            self.try_held_again().await;
        }
        self.repair_bridges().await;
        // Frees what was loaded for the first filter of an uplink.
        self.put_away_object();
        self.refresh_policy().await;
    }

    /// Tries pools again that are not available, so that their containers need not be held any longer.
    pub(super) async fn try_held_again(&mut self) {
        const PAUSE: Duration = Duration::from_secs(5);
        if self.pool_conditions.is_empty() || self.tried_again.is_some_and(|then| then.elapsed() < PAUSE) {
            return;
        }
        // A failed try causes events itself; without a pause it would be repeated endlessly.
        self.tried_again = Some(Instant::now());
        // This is no repair: that the pools were not available was a condition, which ends now.
        if let Err(e) = self.reconcile().await {
            tracing::warn!(error = %e, "pools that are not available were tried again");
        }
    }

    /// Makes a container's link a port of its bridge again after somebody has removed it, and sets it up after somebody
    /// has set it down.
    async fn put_back(&mut self, index: u32) -> Result<(), Failure> {
        if let Some((host_if, why)) = self.held.get(&index) {
            let link = host_if.to_string();
            let why = why.clone();
            self.host().apply(&Op::SetDown { link: link.clone(), index }).await?;
            self.note_repair(None, &format!("{link}: set up"), &format!("set down: {why}"));
            return Ok(());
        }
        let Some((container, host_if)) = self.links.get(&index).cloned() else { return Ok(()) };
        if self.closed.contains(&index) {
            // Its guard is incomplete. The next audit restores that, and opens the link then.
            let link = host_if.to_string();
            return Ok(self.host().apply(&Op::SetDown { link, index }).await?);
        }
        let attachments = self.state.containers.get(&container).map(|r| &r.attachments[..]).unwrap_or_default();
        let attachment = attachments.iter().find(|a| a.host_if == host_if);
        let found = attachment.and_then(|a| Some((self.pools.get(&a.pool)?.index, a.mac)));
        let Some((bridge, mac)) = found else { return Ok(()) };
        // A link that is being deleted leaves its bridge first, so it is checked that the link still exists.
        let Some(link) = self.net.link(host_if.as_str()).await?.filter(|l| l.index == index) else { return Ok(()) };
        if link.controller != Some(bridge) {
            self.net.enslave(host_if.as_str(), index, bridge).await?;
            self.net.hold_mac(host_if.as_str(), index, mac).await?;
            self.note_repair(Some(container.clone()), &format!("{host_if}: not a port of its bridge"), "put back");
        }
        if !link.up {
            self.net.set_up(host_if.as_str(), index).await?;
            self.note_repair(Some(container), &format!("{host_if}: down"), "set up");
        }
        Ok(())
    }

    /// Removes what the maps and pins hold for a link that is gone. Returns what could not be removed.
    pub(super) async fn forget_link(
        &mut self,
        index: u32,
        container: &ContainerName,
        host_if: &IfName,
    ) -> Vec<Failure> {
        self.held.remove(&index);
        self.closed.remove(&index);
        self.pairs.remove(&index);
        self.leaving.remove(host_if);
        if self.plane.is_none() {
            return Vec::new();
        }
        let record = self.state.containers.get(container);
        let attachment = record.and_then(|r| r.attachments.iter().find(|a| a.host_if == *host_if)).cloned();
        let addresses = attachment.map(|a| addresses(&a, self.state.pool_id(&a.pool))).unwrap_or_default();
        let mut failures = Vec::new();
        for op in forget(index, &addresses) {
            if let Err(e) = self.host().apply(&op).await {
                failures.push(Failure::from(e).about(&op));
            }
        }
        failures
    }
}
