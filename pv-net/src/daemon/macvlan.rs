//! Macvlan and ipvlan pools: the link that their interfaces sit on, and interfaces that go away unseen.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::kernel::bpf::{Hook, children};
use crate::kernel::link::{knows_ipvlan, parent_misfit};
use crate::model::{Attachment, IfName, IpvlanMode, Mac, MacvlanMode, Pool, PoolKind, PoolName, alias};
use crate::plan::{Link, Observed, PoolLink};
use pv_net_common::LinkId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The MACs of the device's own links that send by the link with index `parent`: its own, and those of VLANs and
/// macvlans on it that are in the device's namespace. That of the device's own interface beside those of containers is
/// known as such.
fn own_macs(parent: u32, observed: &Observed) -> BTreeMap<[u8; 6], LinkId> {
    let stacked = |link: &Link| {
        let kind = matches!(link.kind.as_deref(), Some("vlan" | "macvlan" | "macvtap"));
        kind && link.other_end == Some(parent) && link.other_ns.is_none() && !children::is_number(link.index)
    };
    let own = observed.links.values().filter(|link| link.index == parent || stacked(link));
    let id = |link: &Link| if link.is_device_if() { LinkId::of_index(link.index) } else { LinkId::OUTSIDE };
    own.filter_map(|link| Some((link.mac?, id(link)))).collect()
}

/// Why the macvlan or ipvlan interface of `attachment` does not fit its pool, whose link is `pool`: it sits on another parent, or
/// where it is cannot be told. `None` when it fits, and for other kinds of links.
pub(super) fn on_another_parent(attachment: &Attachment, pool: &PoolLink, observed: &Observed) -> Option<String> {
    let link = observed.host_side(attachment.host_if.as_str()).filter(|link| children::is_number(link.index))?;
    if link.controller == Some(pool.index) && pool.on_parent {
        return None;
    }
    let why = match link.controller {
        Some(_) => "it is not on the parent of its pool",
        None => "it has another MAC or alias than its lease, or its container has moved it to another namespace",
    };
    Some(format!("{why}: detach the container, and attach it again"))
}

/// Why no container is attached to `pool` in the mode that it has, and what to choose; `None` if it is.
fn mode_misfit(pool: &Pool) -> Option<(&'static str, &'static str)> {
    match pool.kind {
        PoolKind::Macvlan { mode: MacvlanMode::Passthru, .. } => {
            Some(("mode passthru is not supported by this version", "choose bridge, private or vepa"))
        }
        PoolKind::Ipvlan { mode: IpvlanMode::L3, .. } => {
            let why = "mode l3 is not supported by this version: the device would send on what containers send, past the \
                       programs on the parent";
            Some((why, "choose l2"))
        }
        PoolKind::Ipvlan { mode: IpvlanMode::L3s, .. } => {
            let why = "mode l3s is not supported by this version: packets would reach containers past their programs";
            Some((why, "choose l2"))
        }
        PoolKind::Macvlan { .. } | PoolKind::Ipvlan { mode: IpvlanMode::L2, .. } | PoolKind::Bridge { .. } => None,
    }
}

/// What the link with index `parent` carries that is in the way of `pool`'s interfaces.
fn carried(pool: &Pool, parent: u32, observed: &Observed) -> Option<&'static str> {
    let on_parent = |link: &&Link| {
        if children::is_number(link.index) {
            link.controller == Some(parent)
        } else {
            link.other_end == Some(parent) && link.other_ns.is_none()
        }
    };
    let mut others = observed.links.values().filter(on_parent);
    let is_kind = |link: &Link, kinds: [&str; 2]| link.kind.as_deref().is_some_and(|kind| kinds.contains(&kind));
    if !pool.shares_mac() {
        let in_the_way = others.any(|link| is_kind(link, ["ipvlan", "ipvtap"]));
        return in_the_way.then_some("carries ipvlan links, and a link carries one kind only");
    }
    others.find_map(|link| {
        if is_kind(link, ["macvlan", "macvtap"]) {
            return Some("carries macvlan links, and a link carries one kind only");
        }
        let foreign = is_kind(link, ["ipvlan", "ipvtap"]) && !alias::is_ours(link.alias.as_deref());
        foreign.then_some("carries ipvlan links that are not pv-net's, and all links on it have one mode")
    })
}

