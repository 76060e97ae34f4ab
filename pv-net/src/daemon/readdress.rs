//! Other addresses for an interface that is attached: those that the network on its pool's parent gives it from now on.
//!
//! An address that is over is taken out of the guard and the maps first, whatever else fails, and removed inside last. Only
//! then a new one is looked at, added inside, and let through by the guard in one write.

use super::Daemon;
use super::attach::{addresses, spec};
use super::execute::all_or_nothing;
use crate::command::{Halt, Readdress};
use crate::failure::{Failure, Kind};
use crate::ipam::{Lease, LeaseKey};
use crate::kernel::bpf::children;
use crate::kernel::errand::{Errand, Found};
use crate::kernel::link;
use crate::kernel::netlink::{LinkInfo, NetError, Netns, alias, in_time};
use crate::kernel::{Kernel, kill_point};
use crate::model::{Attachment, Pool, PoolIpam, Terms};
use crate::plan::{Op, addresses as keys, endpoint, endpoint_ops, misplaced};
use ipnetwork::IpNetwork;
use std::sync::Arc;

impl Daemon {
    /// Notes what the network gives an interface, and brings the interface to it. Does nothing when the interface is not
    /// there any more.
    ///
    /// # Errors
    /// When the lease in the book is another one by now; then nothing is changed. When somebody else has a new address,
    /// or the change cannot be written; then the interface is without the addresses that are over, and this is to be
    /// tried again. When the guard cannot be changed; then the interface is closed. Or an errand for the container's
    /// namespace, whose result must be in `found`.
    pub(crate) async fn readdress(&mut self, new: &Readdress, found: &Found) -> Result<(), Halt> {
        let Readdress { key, mac, terms, wrong, base } = new;
        let mut terms = terms.clone();
        self.leave_out_gateways(key, &mut terms).await;
        let Some(record) = self.state.containers.get(&key.container).cloned() else { return Ok(()) };
        let is_it = |a: &&Attachment| a.interface == key.interface && a.pool == key.pool && a.mac == *mac;
        let Some(before) = record.attachments.iter().find(is_it) else { return Ok(()) };
        let Some(pool) = self.device.pools.get(&key.pool).filter(|pool| pool.ipam == PoolIpam::Dhcp).cloned() else {
            return Ok(());
        };
        let book = self.leases.of(&key.container).into_iter().find(|lease| lease.key == *key);
        if book.is_none_or(|lease| lease.terms.as_deref().unwrap_or(&Terms::default()) != base) {
            let why =
                format!("container {}: interface {}: its lease is another one by now", key.container, key.interface);
            return Err(Failure::new(Kind::Conflict, why).into());
        }
        let _points = kill_point::begin("readdress");
        let after = with(before, &terms);
        let rest = without_lost(before, &after);
        if rest != *before {
            self.lose(before, &rest, &pool).await;
        }
        let is_clean = !self.leaving.contains_key(&rest.host_if);
        if after == rest && is_clean {
            let written = self.leases.change(self.learning(lease(key, &after, &terms))).await.map_err(Failure::from);
            let failed = written.as_ref().err().map(Failure::line);
            self.note_lack(&after, failed.as_deref().or(wrong.as_deref()));
            written?;
            return Ok(());
        }
        if let Some(reference) = record.netns.as_ref().filter(|reference| found.netns(reference).is_none()) {
            return Err(Halt::Needs(vec![Errand::Open(reference.clone())]));
        }
        // What cannot be reached inside is closed by the guard all the same.
        let netns = self.namespace_of(&record, found).await;
        // Before the routes, which may lack something too.
        self.note_lack(&after, wrong.as_deref());
        let done = self.try_readdress(&rest, (key, terms), &pool, netns).await;
        // The device's own way to the container leads to its address.
        self.follow_device_ifs().await;
        if let Err(failure) = &done {
            self.note_lack(&after, Some(&failure.line()));
        }
        Ok(done?)
    }

