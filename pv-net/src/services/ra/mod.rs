//! Advertises the device as a router on the bridges of pools that ask for it.

mod bridge;
mod socket;

use crate::command::Commands;
use crate::failure::Failure;
use crate::ra::{Advert, Metrics};
use crate::services::link_local::Lost;
use crate::services::places::{self, AGAIN, Place, Tries};
use crate::snapshot::Snapshot;
use bridge::{Said, advertise};
use socket::Socket;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a last advertisement may take.
const LAST: Duration = Duration::from_millis(500);

/// Advertises until `stop`. The last advertisement then tells hosts that the device is no default router any more; they
/// learn of the next daemon by its first advertisement.
///
/// # Errors
/// None: failures are reported as a condition, and tried again.
pub async fn ra(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut bridges = Bridges { metrics, served: BTreeMap::new() };
    let mut tries = Tries::new("advertisements", "router advertisements", commands).await;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let again = tries.note(&bridges.follow(&snapshot)).await;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = snapshots.changed() => if changed.is_err() { break },
            why = places::lost(&mut bridges.served, |served| &mut served.task) => {
                tracing::debug!(why, "advertises no more");
                sleep(AGAIN).await;
            }
            () = sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
    bridges.end().await;
    Ok(())
}

/// The bridges that are advertised on.
struct Bridges {
    metrics: Arc<Metrics>,
    served: BTreeMap<Place, Served>,
}

struct Served {
    say: watch::Sender<Said>,
    task: JoinSet<io::Result<()>>,
}

impl Bridges {
    /// Starts, changes and ends advertising as `snapshot` says. Returns an entry for each bridge that has no socket,
    /// with the reason, if it is an error.
    fn follow(&mut self, snapshot: &Snapshot) -> Vec<Option<String>> {
        let each = |pool: &crate::model::Pool| {
            let link = snapshot.pools.get(&pool.name)?.link.as_ref()?.index;
            Some(((pool.name.clone(), link), Advert::of(snapshot, pool)?))
        };
        let mut wanted: BTreeMap<Place, Advert> = snapshot.device.pools.values().filter_map(each).collect();
        self.served.retain(|place, served| {
            let goes_on = wanted.remove(place).map(Said::Now);
            let stays = goes_on.is_some();
            // A bridge that is not wanted any more gets a last advertisement; its task then ends by itself.
            served.say.send_if_modified(|said| {
                let next = goes_on.unwrap_or_else(|| Said::Last(said.advert().clone().withdrawn()));
                let is_other = *said != next;
                *said = next;
                is_other
            });
            if !stays {
                served.task.detach_all();
            }
            stays
        });
        let mut lost = Vec::new();
        for (place, advert) in wanted {
            match Socket::open(place.1) {
                Ok(socket) => {
                    tracing::debug!(pool = %place.0, "advertises the device as a router");
                    let (say, said) = watch::channel(Said::Now(advert));
                    let mut task = JoinSet::new();
                    task.spawn(advertise(socket, said, self.metrics.clone()));
                    self.served.insert(place, Served { say, task });
                }
                Err(Lost::Alone) => lost.push(None),
                Err(Lost::Failed(e)) => lost.push(Some(format!("pool {}: {e}", place.0))),
            }
        }
        lost
    }

    /// Sends the last advertisement on all bridges.
    async fn end(&mut self) {
        for served in self.served.values() {
            served.say.send_modify(|said| *said = Said::Last(said.advert().clone().last()));
        }
        let all = async {
            for served in self.served.values_mut() {
                while served.task.join_next().await.is_some() {}
            }
        };
        if timeout(LAST, all).await.is_err() {
            tracing::debug!("a last advertisement was not sent in time");
        }
    }
}
