//! The device's own interfaces beside the macvlan interfaces of containers: made with the first container on a parent that
//! the device can reach, and removed with the last.

use super::Daemon;
use super::execute::all_or_nothing;
use crate::failure::{Failure, Kind};
use crate::kernel::Kernel;
use crate::kernel::bpf::Hook;
use crate::model::{Attachment, MacvlanMode, Pool, PoolIpam};
use crate::plan::{DeviceIf, Observed, Op, Reached, Ways, device_if_gone, device_ifs};

impl Daemon {
    /// Brings the device's own interfaces on parents to the containers that there are, and to the parents' addresses. One
    /// that cannot be made is a condition: containers work without it.
    pub(super) async fn follow_device_ifs(&mut self) {
        let bridged = self.device.pools.values().any(is_bridged);
        if !self.is_active() || self.hook() != Hook::Tcx || !bridged && self.device_ifs.is_empty() {
            return;
        }
        self.device_if_conditions.clear();
        if let Err(e) = self.try_follow_device_ifs().await {
            let why = format!("the device does not reach its containers in macvlan pools: {e}");
            self.device_if_conditions.push(why);
        }
    }

    async fn try_follow_device_ifs(&mut self) -> Result<(), Failure> {
        let mut observed = self.host().observe().await?;
        let reached = self.reached();
        let is_asked = reached.iter().any(|reached| reached.is_given);
        let ways = if is_asked { self.net.ways(&observed.addresses).await? } else { Ways::default() };
        let (wanted, refused) = device_ifs(reached.into_iter(), &observed, &ways);
        self.device_if_conditions.extend(refused);
        let gone = device_if_gone(&wanted, &observed);
        self.apply_all(&gone).await?;
        gone.iter().for_each(|op| observed.apply(op));
        let mut failure: Option<Failure> = None;
        self.device_ifs.clear();
        for own in &wanted {
            match self.ensure_device_if(own, &mut observed).await {
                Ok(index) => drop(self.device_ifs.insert(index)),
                Err(e) => {
                    let e = e.about(format!("interface {} on {}", own.name, own.parent_name));
                    failure = Some(failure.map_or(e.clone(), |before| before.and(e)));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// The interfaces of containers that the device reaches.
    fn reached(&self) -> Vec<Reached<'_>> {
        let works = |a: &&Attachment| {
            self.link_index(&a.host_if).is_some_and(|i| !self.held.contains_key(&i) && !self.closed.contains(&i))
        };
        let attachments = self.state.containers.values().flat_map(|record| &record.attachments).filter(works);
        let with_pool = attachments.filter_map(|attachment| {
            let pool = self.device.pools.get(&attachment.pool).filter(|pool| is_bridged(pool))?;
            let is_given = pool.ipam == PoolIpam::Dhcp;
            Some(Reached { attachment, pool: self.pools.get(&attachment.pool)?, is_given })
        });
        with_pool.collect()
    }

    /// Makes the interface, or what is missing of it. Returns its index.
    async fn ensure_device_if(&mut self, own: &DeviceIf, observed: &mut Observed) -> Result<u32, Failure> {
        let made = own.link(observed).is_none();
        if made {
            let op = Op::MakeDeviceIf(Box::new(own.clone()));
            self.host().apply(&op).await.map_err(|e| Failure::from(e).about(&op))?;
            *observed = self.host().observe().await?;
            self.guard_parents(observed);
        }
        let vanished = || Failure::new(Kind::Internal, "gone while it was set up".to_owned());
        let link = own.link(observed).cloned().ok_or_else(vanished)?;
        let ops = own.steps(&link, observed);
        match all_or_nothing(&mut self.host(), &ops, observed).await {
            Ok(()) => {
                ops.iter().for_each(|op| observed.apply(op));
                Ok(link.index)
            }
            Err(failure) if made => {
                let gone = self.host().apply(&Op::DeleteDeviceIf { name: own.name.clone() }).await;
                Err(failure.not_restored(gone.err().map(Failure::from)))
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Whether the device reaches the containers of the pool by an interface of its own.
fn is_bridged(pool: &Pool) -> bool {
    matches!(pool.macvlan(), Some((_, MacvlanMode::Bridge)))
}
