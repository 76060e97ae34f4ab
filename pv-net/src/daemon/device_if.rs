//! The device's own interfaces beside the macvlan interfaces of containers: made with the first container on a parent that
//! the device can reach, and removed with the last.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::kernel::Kernel;
use crate::kernel::bpf::Hook;
use crate::model::{Attachment, MacvlanMode, Pool};
use crate::plan::{DeviceIf, Link, Observed, Op, PoolLink, device_if_gone, device_ifs};
use std::time::{Duration, Instant};

impl Daemon {
    /// Like [`Self::follow_device_ifs`], after a change that the kernel has reported.
    pub(super) async fn follow_device_ifs_again(&mut self) {
        const PAUSE: Duration = Duration::from_secs(5);
        // A failed try causes changes itself; without a pause it would be repeated endlessly.
        if self.device_if_failed.is_none_or(|then| then.elapsed() >= PAUSE) {
            self.follow_device_ifs().await;
        }
    }

    /// Brings the device's own interfaces on parents to the containers that there are, and to the parents' addresses. One
    /// that cannot be made is a condition: containers work without it.
    pub(super) async fn follow_device_ifs(&mut self) {
        let is_idle = self.device_ifs.is_empty() && self.reached().is_empty();
        self.device_if_conditions.clear();
        self.device_if_failed = None;
        if is_idle || !self.is_active() || self.hook() != Hook::Tcx {
            return;
        }
        if let Err(e) = self.try_follow_device_ifs().await {
            let why = format!("the device does not reach its containers in macvlan pools: {e}");
            self.device_if_conditions.push(why);
            self.device_if_failed = Some(Instant::now());
        }
    }

