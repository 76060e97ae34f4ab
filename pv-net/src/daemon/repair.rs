//! Repairs what somebody else has removed or changed, and reports it: links, their programs, map entries, bridges,
//! addresses and settings.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::bpf::{DataPlane, Mended};
use crate::kernel::{Kernel, Repair};
use crate::model::ContainerName;
use crate::plan::{Observed, Op, bridge};
use std::collections::BTreeSet;

/// A repair: its container, if it is about one, and a text with what was wrong and what was done.
pub(crate) type Repaired = (Option<ContainerName>, String);

/// A deviation from the desired state: the step that repairs it, and what is wrong.
pub(super) struct Damage {
    op: Op,
    found: String,
}

impl Damage {
    fn of(op: Op, before: &Observed) -> Option<Self> {
        let found = op.found(before)?;
        Some(Self { op, found })
    }
}

impl Daemon {
    /// Compares the kernel with the desired state. No event reports that a program, a pin or a map entry is gone.
    pub(super) async fn repair(&mut self) {
        if self.plane.as_ref().is_none_or(|plane| plane.is_waiting()) {
            return;
        }
        // First, since the steps of a repair open pins.
        let mended = self.plane.as_mut().map(DataPlane::mend_pins).unwrap_or_default();
        self.note_mended(mended);
        self.repair_sockets();
        self.beyond_repair.clear();
        match self.damage().await {
            Ok(damage) if damage.is_empty() => {}
            Ok(damage) => self.put_right(damage).await,
            Err(e) => tracing::warn!(error = %e, "not compared with what should be"),
        }
        // By now `interfaces` has what it should have.
        let mended = self.plane.as_mut().map(DataPlane::mend_interfaces).unwrap_or_default();
        self.note_mended(mended);
    }

    fn note_mended(&mut self, mended: Vec<Mended>) {
        for (found, done) in mended {
            let done = done.map_or_else(|e| format!("not put right: {e}"), |()| "put back".to_owned());
            self.note_repair(None, &found, &done);
        }
    }

    fn repair_sockets(&mut self) {
        let lost = match &self.plane {
            Some(plane) if self.has_socket_hooks => plane.lost_socket_hook(),
            _ => return,
        };
        match lost {
            Ok(None) => {}
            Ok(Some(name)) => {
                self.hook_sockets();
                let done = if self.has_socket_hooks { "attached again" } else { "not put right" };
                // They were attached before; the next audit tries again.
                self.has_socket_hooks = true;
                self.note_repair(None, &format!("socket hook {name}: not attached any more, or another program"), done);
            }
            Err(e) => tracing::warn!(error = %e, "socket hooks not looked at"),
        }
    }

    /// Compares only the pools' bridges, after each event: that they are up, have the pools' addresses, and forward.
    pub(super) async fn repair_bridges(&mut self) {
        if self.pools.is_empty() {
            return;
        }
        match self.damaged_bridges().await {
            Ok(damage) if damage.is_empty() => self.beyond_repair.clear(),
            // A repair causes events itself, so a repair that did not help must not be repeated after each event.
            Ok(damage) if damage.iter().map(|d| &d.found).eq(&self.beyond_repair) => {}
            Ok(damage) => {
                self.put_right(damage).await;
                let left = self.damaged_bridges().await.unwrap_or_default();
                self.beyond_repair = left.into_iter().map(|d| d.found).collect();
            }
            Err(e) => tracing::warn!(error = %e, "bridges not looked at"),
        }
    }

    /// Repairs `damage` and whatever else has changed since it was found, and reports each repair.
    pub(super) async fn put_right(&mut self, damage: Vec<Damage>) {
        self.under_repair = Some(Repair::default());
        let done = self.reconcile().await;
        let repair = self.under_repair.take().unwrap_or_default();
        if let Err(e) = &done {
            tracing::warn!(error = %e, "not put right");
        }
        let more = repair.done.into_iter().filter(|(_, found)| !damage.iter().any(|d| d.found == *found));
        let more: Vec<Damage> = more.map(|(op, found)| Damage { op, found }).collect();
        // Renaming a link back is reported elsewhere.
        for Damage { op, found } in damage.into_iter().chain(more).filter(|d| !matches!(d.op, Op::Rename { .. })) {
            let container = op.opens().and_then(|index| self.links.get(&index)).map(|(container, _)| container.clone());
            let text = op.to_string();
            let failed = self.failed_steps.iter().find(|why| why.starts_with(&text));
            let outcome = match (&done, failed) {
                (Err(e), _) => format!("not put right: {e}"),
                (Ok(()), Some(why)) => format!("not put right: {why}"),
                (Ok(()), None) => text,
            };
            self.note_repair(container, &found, &outcome);
        }
    }

    /// Reports a repair.
    pub(super) fn note_repair(&mut self, container: Option<ContainerName>, found: &str, done: &str) {
        let about = container.as_ref().map(|name| tracing::field::display(name.clone()));
        tracing::warn!(container = about, found, done, "not as it should be");
        self.repairs.push((container, format!("{found}: {done}")));
    }

    /// What a reconciliation would repair.
    async fn damage(&mut self) -> Result<Vec<Damage>, Failure> {
        let before = self.host().observe().await?;
        let ops = self.rehearse_reconcile(before.clone()).await?;
        Ok(ops.into_iter().filter_map(|op| Damage::of(op, &before)).collect())
    }

    async fn damaged_bridges(&mut self) -> Result<Vec<Damage>, Failure> {
        let mut observed = self.host().observe_device().await?;
        observed.macs_held = self.macs_held.clone();
        let mut damaged = Vec::new();
        for (name, known) in &self.pools {
            let Some(bridge) = self.device.pools.get(name).and_then(|pool| bridge(pool, known.mtu)) else { continue };
            let link = bridge.link(&observed).ok().flatten().filter(|l| l.index == known.index);
            match link {
                Some(link) => {
                    let steps = bridge.steps(link, &observed, &BTreeSet::new());
                    damaged.extend(steps.into_iter().filter_map(|op| Damage::of(op, &observed)));
                }
                None => {
                    let found = format!("bridge {}: not there", bridge.name);
                    damaged.push(Damage { op: Op::MakeBridge(Box::new(bridge)), found });
                }
            }
        }
        Ok(damaged)
    }
}
