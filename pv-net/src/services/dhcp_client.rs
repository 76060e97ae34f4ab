//! Keeps the leases that interfaces have of the network on their pool's parent: renews them, asks for what is missing, and
//! tells the controller what has changed. One task and one packet socket for each interface.

use crate::command::{Commands, Readdress};
use crate::dhcp_client::Client;
use crate::failure::Failure;
use crate::ipam::LeaseKey;
use crate::kernel::asking::{Wire, now, seed};
use crate::model::{Asker, Mac, PoolIpam, Terms};
use crate::services::panicked;
use crate::snapshot::Snapshot;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// The pause before an interface whose task has ended gets another one.
const AGAIN: Duration = Duration::from_secs(5);
/// What comes within this time is read together, so that a flood on the link does not keep the device busy.
const BREATH: Duration = Duration::from_millis(50);
/// The pause between two changes of an interface that can wait, so that who floods the link with advertisements does not keep
/// the controller and the disk busy. At most this part of the time that a lease has left: what was renewed must be on disk
/// before that is over.
const BETWEEN: Duration = Duration::from_secs(10);
const OF_THE_TIME_LEFT: u64 = 4;
/// What longer lifetimes are worth: a router says the same every few minutes, and each write costs the disk.
const WORTH_A_WRITE: u64 = 8;

/// An interface: its lease, its MAC, and the index of the parent.
type Kept = (LeaseKey, Mac, u32);

/// Keeps leases for as long as the daemon runs.
///
/// # Errors
/// When the task of an interface panics; what else fails is tried again.
pub async fn dhcp_client(mut snapshots: watch::Receiver<Arc<Snapshot>>, commands: Commands) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<Kept, AbortHandle> = BTreeMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let wanted = interfaces(&snapshot);
        running.retain(|kept, task| {
            let stays = wanted.contains_key(kept);
            if !stays {
                task.abort();
            }
            stays
        });
        for (kept, held) in wanted {
            running.entry(kept).or_insert_with_key(|kept| {
                tasks.spawn(keep_on(kept.clone(), held, commands.clone(), snapshots.clone()))
            });
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            Some(ended) = tasks.join_next() => if let Err(e) = ended && e.is_panic() {
                return Err(panicked("a lease of the network", &e));
            },
        }
    }
}

/// The interfaces that exist in pools whose addresses the network chooses, each with its present lease.
fn interfaces(snapshot: &Snapshot) -> BTreeMap<Kept, Held> {
    let mut all = BTreeMap::new();
    for (_, attached) in snapshot.attached() {
        for (attachment, _) in attached.attachments().filter(|(_, link)| link.is_some()) {
            let is_asking = |pool: &&crate::model::Pool| pool.ipam == PoolIpam::Dhcp;
            if snapshot.device.pools.get(&attachment.pool).filter(is_asking).is_none() {
                continue;
            }
            let link = snapshot.pools.get(&attachment.pool).and_then(|pool| pool.link.as_ref());
            let Some(parent) = link.filter(|link| link.on_parent) else { continue };
            let key = LeaseKey::of(attachment);
            let held = held(snapshot, &key);
            all.insert((key, attachment.mac, parent.index), held);
        }
    }
    all
}

/// What an interface has.
struct Held {
    /// Its lease.
    terms: Terms,
    /// Whether its addresses are those of the lease, which they are not when a change has failed, and nothing is said of a
    /// lack, which may be over by now.
    is_settled: bool,
}

fn held(snapshot: &Snapshot, key: &LeaseKey) -> Held {
    let at = snapshot.leases.binary_search_by(|lease| lease.key.cmp(key)).ok();
    let lease = at.and_then(|at| snapshot.leases.get(at));
    let terms = lease.and_then(|lease| lease.terms.as_deref().cloned()).unwrap_or_default();
    let container = snapshot.container(&key.container);
    let is_whole = container.as_ref().is_some_and(|container| container.conditions.is_empty());
    let attached = container.and_then(|container| container.attached());
    let mut attachments = attached.into_iter().flat_map(|attached| &attached.record.attachments);
    let has = attachments.find(|a| LeaseKey::of(a) == *key).and_then(|a| a.network.as_ref());
    let is_settled = is_whole && has == Some(&terms.network());
    Held { terms, is_settled }
}