impl Daemon {
    /// Finds the macvlan and ipvlan interfaces of attached containers again, by their pins. One that an earlier daemon has made and
    /// not moved into its container's namespace is removed.
    ///
    /// # Errors
    /// When links or pins cannot be listed, or something cannot be removed.
    pub(super) async fn discover_children(&mut self) -> Result<(), Failure> {
        if self.plane.is_none() {
            return Ok(());
        }
        for link in self.net.links().await? {
            let is_child = matches!(link.kind.as_deref(), Some("macvlan" | "ipvlan"));
            let unmoved = is_child && !children::is_number(link.index);
            if unmoved && alias::is_ours(link.alias.as_deref()) && !link.is_device_if() {
                self.net.delete_link(&link.name, link.index).await?;
            }
        }
        let attachments = self.state.containers.values().flat_map(|record| &record.attachments);
        let known: BTreeMap<IfName, (String, [u8; 6])> =
            attachments.map(|a| (a.host_if.clone(), (alias::of_attachment(a), a.mac.0))).collect();
        Ok(children::discover(&self.paths.bpffs, |host_if| known.get(host_if).cloned())?)
    }

    /// Checks the link that a macvlan or ipvlan pool's interfaces sit on.
    ///
    /// # Errors
    /// Why the pool is not available.
    pub(super) fn ensure_parent(&mut self, pool: &Pool, observed: &Observed) -> Result<(), Failure> {
        let Some(parent) = pool.parent() else { return Ok(()) };
        let refused = |why: String| Failure::new(Kind::Conflict, why);
        if self.hook() != Hook::Tcx {
            let kind = pool.type_name();
            let why = format!("{kind} pools need kernel 6.6: on older ones a container could remove its guard");
            return Err(refused(why).help("use a pool of type bridge"));
        }
        if let Some((why, help)) = mode_misfit(pool) {
            return Err(refused(why.to_owned()).help(help));
        }
        if pool.shares_mac() && !knows_ipvlan()? {
            let why = "this kernel has no ipvlan (CONFIG_IPVLAN)".to_owned();
            return Err(refused(why).help("use a pool of type macvlan or bridge"));
        }
        let Some(link) = observed.links.get(parent.as_str()) else {
            return Err(refused(format!("parent {parent}: no such link: the pool is used when it comes")));
        };
        let is_pools = self.device.pools.values().any(|other| other.bridge() == Some(parent));
        let misfit = match parent_misfit(link, pool.shares_mac()) {
            Some(why) => Some(why),
            None if is_pools => Some("is the bridge of a pool"),
            None => carried(pool, link.index, observed),
        };
        if let Some(why) = misfit {
            return Err(refused(format!("parent {parent}: {why}")).help("name another link as the parent"));
        }
        let (index, mac, link_mtu) = (link.index, Mac(link.mac.unwrap_or_default()), link.mtu);
        let mtu = pool.mtu.unwrap_or(link_mtu);
        if mtu > link_mtu {
            return Err(refused(format!("parent {parent}: its MTU is {link_mtu}, and the pool's is {mtu}")));
        }
        let id = self.state.pool_id(&pool.name);
        self.pools.insert(pool.name.clone(), PoolLink { index, mac, mtu, id, borrowed: true, on_parent: true });
        Ok(())
    }

    /// Checks that a macvlan or ipvlan interface has no address of the device itself, which is in the same network.
    ///
    /// # Errors
    /// When it has one, or the device's addresses cannot be listed.
    pub(super) async fn check_not_devices(&self, attachment: &Attachment) -> Result<(), Failure> {
        let own = attachment.ipv4.map(IpAddr::from).into_iter().chain(attachment.ipv6.map(IpAddr::from));
        let own: BTreeSet<IpAddr> = own.collect();
        let addresses = self.net.addresses().await?;
        let Some((_, taken)) = addresses.into_iter().find(|(_, address)| own.contains(&address.ip())) else {
            return Ok(());
        };
        let why = format!("container {}: {} is an address of the device", attachment.container, taken.ip());
        Err(Failure::new(Kind::Conflict, why)
            .help("give its interface an ipv4_address or ipv6_address that nobody on the parent's network has"))
    }

    /// Brings the programs on the parents of macvlan and ipvlan interfaces to the pools that there are. A parent keeps its program as
    /// long as any such interface exists, also when its pool is gone or not available: the container could send by a
    /// further macvlan beside its own. Where that fails, the pools are not available.
    pub(super) fn guard_parents(&mut self, observed: &Observed) {
        if self.is_rehearsing() || self.hook() != Hook::Tcx {
            return;
        }
        let Some(plane) = &mut self.plane else { return };
        let mut wanted: BTreeSet<u32> =
            self.pools.values().filter(|pool| pool.on_parent).map(|pool| pool.index).collect();
        let guarded = if children::all().is_empty() { Ok(Vec::new()) } else { plane.guarded_parents() };
        let done = guarded.and_then(|guarded| {
            wanted.extend(guarded);
            wanted.retain(|parent| observed.link(*parent).is_some());
            let parents = wanted.into_iter().map(|parent| (parent, own_macs(parent, observed))).collect();
            plane.guard_parents(&parents)
        });
        let Err(e) = done else { return };
        let lost: Vec<PoolName> =
            self.pools.iter().filter(|(_, pool)| pool.on_parent).map(|(name, _)| name.clone()).collect();
        for name in lost {
            self.pools.remove(&name);
            self.pool_conditions.insert(name, format!("its parent cannot be guarded: {e}"));
        }
    }