    /// Takes from an interface what it has `before` and not in `rest`, in the record, the guard and the maps. What cannot be
    /// changed closes the interface. Inside, and on disk, this follows.
    async fn lose(&mut self, before: &Attachment, rest: &Attachment, pool: &Pool) {
        self.exchange(before, rest);
        let left = self.leaving.entry(rest.host_if.clone()).or_default();
        if !left.contains(before) {
            left.push(before.clone());
        }
        let Some(index) = self.link_index(&rest.host_if) else { return };
        children::note_alias(index, alias::of_attachment(rest));
        let on = self.pools.get(&rest.pool).cloned();
        let identity = self.state.identity(&rest.container);
        let is_open = !self.held.contains_key(&index) && !self.closed.contains(&index);
        let mut host = self.host();
        let mut failed = Vec::new();
        let close = Op::RemoveInterface { index };
        let guard = on.as_ref().filter(|_| is_open).map_or(close, |on| {
            let info = Box::new(endpoint(rest, pool, on, identity).info);
            Op::SetInterface { host_if: rest.host_if.to_string(), index, info }
        });
        if let Err(e) = host.apply(&guard).await {
            failed.push(e.to_string());
            failed.extend(host.apply(&Op::RemoveInterface { index }).await.err().map(|e| e.to_string()));
        }
        if let Some(on) = on {
            let kept = keys(rest, on.id);
            let over: Vec<_> = keys(before, on.id).into_iter().filter(|key| !kept.contains(key)).collect();
            let ops = over.iter().map(|addr| Op::RemoveEndpoint { addr: *addr }).collect::<Vec<_>>();
            for op in ops.into_iter().chain([Op::EndFlows { addresses: over }]) {
                failed.extend(host.apply(&op).await.err().map(|e| e.to_string()));
            }
        }
        for e in failed {
            tracing::error!(container = %rest.container, interface = %rest.interface, error = e, "address not given up");
        }
    }

    /// Has the container say what is wrong with the lease of an interface, in place of what it has said before.
    pub(super) fn note_lack(&mut self, attachment: &Attachment, wrong: Option<&str>) {
        let Attachment { container, interface, host_if, .. } = attachment;
        self.gets_all(container, Some(host_if));
        if let Some(wrong) = wrong {
            let lacks = self.lacks.entry(container.clone()).or_default();
            lacks.insert(host_if.clone(), format!("interface {interface}: {wrong}"));
        }
    }

    /// Brings an interface, which has lost what is over already, to the lease `terms`. A new address that is somebody else's
    /// is left out.
    async fn try_readdress(
        &mut self,
        before: &Attachment,
        (key, mut terms): (&LeaseKey, Terms),
        pool: &Pool,
        netns: Option<&Netns>,
    ) -> Result<(), Failure> {
        let mut refused = None;
        let has_new4 = before.ipv4 != terms.v4.as_ref().map(|t| t.given.address);
        if has_new4 && let Err(why) = self.check_new(before, Terms { v4: terms.v4.clone(), v6: None }).await {
            (refused, terms.v4) = (Some(why), None);
        }
        let has_new6 = before.ipv6 != terms.v6.as_ref().map(|t| t.given.address);
        if has_new6 && let Err(why) = self.check_new(before, Terms { v4: None, v6: terms.v6.clone() }).await {
            refused = Some(refused.map_or(why.clone(), |before: Failure| before.and(why)));
            terms.v6 = None;
        }
        let after = with(before, &terms);
        // The lease is on disk before the address is used. What is lost is so on disk if there is any way.
        if let Err(e) = self.leases.change(self.learning(lease(key, &after, &terms))).await {
            return Err(Failure::from(e).not_restored(self.save().err()));
        }
        let all = self.exchange(before, &after);
        let done = self.bring_to(before, &after, &all, pool, netns).await;
        if let Err(failure) = done {
            // What it had may be somebody else's by now. The record has no network, so that a link with these addresses is
            // held, and this is tried again.
            self.exchange(&after, &Attachment { network: None, ..after.clone() });
            let closed = match self.link_index(&after.host_if) {
                Some(index) => self.host().apply(&Op::RemoveInterface { index }).await,
                None => Ok(()),
            };
            return Err(failure.not_restored(closed.err().map(Failure::from)));
        }
        let Attachment { container, interface, ipv4, ipv6, .. } = &after;
        tracing::info!(%container, %interface, ?ipv4, ?ipv6, "other addresses");
        refused.map_or(Ok(()), Err)
    }