/// Keeps an interface's lease; after a failure it begins again with what the interface has.
async fn keep_on(kept: Kept, mut now: Held, commands: Commands, snapshots: watch::Receiver<Arc<Snapshot>>) {
    loop {
        if let Err(e) = keep(&kept, now, &commands).await {
            tracing::warn!(container = %kept.0.container, interface = %kept.0.interface, error = %e, "lease not kept");
        }
        sleep(AGAIN).await;
        now = held(&snapshots.borrow().clone(), &kept.0);
    }
}

async fn keep((key, mac, link): &Kept, held: Held, commands: &Commands) -> io::Result<()> {
    let asker = Asker { mac: *mac, hostname: key.container.to_string() };
    let mut wire = Wire::open(*link, *mac, false)?;
    let mut client = Client::holding(&asker, &held.terms, now(), seed());
    let mut base = held.terms.clone();
    let mut told = held.is_settled.then_some((held.terms, None));
    let mut quiet_until = Instant::now();
    loop {
        let frames = client.wake(now());
        wire.listen(client.is_close())?;
        wire.send(&frames);
        let news = (client.terms(), client.wrong());
        let is_new = told.as_ref().is_none_or(|told| is_news(told, &news));
        let is_urgent = told.as_ref().is_none_or(|(told, _)| is_loss(told, &news.0));
        if is_new && (is_urgent || quiet_until <= Instant::now()) {
            let (terms, wrong) = news.clone();
            let new = Readdress { key: key.clone(), mac: *mac, terms, wrong, base };
            let snapshot = commands.readdress(new).await.map_err(|failure| io::Error::other(failure.line()))?;
            base = self::held(&snapshot, key).terms;
            if !is_urgent {
                quiet_until = Instant::now() + pause(&news.0, now().unix);
            }
            told = Some(news);
            continue;
        }
        let next = [client.next().map(Instant::from), is_new.then_some(quiet_until)].into_iter().flatten().min();
        tokio::select! {
            frames = wire.hear() => {
                for frame in frames? {
                    let frames = client.hear(&frame, now());
                    // Before the question, so that no answer is missed.
                    wire.listen(client.is_close())?;
                    wire.send(&frames);
                }
                sleep(BREATH).await;
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// Whether an interface has no address any more of a family of which it `had` one. That cannot wait.
const fn is_loss(had: &Terms, has: &Terms) -> bool {
    had.v4.is_some() && has.v4.is_none() || had.v6.is_some() && has.v6.is_none()
}

/// How long the next change that is no loss has to wait, at the time `unix`.
fn pause(has: &Terms, unix: u64) -> Duration {
    let left = has.expires().map(|end| Duration::from_secs(end.saturating_sub(unix) / OF_THE_TIME_LEFT));
    left.map_or(BETWEEN, |left| left.clamp(Duration::from_secs(1), BETWEEN))
}

/// Whether the controller must know: something else than times has changed, a lease was renewed, or an address lasts so
/// much longer that this must not be forgotten.
fn is_news((had, said): &(Terms, Option<String>), (has, says): &(Terms, Option<String>)) -> bool {
    let lasts_longer = |had: u64, has: u64| {
        let left = had.saturating_sub(now().unix);
        has < had || has.saturating_sub(had) > left / WORTH_A_WRITE
    };
    let other6 = match (&had.v6, &has.v6) {
        (Some(had), Some(has)) => {
            lasts_longer(had.expires, has.expires) || lasts_longer(had.routes_until, has.routes_until)
        }
        _ => false,
    };
    said != says || had.network() != has.network() || had.v4 != has.v4 || other6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Given, Terms4};

    fn lease(address: u8, expires: u64) -> Terms {
        let given = Given::bare([192, 0, 2, address].into(), 24, None);
        let server = [192, 0, 2, 1].into();
        let v4 = Terms4 { given, server, server_mac: Mac([2; 6]), renew: expires, rebind: expires, expires };
        Terms { v4: Some(v4), v6: None }
    }

    #[test]
    fn only_a_loss_does_not_wait() {
        let none = Terms::default();
        for (had, has, want) in [
            (&lease(2, 100), &none, true),
            (&lease(2, 100), &lease(2, 200), false),
            (&none, &lease(2, 100), false),
            (&none, &none, false),
        ] {
            assert_eq!(is_loss(had, has), want, "{had:?} {has:?}");
        }
        for (has, want) in
            [(none, 10), (lease(2, 1003), 1), (lease(2, 1020), 5), (lease(2, 9000), 10), (lease(2, 1), 1)]
        {
            assert_eq!(pause(&has, 1000).as_secs(), want, "{has:?}");
        }
    }
}
