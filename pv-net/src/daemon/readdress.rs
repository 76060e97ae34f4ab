//! Other addresses for an interface that is attached: those that the network on its pool's parent gives it from now on.
//!
//! At each moment the guard lets the interface send from the addresses before or from those after the change. A new address
//! is added inside first, then the guard changes in one write, and an address that is over is removed last.

use super::Daemon;
use super::attach::{addresses, spec};
use super::execute::all_or_nothing;
use crate::command::{Halt, Readdress};
use crate::failure::{Failure, Kind};
use crate::ipam::Lease;
use crate::kernel::bpf::children;
use crate::kernel::errand::{Errand, Found};
use crate::kernel::link;
use crate::kernel::netlink::{LinkInfo, NetError, Netns, alias, in_time};
use crate::kernel::{Kernel, kill_point};
use crate::model::{Attachment, Pool, PoolIpam};
use crate::plan::{Op, addresses as keys, endpoint, endpoint_ops, misplaced};
use ipnetwork::IpNetwork;
use std::sync::Arc;

impl Daemon {
    /// Notes what the network gives an interface, and brings the interface to it. Does nothing when the interface is not
    /// there any more.
    ///
    /// # Errors
    /// When somebody else has an address; then everything is as before. When the guard cannot be changed; then the
    /// interface is closed. Or an errand for the container's namespace, whose result must be in `found`.
    pub(crate) async fn readdress(&mut self, new: &Readdress, found: &Found) -> Result<(), Halt> {
        let Readdress { key, mac, terms, wrong } = new;
        let Some(record) = self.state.containers.get(&key.container).cloned() else { return Ok(()) };
        let is_it = |a: &&Attachment| a.interface == key.interface && a.pool == key.pool && a.mac == *mac;
        let Some(before) = record.attachments.iter().find(is_it) else { return Ok(()) };
        let Some(pool) = self.device.pools.get(&key.pool).filter(|pool| pool.ipam == PoolIpam::Dhcp).cloned() else {
            return Ok(());
        };
        let _points = kill_point::begin("readdress");
        let network = terms.network();
        let after = Attachment {
            ipv4: network.v4.as_ref().map(|given| given.address),
            ipv6: network.v6.as_ref().map(|given| given.address),
            network: Some(network),
            ..before.clone()
        };
        let lease = Arc::new(Lease {
            key: key.clone(),
            ipv4: after.ipv4,
            ipv6: after.ipv6,
            mac: *mac,
            fixed: false,
            terms: Some(Arc::new(terms.clone())),
        });
        if after == *before {
            self.leases.change(self.learning(lease)).await.map_err(Failure::from)?;
            self.note_lack(&after, wrong.as_deref());
            return Ok(());
        }
        if let Some(reference) = record.netns.as_ref().filter(|reference| found.netns(reference).is_none()) {
            return Err(Halt::Needs(vec![Errand::Open(reference.clone())]));
        }
        // What cannot be reached inside is closed by the guard all the same.
        let netns = self.namespace_of(&record, found).await;
        let done = self.try_readdress(before, after.clone(), lease, &pool, netns).await;
        // The device's own way to the container leads to its address.
        self.follow_device_ifs().await;
        match &done {
            Ok(()) => self.note_lack(&after, wrong.as_deref()),
            Err(failure) => self.note_lack(&after, Some(&failure.line())),
        }
        Ok(done?)
    }

    /// Has the container say what is wrong with the lease of an interface, in place of what it has said before.
    fn note_lack(&mut self, attachment: &Attachment, wrong: Option<&str>) {
        let Attachment { container, interface, host_if, .. } = attachment;
        self.gets_all(container, Some(host_if));
        if let Some(wrong) = wrong {
            let lacks = self.lacks.entry(container.clone()).or_default();
            lacks.insert(host_if.clone(), format!("interface {interface}: {wrong}"));
        }
    }

    async fn try_readdress(
        &mut self,
        before: &Attachment,
        after: Attachment,
        lease: Arc<Lease>,
        pool: &Pool,
        netns: Option<&Netns>,
    ) -> Result<(), Failure> {
        if let Some(network) = &after.network {
            self.check_given(network)?;
        }
        self.check_not_devices(&after).await?;
        // The lease is on disk before the address is used.
        self.leases.change(self.learning(lease)).await?;
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
        Ok(())
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
        if !self.device.policies.is_empty() {
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
        if let Some(netns) = netns
            && let Err(e) = self.leave_inside(before, after, pool, link, netns).await
        {
            tracing::warn!(container = %after.container, interface = %after.interface, error = %e, "address not removed");
        }
        // Another address of the same network is secondary to the first one, and may have gone with it.
        if let Some(netns) = netns
            && let Err(e) = spec(after, pool, &on).address_inside(link, netns).await
        {
            tracing::warn!(container = %after.container, interface = %after.interface, error = %e, "address not added");
        }
        Ok(())
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
