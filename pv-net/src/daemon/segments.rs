//! BIG TCP on the pools' links: set when a link is made, and changed when a pool's setting changes.

use super::Daemon;
use crate::kernel::errand::{Change, Errand};
use crate::kernel::netlink::{alias, segments};
use crate::model::{Device, Pool, PoolName};
use std::collections::BTreeSet;

/// The largest segments on the links of `pool`, bytes.
pub(super) const fn segment_bytes(pool: &Pool) -> u32 {
    if pool.big_tcp { segments::BIG_SEGMENT } else { segments::USUAL_SEGMENT }
}

impl Daemon {
    /// Pools whose setting differs in `new`.
    pub(super) fn resized_pools(&self, new: &Device) -> BTreeSet<PoolName> {
        let changed = |p: &&Pool| self.device.pools.get(&p.name).is_some_and(|old| old.big_tcp != p.big_tcp);
        new.pools.values().filter(changed).map(|p| p.name.clone()).collect()
    }

    /// Sets the sizes of a pool's bridge, if pv-net made it. A bridge without ports refuses them, since it takes the
    /// limits of its ports.
    pub(super) async fn resize_bridge(&self, pool: &Pool) {
        let Some(bridge) = pool.bridge() else { return };
        match self.net.link(bridge.as_str()).await {
            Ok(Some(link)) if alias::is_ours(link.alias.as_deref()) => {
                self.net.set_segment_bytes(bridge.as_str(), link.index, segment_bytes(pool)).await;
            }
            Ok(_) => {}
            Err(e) => tracing::debug!(%bridge, error = %e, "segment size"),
        }
    }

    /// Sets the sizes on both ends of the attached containers' links; the containers' ends by errands.
    pub(super) async fn resize_segments(&mut self, pools: &BTreeSet<PoolName>) {
        for record in self.state.containers.values() {
            for attachment in record.attachments.iter().filter(|a| pools.contains(&a.pool)) {
                let Some(pool) = self.device.pools.get(&attachment.pool) else { continue };
                let bytes = segment_bytes(pool);
                if let Some(index) = self.link_index(&attachment.host_if) {
                    self.net.set_segment_bytes(attachment.host_if.as_str(), index, bytes).await;
                }
                if let Some(reference) = &record.netns {
                    let (reference, attachment) = (reference.clone(), attachment.clone());
                    self.errands.add(Errand::Inside { reference, attachment, change: Change::Segments(bytes) });
                }
            }
        }
    }
}
