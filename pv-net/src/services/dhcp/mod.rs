//! DHCPv4 on the bridges of pools that ask for it. Each has a task and sockets of its own.

mod pool;
mod sockets;

use crate::command::{Commands, Report};
use crate::dhcp::{Config, Metrics, is_outside, stale};
use crate::events::Bus;
use crate::failure::Failure;
use crate::lease::{LeaseHandle, unix_time};
use crate::model::PoolName;
use crate::services::places::{self, AGAIN};
use crate::snapshot::Snapshot;
use pool::PoolServer;
use sockets::Sockets;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// So often it is tried before anybody is told: a bridge may just be going.
const QUIET: u32 = 4;
/// How often leases outside all ranges are looked at, of which some are not over yet.
const STALE: Duration = Duration::from_secs(60);
/// The longest pause between two tries, in the first of them.
const LONGEST: u32 = 20;

/// What all pools' servers have.
pub(super) struct Shared {
    pub leases: LeaseHandle,
    pub metrics: Arc<Metrics>,
    pub bus: Bus,
    /// A range is full, or is so no more.
    pub changed: Notify,
}

/// A pool that is served.
struct Served {
    link: u32,
    configs: watch::Sender<Config>,
    is_exhausted: Arc<AtomicBool>,
    task: JoinSet<()>,
}

/// Follows the snapshots: their pools, bridges and containers.
///
/// # Errors
/// None: what cannot be had is a condition, and tried again.
pub async fn dhcp(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    leases: LeaseHandle,
    metrics: Arc<Metrics>,
    bus: Bus,
) -> Result<(), Failure> {
    let shared = Arc::new(Shared { leases, metrics, bus, changed: Notify::new() });
    let mut served: BTreeMap<PoolName, Served> = BTreeMap::new();
    // One that ran before may have said something.
    commands.report(Report::Service { name: "leases", condition: None }).await;
    let (mut before, mut told, mut tries): (Option<Arc<Snapshot>>, _, u32) = (None, None, 0);
    let mut ends_later = false;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if ends_later || before.as_ref().is_none_or(|before| !Arc::ptr_eq(&before.device, &snapshot.device)) {
            ends_later = end_stale(&shared, &snapshot).await;
        }
        let mut lost = Vec::new();
        if tries > 0 || before.as_ref().is_none_or(|before| is_other(before, &snapshot)) {
            lost = follow(&shared, &mut served, Config::all(&snapshot));
        }
        tries = if lost.is_empty() { 0 } else { tries.saturating_add(1) };
        before = Some(snapshot);
        let exhausted = served.iter().filter(|(_, served)| served.is_exhausted.load(Ordering::Relaxed));
        let exhausted = exhausted.map(|(pool, _)| format!("pool {pool}: all addresses of its DHCP range are in use"));
        let wrong: Vec<String> = lost.into_iter().filter(|_| tries > QUIET).chain(exhausted).collect();
        let condition = (!wrong.is_empty()).then(|| format!("dhcp: {}", wrong.join("; ")));
        if condition != told {
            commands.report(Report::Service { name: "leases", condition: condition.clone() }).await;
            told = condition;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            () = shared.changed.notified() => {}
            // A server that ended is made anew, after a moment: its bridge may be going.
            _ = places::ended(&mut served, |served| &mut served.task) => {
                (before, tries) = (None, tries.max(1));
                sleep(AGAIN).await;
            }
            () = sleep(AGAIN * tries.min(LONGEST)), if tries > 0 => {}
            () = sleep(STALE), if ends_later => {}
        }
    }
}

fn is_other(before: &Snapshot, now: &Snapshot) -> bool {
    !Arc::ptr_eq(&before.device, &now.device)
        || !Arc::ptr_eq(&before.pools, &now.pools)
        || !Arc::ptr_eq(&before.containers, &now.containers)
}

/// Serves these pools and no others. What could not be had, and why.
fn follow(shared: &Arc<Shared>, served: &mut BTreeMap<PoolName, Served>, configs: Vec<Config>) -> Vec<String> {
    // What is not wanted closes its sockets: before others take their places.
    served.retain(|pool, served| configs.iter().any(|config| config.pool == *pool && config.link == served.link));
    let mut lost = Vec::new();
    for config in configs {
        if let Some(served) = served.get(&config.pool) {
            served.configs.send_if_modified(|before| {
                let is_other = *before != config;
                before.clone_from(&config);
                is_other
            });
            continue;
        }
        let pool = config.pool.clone();
        match serve(shared, config) {
            Ok(new) => {
                tracing::debug!(%pool, "answers clients of DHCP");
                served.insert(pool, new);
            }
            Err(e) => lost.push(format!("port 67 of pool {pool}: {e}")),
        }
    }
    lost
}

fn serve(shared: &Arc<Shared>, config: Config) -> io::Result<Served> {
    let (link, sockets) = (config.link, Sockets::open(config.link)?);
    let is_exhausted = Arc::new(AtomicBool::new(false));
    let server = PoolServer::new(shared.clone(), config.clone(), sockets, is_exhausted.clone())?;
    let (configs, follow) = watch::channel(config);
    let mut task = JoinSet::new();
    task.spawn(server.run(follow));
    Ok(Served { link, configs, is_exhausted, task })
}

/// Ends the leases that are over and that no pool has room for any more, since the configuration has changed. Returns
/// whether there are others of that kind which are not over yet.
async fn end_stale(shared: &Shared, snapshot: &Snapshot) -> bool {
    let clients = shared.leases.clients().all();
    let now = unix_time();
    if let Err(e) = shared.leases.change(stale(&snapshot.device, &clients, now)).await {
        tracing::warn!(error = %e, "DHCP: leases that no pool has any more are kept");
    }
    clients.iter().any(|lease| !lease.is_over(now) && is_outside(&snapshot.device, lease))
}
