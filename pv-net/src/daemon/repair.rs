//! What somebody else took away or changed is put back: of containers' links, their programs and entries, and of the pools'
//! bridges.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::kernel::forwarding::switched_off;
use crate::plan::{Op, diff};

impl Daemon {
    /// Compares what is with what should be. Nobody tells of a pin or an entry of a map that is gone.
    pub(super) async fn repair(&mut self) {
        if self.plane.is_none() {
            return;
        }
        match self.damage().await {
            Ok(ops) if ops.is_empty() => self.repair_bridges().await,
            Ok(ops) => {
                for op in ops {
                    tracing::warn!(%op, "not as it should be: put right");
                }
                self.put_right().await;
            }
            Err(e) => tracing::warn!(error = %e, "not compared with what should be"),
        }
    }

    /// The same for the pools' bridges: that they are up, have the pools' addresses, and forward.
    pub(super) async fn repair_bridges(&mut self) {
        if self.pools.is_empty() {
            return;
        }
        match self.damaged_bridges().await {
            Ok(bridges) if bridges.is_empty() => {}
            Ok(bridges) => {
                tracing::warn!(bridges = bridges.join(", "), "not as they should be: put right");
                self.put_right().await;
            }
            Err(e) => tracing::warn!(error = %e, "bridges not looked at"),
        }
    }

    async fn put_right(&mut self) {
        if let Err(e) = self.reconcile().await {
            tracing::warn!(error = %e, "not put right");
        }
    }

    async fn damage(&mut self) -> Result<Vec<Op>, Failure> {
        let observed = self.host().observe().await?;
        // To ask what is desired notes why some is not; nothing is new of that.
        let conditions = self.container_conditions.clone();
        let desired = self.desired(&observed);
        self.container_conditions = conditions;
        let mut ops = diff(&desired, &observed);
        if observed.hooks.is_none() {
            // Of a filter it is not known whether it is there.
            ops.retain(|op| !matches!(op, Op::AttachPrograms { .. }));
        }
        Ok(ops)
    }

    async fn damaged_bridges(&self) -> Result<Vec<String>, Failure> {
        let (links, addresses) = (self.net.links().await?, self.net.addresses().await?);
        let mut damaged = Vec::new();
        for (name, link) in &self.pools {
            let Some(pool) = self.device.pools.get(name) else { continue };
            let Some(bridge) = pool.bridge() else { continue };
            let is_up = links.iter().any(|l| l.index == link.index && l.name == bridge.as_str() && l.up);
            let has_all = pool.gateways().all(|gateway| addresses.contains(&(link.index, gateway)));
            if !is_up || !has_all || !switched_off(bridge).families.is_empty() {
                damaged.push(bridge.to_string());
            }
        }
        Ok(damaged)
    }
}
