//! Gives memory back after the device has changed: for each snapshot tables of names are made anew, and glibc keeps what
//! the former ones took.

use crate::failure::Failure;
use crate::memory;
use crate::snapshot::Snapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Changes within this time are followed by one walk over the heaps. It takes about a millisecond, in which other threads
/// wait for memory.
const AFTER: Duration = Duration::from_secs(5);

/// Gives memory back some seconds after a change. Nothing is done while nothing changes.
///
/// # Errors
/// When it panics.
pub async fn memory(mut snapshots: watch::Receiver<Arc<Snapshot>>) -> Result<(), Failure> {
    while snapshots.changed().await.is_ok() {
        sleep(AFTER).await;
        snapshots.mark_unchanged();
        spawn_blocking(memory::give_back).await.map_err(|e| super::panicked("giving memory back", &e))?;
    }
    Ok(())
}