    /// Checks an address that is new to an interface.
    ///
    /// # Errors
    /// When somebody else has it.
    async fn check_new(&self, before: &Attachment, terms: Terms) -> Result<(), Failure> {
        self.check_given(&terms.network())?;
        self.check_not_devices(&with(before, &terms)).await
    }

    /// Brings rules, guard and the inside to `after`, which is in the record already.
    async fn bring_to(
        &mut self,
        before: &Attachment,
        after: &Attachment,
        all: &[Attachment],
        pool: &Pool,
        netns: Option<&Netns>,
    ) -> Result<(), Failure> {
        self.save()?;
        // The rules know the address before its first packet.
        if self.has_rules() {
            self.enforce_policy(false).await?;
        }
        let index = self.link_index(&after.host_if);
        if let Some(index) = index.filter(|index| !self.held.contains_key(index) && !self.closed.contains(index))
            && let Some(link) = self.net.link_at(index).await?
        {
            children::note_alias(index, alias::of_attachment(after));
            self.switch(before, after, pool, &link, netns).await?;
        }
        if self.publishes(&after.container) {
            self.refresh_port_map().await?;
        }
        if let Some(netns) = netns
            && let Err(failure) = self.arrange(all, netns, &[]).await
        {
            tracing::warn!(container = %after.container, error = %failure.line(), "routes inside not arranged");
        }
        Ok(())
    }

    /// Puts `after` in the place of `before` in its container's record. Returns all of the container's.
    fn exchange(&mut self, before: &Attachment, after: &Attachment) -> Vec<Attachment> {
        let Some(record) = self.state.containers.get_mut(&after.container) else { return Vec::new() };
        let all = &mut Arc::make_mut(record).attachments;
        for attachment in all.iter_mut().filter(|a| *a == before) {
            attachment.clone_from(after);
        }
        all.clone()
    }

    /// Changes the interface `link` inside, its guard, and what others know of it.
    async fn switch(
        &mut self,
        before: &Attachment,
        after: &Attachment,
        pool: &Pool,
        link: &LinkInfo,
        netns: Option<&Netns>,
    ) -> Result<(), Failure> {
        let Some(on) = self.pools.get(&after.pool).cloned() else { return Ok(()) };
        if let Some(netns) = netns {
            // Without it the container cannot use a new address, and the guard still refuses the old one.
            if let Err(e) = spec(after, pool, &on).address_inside(link, netns).await {
                tracing::warn!(container = %after.container, interface = %after.interface, error = %e, "address not added");
            }
        }
        let identity = self.state.identity(&after.container);
        let wanted = endpoint(after, pool, &on, identity);
        let over: Vec<_> = keys(before, on.id).into_iter().filter(|key| !wanted.addresses.contains(key)).collect();
        if let Some(why) = misplaced(after, pool) {
            return Err(Failure::new(Kind::Internal, why));
        }
        let mut host = self.host();
        let observed = host.observe().await?;
        let mut ops = endpoint_ops(&wanted, link, &observed);
        ops.extend(over.iter().map(|addr| Op::RemoveEndpoint { addr: *addr }));
        ops.push(Op::EndFlows { addresses: over });
        all_or_nothing(&mut host, &ops, &observed).await?;
        if let Some(netns) = netns {
            self.leave_all_inside(before, after, pool, link, netns).await;
        }
        // Another address of the same network is secondary to the first one, and may have gone with it.
        if let Some(netns) = netns
            && let Err(e) = spec(after, pool, &on).address_inside(link, netns).await
        {
            tracing::warn!(container = %after.container, interface = %after.interface, error = %e, "address not added");
        }
        Ok(())
    }

