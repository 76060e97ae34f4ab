//! BIG TCP on the pools' links: set when a link is made, and on those that are there when a pool's setting changes.

use super::Daemon;
use crate::kernel::netlink::{LinkInfo, Net, NetError, alias, in_runtime, segments};
use crate::kernel::netns;
use crate::model::{Attachment, Device, NetnsRef, Pool, PoolName};
use std::collections::BTreeSet;

/// The largest segments on the links of `pool`.
pub(super) const fn segment_bytes(pool: &Pool) -> u32 {
    if pool.big_tcp { segments::BIG_SEGMENT } else { segments::USUAL_SEGMENT }
}

impl Daemon {
    /// Pools of `new` that treat segments otherwise than now.
    pub(super) fn resized_pools(&self, new: &Device) -> BTreeSet<PoolName> {
        let changed = |p: &&Pool| self.device.pools.get(&p.name).is_some_and(|old| old.big_tcp != p.big_tcp);
        new.pools.values().filter(changed).map(|p| p.name.clone()).collect()
    }

    /// Sets the sizes of a pool's bridge, when pv-net made it. A bridge with no port yet refuses them: it takes on the
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

    /// Sets the sizes on both ends of the attached containers' links. A namespace that is gone has none.
    pub(super) async fn resize_segments(&self, pools: &BTreeSet<PoolName>) {
        for record in self.state.containers.values() {
            for attachment in record.attachments.iter().filter(|a| pools.contains(&a.pool)) {
                let Some(pool) = self.device.pools.get(&attachment.pool) else { continue };
                let bytes = segment_bytes(pool);
                if let Some(index) = self.link_index(&attachment.host_if) {
                    self.net.set_segment_bytes(attachment.host_if.as_str(), index, bytes).await;
                }
                if let Some(reference) = &record.netns {
                    resize_inside(reference, attachment, bytes).await;
                }
            }
        }
    }
}

async fn resize_inside(reference: &NetnsRef, attachment: &Attachment, bytes: u32) {
    let name = attachment.interface.clone();
    let resize = async move |net: Net, link: LinkInfo| {
        net.set_segment_bytes(name.as_str(), link.index, bytes).await;
        Ok(())
    };
    if let Err(e) = inside(reference, attachment, resize).await {
        tracing::debug!(container = %attachment.container, error = %e, "segment size inside");
    }
}

/// Does `work` on a container's interface in its namespace. A link with another MAC is not ours, and left alone.
pub(super) async fn inside<F>(
    reference: &NetnsRef,
    attachment: &Attachment,
    work: impl FnOnce(Net, LinkInfo) -> F + Send + 'static,
) -> Result<(), String>
where
    F: Future<Output = Result<(), NetError>> + Send,
{
    let (name, mac) = (attachment.interface.clone(), attachment.mac.0);
    let found = async move {
        let net = Net::here()?;
        match net.link(name.as_str()).await? {
            Some(link) if link.mac == Some(mac) => work(net, link).await,
            _ => Ok(()),
        }
    };
    let netns = netns::open_aside(reference).await.map_err(|e| e.to_string())?;
    let done = netns.run(move || in_runtime(found)).await.map_err(|e| e.to_string())?;
    done.map_err(|e: NetError| e.to_string())
}
