//! Gives links of pv-net their own names back, since configuration, state and rules use these, and their own `ifalias`,
//! which tells whose they are.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::model::{Attachment, IfName, Mac, PoolName, alias};
use crate::plan::{Marked, Observed, misnamed, restored_marks, restored_names};
use pv_net_common::Ip;
use std::collections::{BTreeMap, BTreeSet};

impl Daemon {
    /// Whether a link of pv-net has the name `name`, which is not its own.
    pub(super) fn is_renamed(&self, index: u32, name: &str) -> bool {
        let bridge = || {
            let (pool, _) = self.pools.iter().find(|(_, link)| link.index == index && !link.borrowed)?;
            self.device.pools.get(pool)?.bridge()
        };
        let own = self.links.get(&index).map(|(_, host_if)| host_if).or_else(bridge);
        own.is_some_and(|own| own.as_str() != name)
    }

    /// The link with this index, if pv-net made it, as it should be.
    pub(super) fn marked(&self, index: u32) -> Option<Marked> {
        if let Some((container, host_if)) = self.links.get(&index) {
            let attachment =
                self.state.containers.get(container)?.attachments.iter().find(|a| a.host_if == *host_if)?;
            return Some(Marked { index, name: host_if.to_string(), alias: alias::of_attachment(attachment) });
        }
        let (pool, _) = self.pools.iter().find(|(_, link)| link.index == index && !link.borrowed)?;
        let bridge = self.device.pools.get(pool)?.bridge()?;
        Some(Marked { index, name: bridge.to_string(), alias: alias::of_bridge(pool) })
    }

    /// Whether a link of pv-net has another `ifalias` than its own now.
    ///
    /// # Errors
    /// When the link cannot be looked up.
    pub(super) async fn has_lost_its_mark(&self, index: u32) -> Result<bool, Failure> {
        let Some(own) = self.marked(index) else { return Ok(false) };
        let found = self.net.link(&own.name).await?.filter(|link| link.index == index);
        Ok(found.is_some_and(|link| !own.is_marked(link.alias.as_deref())))
    }

    /// Gives links their `ifalias` back. After a start, a container's link without its `ifalias` is recognised by its
    /// name, its programs, and its entry in the map `interfaces`.
    ///
    /// # Errors
    /// When the links cannot be listed.
    pub(super) async fn restore_marks(&mut self) -> Result<(), Failure> {
        let observed = self.host().observe_device().await?;
        let indexes = self.links.keys().chain(self.pools.values().map(|link| &link.index));
        let mut own: Vec<Marked> = indexes.filter_map(|index| self.marked(*index)).collect();
        let strange: Vec<Marked> = self.unknown_links(&observed).collect();
        if !strange.is_empty() {
            let observed = self.host().observe().await?;
            let macs: BTreeMap<&str, Mac> = self
                .state
                .containers
                .values()
                .flat_map(|r| &r.attachments)
                .map(|a| (a.host_if.as_str(), a.mac))
                .collect();
            own.extend(strange.into_iter().filter(|link| {
                let info = observed.interfaces.get(&link.index);
                let same = info
                    .zip(macs.get(link.name.as_str()))
                    .is_some_and(|(info, mac)| info.link_local == Ip::link_local(mac.0));
                // Filters of clsact are not observed.
                same && (observed.hooks.is_none() || observed.is_guarded(link.index))
            }));
        }
        for op in restored_marks(&own, &observed) {
            if let Err(e) = self.host().apply(&op).await {
                self.failed_steps.push(Failure::from(e).about(&op).line());
            }
        }
        Ok(())
    }

    /// Links that have the name of an attached container's link, but not its `ifalias`, and are not known by their
    /// index.
    fn unknown_links<'a>(&'a self, observed: &'a Observed) -> impl Iterator<Item = Marked> + 'a {
        self.state.containers.values().flat_map(|r| &r.attachments).filter_map(|attachment| {
            let link = observed.links.get(attachment.host_if.as_str()).filter(|link| !link.is_containers())?;
            let known = self.links.contains_key(&link.index);
            let alias = alias::of_attachment(attachment);
            (!known).then(|| Marked { index: link.index, name: link.name.clone(), alias })
        })
    }

    /// Gives renamed links their own names back. A link whose own name is taken by another link is held until that is
    /// gone.
    ///
    /// # Errors
    /// When the links cannot be listed.
    pub(super) async fn restore_names(&mut self) -> Result<(), Failure> {
        let observed = self.host().observe_device().await?;
        let attachments: Vec<Attachment> =
            self.state.containers.values().flat_map(|r| r.attachments.iter().cloned()).collect();
        // A bridge without containers is simply made anew.
        let used: BTreeSet<&PoolName> = attachments.iter().map(|a| &a.pool).collect();
        let pools = self.device.pools.values().filter(|pool| used.contains(&pool.name));
        let bridges: Vec<(PoolName, IfName)> =
            pools.filter_map(|pool| Some((pool.name.clone(), pool.bridge()?.clone()))).collect();
        let found = misnamed(&observed, &attachments, &bridges);
        let ops = restored_names(&found, &observed);
        self.misnamed = found.len() > ops.len();
        for op in ops {
            // The name was taken meanwhile: the link is held, and the renaming is tried again.
            if let Err(e) = self.host().apply(&op).await {
                self.failed_steps.push(Failure::from(e).about(&op).line());
                self.misnamed = true;
            } else if !self.is_rehearsing()
                && let Some(found) = op.found(&observed)
            {
                self.note_repair(None, &found, &op.to_string());
            }
        }
        Ok(())
    }
}
