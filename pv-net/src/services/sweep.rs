//! When the flow tables are swept. A sweep takes as long as they are full, so it has a thread that nobody waits for.

use crate::failure::{Failure, Kind};
use crate::kernel::bpf::{Sweeper, Swept, next_sweep};
use crate::kernel::challenge_ack;
use crate::model::FlowTimeouts;
use crate::snapshot::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// The first sweep measures the kernel's tick rate: whoever asks the daemon at once does not wait for it.
const FIRST: Duration = Duration::from_secs(1);

/// Sweeps whenever something can be over, from the time that the data plane is there.
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
        let (back, next) = spawn_blocking(move || once(sweeper, &timeouts)).await.map_err(|e| panicked(&e))?;
        sweeper = back;
        let changed = snapshots.wait_for(|s| s.device.flow_timeouts != timeouts);
        tokio::select! {
            () = sleep(next) => {}
            changed = changed => if changed.is_err() { return Ok(()) },
        }
    }
}

fn panicked(e: &tokio::task::JoinError) -> Failure {
    Failure::new(Kind::Internal, format!("the flow tables' sweep: {e}"))
}

fn once(mut sweeper: Sweeper, timeouts: &FlowTimeouts) -> (Sweeper, Duration) {
    let start = Instant::now();
    let next = match sweeper.sweep(timeouts) {
        Ok(Swept { removed, read, next, doubtful }) => {
            // Who has ended the connection answers with a reset, and who has not with a segment of it.
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
