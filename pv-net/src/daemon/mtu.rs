//! Pools without an MTU of their own have the smallest one of the uplinks in use, and follow it.

use super::Daemon;
use super::segments::inside;
use super::uplinks::link_states;
use crate::failure::Failure;
use crate::kernel::netlink::LinkInfo;
use crate::model::{Attachment, IfName, NetnsRef};
use crate::plan::{LinkState, unfit};

/// What an Ethernet link has unless it is told otherwise.
const DEFAULT_MTU: u32 = 1500;

fn smallest<'a>(uplinks: impl Iterator<Item = &'a LinkState>) -> u32 {
    uplinks.map(|link| link.mtu).min().unwrap_or(DEFAULT_MTU)
}

impl Daemon {
    /// What the uplinks will have that are about to be used.
    pub(super) async fn expected_mtu(&mut self) -> Result<u32, Failure> {
        let links = link_states(self.net.links().await?);
        let addresses = self.net.addresses().await?;
        let names = self.uplink_names(&links, &addresses).await?;
        let is_used = |l: &&LinkState| names.iter().any(|name| name.as_str() == l.name) && unfit(l).is_none();
        Ok(smallest(links.iter().filter(is_used)))
    }

    /// Notes the MTU of the uplinks in use.
    pub(super) fn note_mtu(&mut self, links: &[LinkState]) {
        let now = smallest(links.iter().filter(|l| self.uplinks.values().any(|index| *index == l.index)));
        let before = self.uplink_mtu.replace(now);
        if let Some(before) = before.filter(|before| *before != now) {
            tracing::info!(before, now, "the uplinks' MTU changed");
            self.mtu_changed = true;
        }
    }

    /// Gives both ends of the attached containers' links the MTU of their pool, where the device's end has another one.
    /// A container whose end cannot be reached keeps it, and that is a condition.
    pub(super) async fn fit_links(&mut self, links: &[LinkInfo]) {
        let mut misfits: Vec<(Attachment, Option<NetnsRef>, u32, u32)> = Vec::new();
        for record in self.state.containers.values() {
            for attachment in &record.attachments {
                let Some(mtu) = self.pools.get(&attachment.pool).map(|pool| pool.mtu) else { continue };
                let link = links.iter().find(|l| l.name == attachment.host_if.as_str() && l.mtu != mtu);
                misfits.extend(link.map(|l| (attachment.clone(), record.netns.clone(), l.index, mtu)));
            }
        }
        for (attachment, reference, index, mtu) in misfits {
            let (container, interface) = (&attachment.container, &attachment.interface);
            tracing::info!(%container, %interface, mtu, "link follows its pool's MTU");
            // The container's end first: what it sends must fit the other.
            let done = match &reference {
                Some(reference) => fit_inside(reference, &attachment, mtu).await,
                None => Err("its namespace is not known".to_owned()),
            };
            if let Err(why) = done {
                let why = format!("interface {interface} does not have its pool's MTU {mtu}: {why}: attach it again");
                self.container_conditions.entry(container.clone()).or_default().push(why);
                continue;
            }
            if let Err(e) = self.net.set_mtu(attachment.host_if.as_str(), index, mtu).await {
                tracing::warn!(%container, error = %e, "MTU not set");
            }
        }
    }
}

async fn fit_inside(reference: &NetnsRef, attachment: &Attachment, mtu: u32) -> Result<(), String> {
    let name: IfName = attachment.interface.clone();
    inside(reference, attachment, async move |net, link| net.set_mtu(name.as_str(), link.index, mtu).await).await
}