    /// Whether the link that a pool's macvlan or ipvlan interfaces sit on is gone, or another one has its name, or it has
    /// another MAC, which ipvlan interfaces have too.
    pub(super) async fn has_lost_a_parent(&self) -> bool {
        for (name, link) in self.pools.iter().filter(|(_, link)| link.on_parent) {
            let pool = self.device.pools.get(name);
            let wanted = pool.and_then(Pool::parent).map(IfName::as_str);
            let is_shared = pool.is_some_and(Pool::shares_mac);
            match self.net.link_at(link.index).await {
                Ok(Some(found))
                    if wanted == Some(found.name.as_str()) && (!is_shared || found.mac == Some(link.mac.0)) => {}
                Ok(_) => return true,
                Err(e) => tracing::warn!(parent = link.index, error = %e, "parent not looked at: the next audit does"),
            }
        }
        false
    }

    /// Notes macvlan and ipvlan interfaces that are gone, which the kernel does not report.
    pub(super) async fn forget_gone_children(&mut self) {
        let there: BTreeSet<u32> = children::all().into_iter().map(|child| child.number).collect();
        let is_gone = |index: &u32| children::is_number(*index) && !there.contains(index);
        let gone: Vec<u32> = self.links.keys().copied().filter(is_gone).collect();
        for index in gone {
            let Some((container, host_if)) = self.links.remove(&index) else { continue };
            tracing::info!(%container, %host_if, "link gone");
            self.uplinks_changed = true;
            self.thinned.insert(container.clone());
            for e in self.forget_link(index, &container, &host_if).await {
                tracing::warn!(%container, error = %e, "link not forgotten");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Attachment;
    use crate::plan::fixture;

    const PARENT: u32 = 5;

    fn pool(ipvlan: bool) -> Pool {
        let parent: IfName = "wan0".parse().expect("name");
        let kind = if ipvlan {
            PoolKind::Ipvlan { parent, mode: IpvlanMode::L2 }
        } else {
            PoolKind::Macvlan { parent, mode: MacvlanMode::Bridge }
        };
        Pool { kind, ..fixture::pool(true) }
    }

    /// A kernel with one link of this kind on the parent.
    fn holds(kind: &str, alias: Option<String>) -> Observed {
        let mut observed = fixture::links(&[7], true);
        let link = observed.links.get_mut("pv7").expect("there");
        (link.kind, link.other_end, link.controller) = (Some(kind.to_owned()), Some(PARENT), None);
        link.alias = alias;
        observed
    }

    #[test]
    fn a_parent_carries_one_kind_only() {
        let own = |a: &Attachment| Some(alias::of_attachment(a));
        let own = own(&fixture::attachment(7));
        for (ipvlan, kind, alias, why) in [
            (false, "ipvlan", None, Some("carries ipvlan links")),
            (false, "macvlan", None, None),
            (true, "macvlan", None, Some("carries macvlan links")),
            (true, "macvtap", own.clone(), Some("carries macvlan links")),
            (true, "ipvlan", None, Some("not pv-net's")),
            (true, "ipvlan", own, None),
            (true, "vlan", None, None),
        ] {
            let found = carried(&pool(ipvlan), PARENT, &holds(kind, alias));
            assert_eq!(found.is_some(), why.is_some(), "{kind}: {found:?}");
            assert!(found.unwrap_or_default().contains(why.unwrap_or_default()), "{kind}: {found:?}");
            assert_eq!(carried(&pool(ipvlan), PARENT + 1, &holds(kind, None)), None, "another parent");
        }
    }

    #[test]
    fn interfaces_of_containers_are_in_the_way_too() {
        let mut observed = holds("macvlan", None);
        let link = observed.links.get_mut("pv7").expect("there");
        link.index = children::number_of(&"pv7".parse().expect("name"));
        (link.other_end, link.other_ns, link.controller) = (Some(2), Some(3), Some(PARENT));
        assert!(carried(&pool(true), PARENT, &observed).is_some_and(|why| why.contains("macvlan")));
        assert_eq!(carried(&pool(false), PARENT, &observed), None);
    }

    #[test]
    fn a_mode_that_is_not_supported_says_why() {
        assert_eq!((mode_misfit(&pool(true)), mode_misfit(&pool(false))), (None, None));
        for mode in [IpvlanMode::L3, IpvlanMode::L3s] {
            let kind = PoolKind::Ipvlan { parent: "wan0".parse().expect("name"), mode };
            let said = mode_misfit(&Pool { kind, ..fixture::pool(true) });
            assert!(said.is_some_and(|(why, help)| why.contains("not supported") && help.contains("l2")), "{said:?}");
        }
    }
}