    /// Removes inside what the interface had `before`, and what it has lost since. What cannot be removed is tried again with
    /// the next change; the guard refuses it.
    async fn leave_all_inside(
        &mut self,
        before: &Attachment,
        after: &Attachment,
        pool: &Pool,
        link: &LinkInfo,
        netns: &Netns,
    ) {
        let mut had = self.leaving.remove(&after.host_if).unwrap_or_default();
        had.push(before.clone());
        let mut left = Vec::new();
        for had in had {
            if let Err(e) = self.leave_inside(&had, after, pool, link, netns).await {
                tracing::warn!(container = %after.container, interface = %after.interface, error = %e, "address not removed");
                left.push(had);
            }
        }
        if !left.is_empty() {
            self.leaving.insert(after.host_if.clone(), left);
        }
    }

    /// Removes what is over inside: routes first, since the kernel keeps those by a gateway that it does not reach any
    /// more.
    async fn leave_inside(
        &self,
        before: &Attachment,
        after: &Attachment,
        pool: &Pool,
        link: &LinkInfo,
        netns: &Netns,
    ) -> Result<(), NetError> {
        let Some(inside) = link::end_in(&self.net, link.index, netns).await? else { return Ok(()) };
        let kept: Vec<IpNetwork> = addresses(after, pool);
        let over = addresses(before, pool).into_iter().filter(|address| !kept.contains(address)).collect::<Vec<_>>();
        let ways = |a: &Attachment| pool.seen_by(a).gateways().map(|g| g.ip()).collect::<Vec<_>>();
        let kept = ways(after);
        let gone: Vec<_> = ways(before).into_iter().filter(|gateway| !kept.contains(gateway)).collect();
        in_time(link::leave(netns, inside, &gone, before.default_route == Some(true), &over)).await
    }
}

/// The interface with the addresses of `terms`.
fn with(attachment: &Attachment, terms: &Terms) -> Attachment {
    let network = terms.network();
    Attachment {
        ipv4: network.v4.as_ref().map(|given| given.address),
        ipv6: network.v6.as_ref().map(|given| given.address),
        network: Some(network),
        ..attachment.clone()
    }
}

/// The interface `before` without the addresses that it does not have in `after`.
fn without_lost(before: &Attachment, after: &Attachment) -> Attachment {
    let mut rest = before.clone();
    if before.ipv4 != after.ipv4 {
        rest.ipv4 = None;
    }
    if before.ipv6 != after.ipv6 {
        rest.ipv6 = None;
    }
    if let Some(network) = &mut rest.network {
        network.v4 = network.v4.take().filter(|_| rest.ipv4.is_some());
        network.v6 = network.v6.take().filter(|_| rest.ipv6.is_some());
    }
    rest
}

fn lease(key: &LeaseKey, attachment: &Attachment, terms: &Terms) -> Arc<Lease> {
    let Attachment { ipv4, ipv6, mac, .. } = attachment;
    let terms = Some(Arc::new(terms.clone()));
    Arc::new(Lease { key: key.clone(), ipv4: *ipv4, ipv6: *ipv6, mac: *mac, fixed: false, terms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Given, Network};
    use crate::plan::fixture;

    fn has(v4: Option<u8>, v6: Option<u16>) -> Attachment {
        let given4 = |n| Given::bare([10, 77, 0, n].into(), 24, None);
        let given6 = |n| Given::bare([0xfd00, 0x77, 0, 0, 0, 0, 0, n].into(), 64, None);
        let network = Network { v4: v4.map(given4), v6: v6.map(given6) };
        Attachment {
            ipv4: network.v4.as_ref().map(|g| g.address),
            ipv6: network.v6.as_ref().map(|g| g.address),
            network: Some(network),
            ..fixture::attachment(1)
        }
    }

    #[test]
    fn what_is_over_or_replaced_is_lost_and_the_rest_stays() {
        for (before, after, rest) in [
            (has(Some(1), Some(1)), has(Some(1), Some(1)), has(Some(1), Some(1))),
            (has(Some(1), Some(1)), has(None, Some(1)), has(None, Some(1))),
            (has(Some(1), Some(1)), has(Some(2), Some(1)), has(None, Some(1))),
            (has(Some(1), Some(1)), has(Some(1), Some(2)), has(Some(1), None)),
            (has(Some(1), None), has(None, Some(1)), has(None, None)),
            (has(None, None), has(Some(1), Some(1)), has(None, None)),
        ] {
            assert_eq!(without_lost(&before, &after), rest);
        }
    }
}
