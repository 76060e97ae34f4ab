//! Decides when the flow tables are swept. The time of a sweep grows with the number of flows, so it runs on a thread
//! that may block.

use crate::failure::Failure;
use crate::kernel::bpf::{Sweeper, Swept, next_sweep};
use crate::kernel::challenge_ack;
use crate::model::FlowTimeouts;
use crate::snapshot::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// The first sweep measures the kernel's tick rate, so it waits a little for the start's first requests.
const FIRST: Duration = Duration::from_secs(1);

/// Sweeps whenever a flow may have expired, as soon as the data plane is loaded.
///
/// # Errors
/// When the tables cannot be opened.
pub async fn sweep(mut snapshots: watch::Receiver<Arc<Snapshot>>) -> Result<(), Failure> {
    let plane = match snapshots.wait_for(|s| s.plane.is_some()).await {
        Ok(snapshot) => snapshot.plane.clone(),
        // The controller has ended.
        Err(_) => return Ok(()),
    };
    let Some(plane) = plane else { return Ok(()) };
    let mut sweeper = plane.sweeping.sweeper()?;
    sleep(FIRST).await;
    loop {
        let timeouts = snapshots.borrow_and_update().device.flow_timeouts;
        let (back, next) = spawn_blocking(move || once(sweeper, &timeouts))
            .await
            .map_err(|e| super::panicked("the flow tables' sweep", &e))?;
        sweeper = back;
        let changed = snapshots.wait_for(|s| s.device.flow_timeouts != timeouts);
        tokio::select! {
            () = sleep(next) => {}
            changed = changed => if changed.is_err() { return Ok(()) },
        }
    }
}

fn once(mut sweeper: Sweeper, timeouts: &FlowTimeouts) -> (Sweeper, Duration) {
    let start = Instant::now();
    let next = match sweeper.sweep(timeouts) {
        Ok(Swept { removed, read, next, doubtful }) => {
            // A container that has ended the connection answers with a reset, one that has not with a segment of the
            // connection.
            if let Err(e) = challenge_ack::provoke(&doubtful) {
                tracing::warn!(error = %e, "containers not asked about connections with a reset");
            }
            tracing::debug!(removed, read, ?next, took = ?start.elapsed(), "flow table swept");
            next
        }
        Err(e) => {
            tracing::warn!(error = %e, "flow table not cleaned");
            next_sweep(None, timeouts)
        }
    };
    (sweeper, next)
}
