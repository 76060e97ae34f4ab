//! Commands, the kernel's changes and the clock, one after the other.

use super::Core;
use crate::command::{Answer, Command, Queue, Report};
use crate::events::{Bus, EventView, changes};
use crate::failure::Failure;
use crate::kernel::netlink::NetEvent;
use crate::snapshot::{Snapshot, share};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Changes are acted on at once, but a storm of them takes no more than this part of the controller's time: what comes in
/// the rest is acted on together.
const STORM_SHARE: u32 = 4;
/// The longest that a change waits for that.
const MAX_CALM: Duration = Duration::from_millis(200);

/// Whoever asks a daemon that has just started does not wait for the first look at the firewall and the sockets.
pub(super) const FIRST_AUDIT: Duration = Duration::from_secs(1);
/// How often it is looked at what nobody tells of.
pub(super) const AUDIT: Duration = Duration::from_secs(30);

/// Owns the state for as long as the daemon runs.
pub(crate) struct Controller<C> {
    core: C,
    queue: Queue,
    kernel: mpsc::UnboundedReceiver<NetEvent>,
    stop: CancellationToken,
    snapshots: watch::Sender<Arc<Snapshot>>,
    bus: Bus,
    /// By service, what is wrong with it.
    services: BTreeMap<&'static str, String>,
}

impl<C: Core> Controller<C> {
    /// The controller of `core`, and where its snapshots are: the first one already. It is asked by `queue`, told of
    /// changes by `kernel`, and ends with `stop`.
    pub(crate) fn new(
        mut core: C,
        queue: Queue,
        kernel: mpsc::UnboundedReceiver<NetEvent>,
        bus: Bus,
        stop: CancellationToken,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let first = Snapshot { revision: 1, ..core.snapshot(&Snapshot::default()) };
        let (snapshots, receiver) = watch::channel(Arc::new(first));
        (Self { core, queue, kernel, stop, snapshots, bus, services: BTreeMap::new() }, receiver)
    }

    /// Runs until it is to stop, after what it is at, or until `down`.
    ///
    /// # Errors
    /// All that `down` could not remove.
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut audit = Instant::now() + FIRST_AUDIT;
        let mut calm = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    tracing::info!("stopping; the data plane goes on");
                    return Ok(());
                }
                () = sleep_until(audit) => {
                    self.core.audit().await;
                    audit = Instant::now() + AUDIT;
                }
                Some(event) = after(calm, &mut self.kernel) => {
                    let begun = Instant::now();
                    self.core.on_event(&event).await;
                    // What came together is handled together.
                    while let Ok(event) = self.kernel.try_recv() {
                        self.core.on_event(&event).await;
                    }
                    self.core.settle().await;
                    calm = Instant::now() + (begun.elapsed() * STORM_SHARE).min(MAX_CALM);
                }
                Some(command) = self.queue.recv() => {
                    if let Some(result) = self.carry_out(command).await {
                        return result;
                    }
                }
            }
            self.publish();
        }
    }

    /// Does what `command` says; how `down` ended, after which there is nothing more to do.
    async fn carry_out(&mut self, command: Command) -> Option<Result<(), Failure>> {
        match command {
            Command::Attach { name, request, prepared, answer } => {
                let result = self.core.attach(&name, request, prepared).await;
                self.answer(answer, result);
            }
            Command::Detach { name, answer } => {
                let result = self.core.detach(&name).await;
                self.answer(answer, result);
            }
            Command::Reload { answer } => {
                let result = self.core.reload().await;
                self.answer(answer, result);
            }
            Command::Report(Report::PortTaken { proto, port }) => self.core.port_is_taken(proto, port),
            Command::Report(Report::Service { name, condition: Some(condition) }) => {
                self.services.insert(name, condition);
            }
            Command::Report(Report::Service { name, condition: None }) => {
                self.services.remove(name);
            }
            Command::Down { answer } => {
                let result = self.core.teardown().await;
                self.answer(answer, result.clone());
                return Some(result);
            }
        }
        None
    }

    fn answer(&mut self, answer: Answer, result: Result<(), Failure>) {
        self.publish();
        // Who asked may have hung up: it is done all the same.
        let _ = answer.send(result.map(|()| self.snapshots.borrow().clone()));
    }

    /// Publishes what is so now, and says what changed; nothing when nothing did.
    fn publish(&mut self) {
        let begun = std::time::Instant::now();
        let before = self.snapshots.borrow().clone();
        let mut now = self.core.snapshot(&before);
        let mut conditions = now.conditions.to_vec();
        conditions.extend(self.services.values().cloned());
        now.conditions = share(&before.conditions, conditions);
        let Some(now) = now.after(&before) else { return };
        if self.bus.is_heard() {
            for (change, container, text) in changes(&before, &now) {
                self.bus.publish(EventView::change(change, container, text));
            }
        }
        tracing::debug!(revision = now.revision, took = ?begun.elapsed(), "snapshot");
        self.snapshots.send_replace(Arc::new(now));
    }
}

/// The next change of the kernel's, but not before `calm`.
async fn after(calm: Instant, kernel: &mut mpsc::UnboundedReceiver<NetEvent>) -> Option<NetEvent> {
    sleep_until(calm).await;
    kernel.recv().await
}
