//! Pools without an MTU of their own follow the smallest MTU of the uplinks in use.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::kernel::errand::{Change, Errand};
use crate::kernel::netlink::LinkInfo;
use crate::model::{Attachment, NetnsRef};
use crate::plan::{LinkState, Op, unfit};

/// The default MTU of Ethernet links, bytes.
const DEFAULT_MTU: u32 = 1500;

fn smallest<'a>(uplinks: impl Iterator<Item = &'a LinkState>) -> u32 {
    uplinks.map(|link| link.mtu).min().unwrap_or(DEFAULT_MTU)
}

impl Daemon {
    /// The smallest MTU of the uplinks that will be used.
    pub(super) async fn expected_mtu(&mut self) -> Result<u32, Failure> {
        let observed = self.host().observe_device().await?;
        let links = LinkState::all(observed.links.values());
        let names = self.uplink_names(&links, &observed);
        let is_used = |l: &&LinkState| names.iter().any(|name| name.as_str() == l.name) && unfit(l).is_none();
        Ok(smallest(links.iter().filter(is_used)))
    }

    /// Notes the smallest MTU of the uplinks in use.
    pub(super) fn note_mtu(&mut self, links: &[LinkState]) {
        let now = smallest(links.iter().filter(|l| self.uplinks.values().any(|index| *index == l.index)));
        let before = self.uplink_mtu.replace(now);
        if let Some(before) = before.filter(|before| *before != now) {
            tracing::info!(before, now, "the uplinks' MTU changed");
            self.mtu_changed = true;
        }
    }

    /// Gives both ends of attached containers' links the MTU of their pool, where the host side has another one. The
    /// container's end is changed first, by an errand, so that it never sends more than the other end takes. If it
    /// cannot be changed, the link keeps its MTU, and that is a condition.
    pub(super) async fn fit_links(&mut self, links: &[LinkInfo]) {
        let mut found: Vec<(Attachment, Option<NetnsRef>, u32, u32)> = Vec::new();
        for record in self.state.containers.values() {
            for attachment in &record.attachments {
                let Some(mtu) = self.pools.get(&attachment.pool).map(|pool| pool.mtu) else { continue };
                let link = links.iter().find(|l| l.name == attachment.host_if.as_str() && l.mtu != mtu);
                found.extend(link.map(|l| (attachment.clone(), record.netns.clone(), l.index, mtu)));
            }
        }
        if self.is_rehearsing() {
            for (attachment, _, index, mtu) in found {
                self.fit_device_end(&attachment, index, mtu).await;
            }
            return;
        }
        self.errands.forget_fits();
        self.misfits.retain(|host_if, _| found.iter().any(|(attachment, ..)| attachment.host_if == *host_if));
        for (attachment, reference, _, mtu) in found {
            let (container, interface) = (&attachment.container, &attachment.interface);
            match reference {
                _ if self.errands.is_fitting(&attachment.host_if) => {}
                Some(reference) => {
                    tracing::info!(%container, %interface, mtu, "link follows its pool's MTU");
                    self.errands.add(Errand::Inside { reference, attachment, change: Change::Mtu(mtu) });
                }
                None => self.note_misfit(&attachment, mtu, "its namespace is not known"),
            }
        }
        for (host_if, (container, why)) in &self.misfits {
            self.container_conditions.note(container, Some(host_if), why.clone());
        }
    }

    /// Handles the result of changing the container's end: the host side follows.
    pub(super) async fn end_fit(&mut self, attachment: Attachment, mtu: u32, done: Result<(), String>) {
        self.errands.is_fitted(&attachment.host_if);
        let record = self.state.containers.get(&attachment.container).filter(|r| r.attachments.contains(&attachment));
        // The container may have been detached meanwhile, or its link may be gone.
        let Some((record, index)) = record.zip(self.link_index(&attachment.host_if)) else { return };
        let now = self.pools.get(&attachment.pool).map(|pool| pool.mtu);
        match (now, done) {
            (Some(now), _) if now != mtu => {
                if let Some(reference) = record.netns.clone() {
                    self.errands.add(Errand::Inside { reference, attachment, change: Change::Mtu(now) });
                }
            }
            (Some(_), Ok(())) => {
                self.forget_misfit(&attachment);
                self.fit_device_end(&attachment, index, mtu).await;
            }
            (Some(_), Err(why)) => {
                self.forget_misfit(&attachment);
                self.note_misfit(&attachment, mtu, &why);
                if let Some((container, why)) = self.misfits.get(&attachment.host_if) {
                    self.container_conditions.note(container, Some(&attachment.host_if), why.clone());
                }
            }
            (None, _) => {}
        }
    }

    /// Gives a link whose container's end has its pool's MTU now that MTU too.
    pub(super) async fn end_misfit(&mut self, attachment: &Attachment, link: &LinkInfo, mtu: u32) {
        self.forget_misfit(attachment);
        if link.mtu != mtu {
            self.fit_device_end(attachment, link.index, mtu).await;
        }
    }

    async fn fit_device_end(&mut self, attachment: &Attachment, index: u32, mtu: u32) {
        let op = Op::SetMtu { link: attachment.host_if.to_string(), index, mtu };
        if let Err(e) = self.host().apply(&op).await {
            tracing::warn!(container = %attachment.container, error = %e, "MTU not set");
        }
    }

    fn note_misfit(&mut self, attachment: &Attachment, mtu: u32, why: &str) {
        let interface = &attachment.interface;
        let why = format!("interface {interface} does not have its pool's MTU {mtu}: {why}: attach it again");
        self.misfits.insert(attachment.host_if.clone(), (attachment.container.clone(), why));
    }

    /// Removes an earlier condition about this link's MTU.
    fn forget_misfit(&mut self, attachment: &Attachment) {
        if let Some((container, why)) = self.misfits.remove(&attachment.host_if) {
            self.container_conditions.forget(&container, &why);
        }
    }
}
