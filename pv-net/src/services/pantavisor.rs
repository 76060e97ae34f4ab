//! Tells Pantavisor when the network of its running revision is ready, and follows it to the next revision.
//!
//! Ready means that the configuration is in force as a whole. Until then nothing is signalled, so that Pantavisor goes back
//! to the revision before. The containers that are attached keep their guard meanwhile.

use crate::command::Commands;
use crate::failure::Failure;
use crate::pantavisor::{Control, ControlError, Revision};
use crate::snapshot::Snapshot;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Time between two looks while Pantavisor waits for the signal.
const EAGER: Duration = Duration::from_secs(1);
/// That time afterwards: an update that needs no restart of this container is noticed by it.
const CALM: Duration = Duration::from_secs(5);
/// Refusals after which Pantavisor is taken not to wait. It also refuses a container that it is just starting.
const MOST_REFUSALS: u32 = 30;

/// How the daemon ends because of a revision that it cannot carry out.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// Why, as soon as there is such a revision.
    pub why: Arc<OnceLock<Failure>>,
    /// Ends the daemon.
    pub stop: CancellationToken,
}

/// What the service works with.
#[derive(Clone)]
pub struct Pantavisor {
    /// The link to the running revision, and the control socket.
    pub revision: Revision,
    /// The name of the revision that the daemon has read at its start, if that had one.
    pub read: Option<String>,
    /// The device's state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// For reloads.
    pub commands: Commands,
    /// For a revision that cannot be carried out.
    pub rejection: Rejection,
}

/// Signals that the revision is ready as soon as the snapshots say so, and reloads the configuration when another revision
/// runs.
///
/// # Errors
/// None: it runs until it is dropped, or has ended the daemon.
pub async fn pantavisor(with: Pantavisor) -> Result<(), Failure> {
    let Pantavisor { revision, read, snapshots, commands, rejection } = with;
    let control = revision.control();
    let read = read.unwrap_or_default();
    let mut herald = Herald { control, snapshots, revision: read, is_told: false, refusals: 0, said: String::new() };
    loop {
        if let Some(now) = revision.name().filter(|now| *now != herald.revision) {
            match commands.reload().await {
                Ok(_) => herald.follow(now),
                // The daemon is stopped anyway.
                Err(_) if rejection.stop.is_cancelled() => return Ok(()),
                // Between two revisions there is none.
                Err(_) if revision.name().as_ref() != Some(&now) => {}
                // A container that has signalled cannot take that back, but its end can be seen.
                Err(failure) => {
                    tracing::error!(revision = %now, error = %failure, "revision not carried out");
                    let _ = rejection.why.set(failure);
                    rejection.stop.cancel();
                    return Ok(());
                }
            }
        }
        herald.tell().await;
        sleep(if herald.is_told { CALM } else { EAGER }).await;
    }
}

/// What Pantavisor has been told.
struct Herald {
    control: Control,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The revision whose configuration is in use.
    revision: String,
    /// Pantavisor has been told that it is ready.
    is_told: bool,
    /// How often it has refused that.
    refusals: u32,
    /// What was logged last, so that nothing is logged every second.
    said: String,
}

impl Herald {
    fn follow(&mut self, revision: String) {
        tracing::info!(%revision, "revision reloaded");
        self.revision = revision;
        (self.is_told, self.refusals) = (false, 0);
    }

    async fn tell(&mut self) {
        if self.is_told {
            return;
        }
        let unmet = self.snapshots.borrow().unmet.clone();
        if !unmet.is_empty() {
            let why = unmet.join("; ");
            if self.is_new(&why) {
                tracing::error!(revision = %self.revision, error = %why, "not ready");
                note(self.control.report(&self.revision, &why).await);
            }
            return;
        }
        match self.control.ready().await {
            Ok(()) => {
                tracing::info!(revision = %self.revision, "Pantavisor is told that the network is ready");
                self.is_told = true;
                note(self.control.forget(&self.revision).await);
            }
            Err(e) => {
                if self.is_new(&e.to_string()) {
                    tracing::warn!(error = %e, "Pantavisor not told that the network is ready: it is tried again");
                }
                self.refusals += u32::from(matches!(e, ControlError::Refused { .. }));
                if self.refusals == MOST_REFUSALS {
                    tracing::warn!("Pantavisor does not wait for the network: the container has another status goal");
                    self.is_told = true;
                }
            }
        }
    }

    /// Whether this was not the last thing that was said.
    fn is_new(&mut self, text: &str) -> bool {
        let is_new = self.said != text;
        text.clone_into(&mut self.said);
        is_new
    }
}

/// Notes a failure to write the device's metadata, which takes the role `mgmt`: the log has the reason too.
fn note(done: Result<(), ControlError>) {
    if let Err(e) = done {
        tracing::warn!(error = %e, "the device's metadata do not say why a network is not ready");
    }
}