    async fn try_follow_device_ifs(&mut self) -> Result<(), Failure> {
        let mut observed = self.host().observe().await?;
        let reached = self.reached();
        let ways = self.net.ways(&observed.addresses).await?;
        let (wanted, refused) = device_ifs(reached.into_iter(), &observed, &ways);
        self.device_if_conditions.extend(refused);
        let gone = device_if_gone(&wanted, &observed);
        self.apply_all(&gone).await?;
        gone.iter().for_each(|op| observed.apply(op));
        let mut failure: Option<Failure> = None;
        self.device_ifs.clear();
        for own in &wanted {
            match self.ensure_device_if(own, &mut observed).await {
                Ok((index, routes)) => {
                    self.device_ifs.insert(index);
                    let failed = add_routes(&mut self.host(), &routes).await;
                    self.device_if_conditions.extend(failed);
                }
                Err(e) => {
                    let e = e.about(format!("interface {} on {}", own.name, own.parent_name));
                    failure = Some(failure.map_or(e.clone(), |before| before.and(e)));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// The interfaces of containers that the device reaches.
    fn reached(&self) -> Vec<(&Attachment, &PoolLink)> {
        let works = |a: &&Attachment| {
            self.link_index(&a.host_if).is_some_and(|i| !self.held.contains_key(&i) && !self.closed.contains(&i))
        };
        let attachments = self.state.containers.values().flat_map(|record| &record.attachments).filter(works);
        let in_pool = |a: &Attachment| self.device.pools.get(&a.pool).is_some_and(is_bridged);
        attachments.filter(|a| in_pool(a)).filter_map(|a| Some((a, self.pools.get(&a.pool)?))).collect()
    }

    /// Makes the interface, or what is missing of it. One that cannot be completed is made again: while it was down, a
    /// container may have taken its MAC. Returns its index, and the steps that add its routes.
    async fn ensure_device_if(&mut self, own: &DeviceIf, observed: &mut Observed) -> Result<(u32, Vec<Op>), Failure> {
        if let Some(link) = own.link(observed).cloned() {
            match complete(&mut self.host(), own, &link, observed).await {
                Ok(routes) => return Ok((link.index, routes)),
                Err(e) => tracing::warn!(link = link.name, error = %e, "made again"),
            }
        }
        let op = Op::MakeDeviceIf(Box::new(own.clone()));
        self.host().apply(&op).await.map_err(|e| Failure::from(e).about(&op))?;
        *observed = self.host().observe().await?;
        self.guard_parents(observed);
        let vanished = || Failure::new(Kind::Internal, "gone while it was set up".to_owned());
        let link = own.link(observed).cloned().ok_or_else(vanished)?;
        let routes = complete(&mut self.host(), own, &link, observed).await?;
        Ok((link.index, routes))
    }
}

/// Carries out the steps that complete the interface; removes it when one fails. Returns the steps that add its routes.
async fn complete(
    kernel: &mut impl Kernel,
    own: &DeviceIf,
    link: &Link,
    observed: &mut Observed,
) -> Result<Vec<Op>, Failure> {
    let (ops, routes) = own.steps(link, observed);
    for op in &ops {
        tracing::debug!(%op, "apply");
        if let Err(e) = kernel.apply(op).await {
            let mut left = Vec::new();
            for op in own.removal(link) {
                if let Err(e) = kernel.apply(&op).await {
                    left.push(Failure::from(e).about(&op));
                }
            }
            return Err(Failure::from(e).about(op).not_restored(left));
        }
        observed.apply(op);
    }
    Ok(routes)
}

/// Adds routes. One that cannot be added is that container's matter: somebody else may have one to the same address.
/// Returns what failed.
async fn add_routes(kernel: &mut impl Kernel, ops: &[Op]) -> Vec<String> {
    let mut failed = Vec::new();
    for op in ops {
        tracing::debug!(%op, "apply");
        if let Err(e) = kernel.apply(op).await {
            failed.push(format!("the device does not reach a container: {}", Failure::from(e).about(op).line()));
        }
    }
    failed
}

/// Whether the device reaches the containers of the pool by an interface of its own.
fn is_bridged(pool: &Pool) -> bool {
    matches!(pool.macvlan(), Some((_, MacvlanMode::Bridge)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::Fake;
    use crate::plan::{Address, Ways, fixture};
    use std::collections::BTreeMap;

    /// A device with an interface on `wan0` that is made, but no more.
    async fn made() -> (Fake, DeviceIf, Link) {
        let mut holds = fixture::links(&[7], true);
        let mut parent = holds.links.remove("pv7").expect("there");
        (parent.name, parent.index, parent.kind, parent.alias) = ("wan0".to_owned(), 5, None, None);
        holds.links.insert("wan0".to_owned(), parent);
        holds.addresses = vec![Address::usual(5, "10.0.3.1/24".parse().expect("address"))];
        let pool =
            PoolLink { index: 5, mac: crate::model::Mac([2; 6]), mtu: 1400, id: 1, borrowed: true, on_parent: true };
        let attachments = [7, 8].map(fixture::attachment);
        let own = device_ifs(attachments.iter().map(|a| (a, &pool)), &holds, &Ways::default()).0.remove(0);
        let mut fake = Fake::new(holds);
        fake.apply(&Op::MakeDeviceIf(Box::new(own.clone()))).await.expect("made");
        let link = own.link(&fake.holds).expect("made").clone();
        (fake, own, link)
    }

    #[tokio::test]
    async fn after_a_step_that_fails_nothing_is_left_of_it() {
        let (fake, own, link) = made().await;
        let steps = own.steps(&link, &fake.holds).0.len();
        for refused in 0..steps {
            let mut fake = fake.clone();
            fake.refuse_after = Some(refused);
            let mut observed = fake.holds.clone();
            complete(&mut fake, &own, &link, &mut observed).await.expect_err("refused");
            assert!(own.link(&fake.holds).is_none() && fake.holds.hooked.is_empty(), "step {refused}");
            assert_eq!(fake.holds.interfaces, BTreeMap::new(), "step {refused}");
        }
    }

    #[tokio::test]
    async fn a_route_that_is_refused_costs_no_other() {
        let (mut fake, own, link) = made().await;
        let mut observed = fake.holds.clone();
        let routes = complete(&mut fake, &own, &link, &mut observed).await.expect("completed");
        fake.refuse.push(routes[0].to_string());
        let failed = add_routes(&mut fake, &routes).await;
        assert_eq!((failed.len(), fake.holds.host_routes.len()), (1, routes.len() - 1), "{failed:?}");
        assert!(failed[0].contains("10.0.3.7"), "{failed:?}");
    }
}
