//! Tells Pantavisor when the network of its running revision is ready, and follows it to the next revision.
//!
//! Ready means that the configuration is in force as a whole. Until then nothing is signalled, so that Pantavisor goes back
//! to the revision before. The containers that are attached keep their guard meanwhile.

use crate::command::Commands;
use crate::failure::Failure;
use crate::pantavisor::{Control, ControlError, Revision};
use crate::snapshot::Snapshot;
use hyper::StatusCode;
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Time between two looks while Pantavisor waits for the signal.
const EAGER: Duration = Duration::from_secs(1);
/// That time afterwards: an update that needs no restart of this container is noticed by it.
const CALM: Duration = Duration::from_secs(5);
/// Refusals after which Pantavisor is taken not to wait, and asked only now and then. It also refuses a container that
/// it is just starting.
const MOST_REFUSALS: u32 = 30;

/// The end of the daemon because of a revision that it cannot carry out.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// Its name and why, as soon as there is one.
    pub why: Arc<OnceLock<(String, Failure)>>,
    /// Ends the daemon.
    pub stop: CancellationToken,
}

/// What the service works with.
#[derive(Clone)]
pub struct Pantavisor {
    /// The link to the running revision, and the control socket.
    pub revision: Revision,
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
/// None: it runs until it is dropped.
pub async fn pantavisor(with: Pantavisor) -> Result<(), Failure> {
    let Pantavisor { revision, snapshots, commands, rejection } = with;
    let mut herald = Herald {
        control: revision.control(),
        snapshots,
        revision: String::new(),
        is_told: false,
        refusals: 0,
        said: String::new(),
        noted: BTreeMap::new(),
        not_noted: String::new(),
    };
    loop {
        // An attach may have put a revision in force that ended before this service saw it.
        herald.follow();
        if let Some(now) = revision.name().filter(|now| *now != herald.revision) {
            match commands.reload().await {
                Ok(_) => herald.follow(),
                // The daemon is stopped anyway.
                Err(_) if rejection.stop.is_cancelled() => return pending().await,
                // Between two revisions there is none.
                Err(_) if revision.name().as_ref() != Some(&now) => {}
                // A container that has signalled cannot take that back, but its end can be seen.
                Err(failure) => {
                    tracing::error!(revision = %now, error = %failure, "revision not carried out");
                    // Nobody else sets it.
                    let _ = rejection.why.set((now, failure));
                    rejection.stop.cancel();
                    // This service is dropped with the others.
                    return pending().await;
                }
            }
        }
        herald.tell().await;
        sleep(if herald.is_waited_for() { EAGER } else { CALM }).await;
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
    /// What was noted last in the device's metadata about each revision.
    noted: BTreeMap<String, String>,
    /// Why something could not be noted, as it was logged last.
    not_noted: String,
}

impl Herald {
    /// Looks which revision is in use.
    fn follow(&mut self) {
        let in_use = self.snapshots.borrow().of_revision.clone().unwrap_or_default();
        if *in_use != *self.revision {
            tracing::info!(revision = %in_use, "revision in use");
            self.revision = in_use.to_string();
            (self.is_told, self.refusals) = (false, 0);
        }
    }

    /// Whether Pantavisor probably waits for the signal.
    fn is_waited_for(&self) -> bool {
        !self.is_told && self.refusals < MOST_REFUSALS
    }

    async fn tell(&mut self) {
        let not_followed = self.snapshots.borrow().not_followed.clone();
        if let Some(not_followed) = not_followed {
            let (revision, why) = &*not_followed;
            self.note(revision, why).await;
        }
        if self.is_told {
            return;
        }
        let unmet = self.snapshots.borrow().unmet.clone();
        if !unmet.is_empty() {
            let (revision, why) = (self.revision.clone(), unmet.join("; "));
            if is_new(&mut self.said, &why) {
                tracing::error!(%revision, error = %why, "not ready");
            }
            self.note(&revision, &why).await;
            return;
        }
        match self.control.ready().await {
            Ok(()) => {
                tracing::info!(revision = %self.revision, "Pantavisor is told that the network is ready");
                self.is_told = true;
                self.forget().await;
            }
            Err(e) => {
                if is_new(&mut self.said, &e.to_string()) {
                    tracing::warn!(error = %e, "Pantavisor not told that the network is ready: it is tried again");
                }
                self.refusals = self.refusals.saturating_add(u32::from(matches!(e, ControlError::Refused { .. })));
                if self.refusals == MOST_REFUSALS {
                    let every = CALM.as_secs();
                    tracing::warn!(
                        "Pantavisor does not wait for the network: the container has another status goal; told again every {every} s"
                    );
                }
            }
        }
    }

    /// Notes in the device's metadata what is wrong in a revision, until it is noted. That takes the role `mgmt`; the
    /// log has the reason too.
    async fn note(&mut self, revision: &str, why: &str) {
        if self.noted.get(revision).is_some_and(|noted| noted == why) {
            return;
        }
        match self.control.report(revision, why).await {
            Ok(()) => drop(self.noted.insert(revision.to_owned(), why.to_owned())),
            Err(e) if is_new(&mut self.not_noted, &e.to_string()) => {
                tracing::warn!(error = %e, "the device's metadata do not say why a network is not ready");
            }
            Err(_) => {}
        }
    }

    /// Removes from the device's metadata what is said about the revision in use. Without the role `mgmt` nothing was
    /// noted, so that a refusal means nothing.
    async fn forget(&mut self) {
        self.noted.remove(&self.revision);
        match self.control.forget(&self.revision).await {
            Ok(()) | Err(ControlError::Refused { status: StatusCode::FORBIDDEN, .. }) => {}
            Err(e) => tracing::warn!(error = %e, "the device's metadata may still say why the network was not ready"),
        }
    }
}

/// Whether the text is another one than the last, which it becomes.
fn is_new(last: &mut String, text: &str) -> bool {
    let is_new = last != text;
    text.clone_into(last);
    is_new
}
