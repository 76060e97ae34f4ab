//! Answers DHCPv6 on the bridges of pools that ask for it.

mod duid;
mod pool;
mod sockets;

use crate::command::{Commands, Report};
use crate::dhcp6::Metrics;
use crate::failure::Failure;
use crate::lease::LeaseHandle;
use crate::services::link_local::Lost;
use crate::services::places::{self, AGAIN, Place, Tries};
use crate::snapshot::Snapshot;
use pool::PoolServer;
use sockets::Sockets;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// The name of the condition about ranges that are full.
const EXHAUSTED: &str = "leases6";

/// What the service works with.
pub struct Dhcp6 {
    /// Snapshots of the device.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// For conditions.
    pub commands: Commands,
    /// The lease book.
    pub leases: LeaseHandle,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The file of the server's identity.
    pub duid: PathBuf,
}

/// Answers for as long as the daemon runs.
///
/// # Errors
/// None: failures are reported as a condition, and tried again.
pub async fn dhcp6(with: Dhcp6) -> Result<(), Failure> {
    let Dhcp6 { mut snapshots, commands, leases, metrics, duid } = with;
    let mut tries = Tries::new("dhcpv6", "dhcpv6", commands.clone()).await;
    let changed = Arc::new(Notify::new());
    let mut servers = Servers {
        served: BTreeMap::new(),
        duid: None,
        leases,
        metrics,
        snapshots: snapshots.clone(),
        changed: changed.clone(),
    };
    // One that ran before may have said something.
    commands.report(Report::Service { name: EXHAUSTED, condition: None }).await;
    let mut told = None;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let again = tries.note(&servers.follow(&snapshot, &duid).await).await;
        let exhausted = servers.exhausted();
        if exhausted != told {
            commands.report(Report::Service { name: EXHAUSTED, condition: exhausted.clone() }).await;
            told = exhausted;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            () = changed.notified() => {}
            why = places::lost(&mut servers.served, |served| &mut served.task) => {
                tracing::debug!(why, "answers no DHCPv6 any more");
                sleep(AGAIN).await;
            }
            () = sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

/// A pool that is served.
struct Served {
    range: Option<(Ipv6Addr, Ipv6Addr)>,
    is_exhausted: Arc<AtomicBool>,
    task: JoinSet<io::Result<()>>,
}

/// The servers of all pools that have one.
struct Servers {
    served: BTreeMap<Place, Served>,
    /// The DUID of all of them; `None` as long as no pool has a server.
    duid: Option<Arc<[u8]>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    leases: LeaseHandle,
    metrics: Arc<Metrics>,
    changed: Arc<Notify>,
}

impl Servers {
    /// Starts and ends servers as `snapshot` says. Returns an entry for each bridge that has no sockets, with the
    /// reason, if it is an error.
    async fn follow(&mut self, snapshot: &Snapshot, duid: &Path) -> Vec<Option<String>> {
        let place = |pool: &crate::model::Pool| {
            pool.dhcp6.as_ref()?;
            Some((pool.name.clone(), snapshot.pools.get(&pool.name)?.link.as_ref()?.index))
        };
        let wanted: Vec<Place> = snapshot.device.pools.values().filter_map(place).collect();
        self.served.retain(|place, _| wanted.contains(place));
        for ((pool, _), served) in &mut self.served {
            let dhcp6 = snapshot.device.pools.get(pool).and_then(|pool| pool.dhcp6.as_ref());
            let range = dhcp6.and_then(|dhcp6| dhcp6.range);
            if served.range != range {
                served.range = range;
                served.is_exhausted.store(false, Ordering::Relaxed);
            }
        }
        let missing: Vec<Place> = wanted.into_iter().filter(|place| !self.served.contains_key(place)).collect();
        if missing.is_empty() {
            return Vec::new();
        }
        let identity = match self.identity(duid).await {
            Ok(identity) => identity,
            Err(e) => return vec![Some(format!("{}: {e}", duid.display()))],
        };
        let mut lost = Vec::new();
        for place in missing {
            match Sockets::open(place.1) {
                Ok(sockets) => {
                    tracing::debug!(pool = %place.0, "answers DHCPv6");
                    let is_exhausted = Arc::new(AtomicBool::new(false));
                    let range = snapshot.device.pools.get(&place.0).and_then(|pool| pool.dhcp6.as_ref()?.range);
                    let server = PoolServer {
                        duid: identity.clone(),
                        pool: place.0.clone(),
                        link: place.1,
                        snapshots: self.snapshots.clone(),
                        leases: self.leases.clone(),
                        metrics: self.metrics.clone(),
                        is_exhausted: is_exhausted.clone(),
                        changed: self.changed.clone(),
                    };
                    let mut task = JoinSet::new();
                    task.spawn(server.serve(sockets));
                    self.served.insert(place, Served { range, is_exhausted, task });
                }
                Err(Lost::Alone) => lost.push(None),
                Err(Lost::Failed(e)) => lost.push(Some(format!("port 547 of pool {}: {e}", place.0))),
            }
        }
        lost
    }

    /// What is said of pools whose range is full, if there are any.
    fn exhausted(&self) -> Option<String> {
        let full = self.served.iter().filter(|(_, served)| served.is_exhausted.load(Ordering::Relaxed));
        let said: Vec<String> =
            full.map(|((pool, _), _)| format!("pool {pool}: all addresses of its DHCPv6 range are in use")).collect();
        (!said.is_empty()).then(|| format!("dhcpv6: {}", said.join("; ")))
    }

    async fn identity(&mut self, path: &Path) -> io::Result<Arc<[u8]>> {
        if let Some(duid) = &self.duid {
            return Ok(duid.clone());
        }
        let path = path.to_owned();
        let duid: Arc<[u8]> = spawn_blocking(move || duid::load(&path)).await.map_err(io::Error::other)??.into();
        self.duid = Some(duid.clone());
        Ok(duid)
    }
}
