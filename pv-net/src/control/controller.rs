//! The controller: handles commands, kernel events and the clock, one after the other. Work whose time others decide
//! runs beside it as an errand; a command that needs its result starts again when it is there.

use super::Core;
use crate::command::{AddInterface, Answer, Command, Halt, Queue, Report};
use crate::events::{Bus, Change, EventView, changes};
use crate::failure::Failure;
use crate::kernel::errand::{Brought, Errand, Found};
use crate::kernel::netlink::NetEvent;
use crate::model::ContainerName;
use crate::snapshot::{Snapshot, share};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Kernel events are handled at once, but in a storm of them handling takes at most one part in [`STORM_SHARE`] + 1 of
/// the controller's time; events that come in between are handled together.
const STORM_SHARE: u32 = 4;
/// The longest time that an event waits because of that.
const MAX_CALM: Duration = Duration::from_millis(200);

/// The first audit is a little after the start, so that the first requests to a new daemon do not wait for it.
pub(super) const FIRST_AUDIT: Duration = Duration::from_secs(1);
/// Time between two audits, which look for changes that no event reports.
pub(super) const AUDIT: Duration = Duration::from_secs(30);

/// Owns the state as long as the daemon runs.
pub(crate) struct Controller<C> {
    core: C,
    queue: Queue,
    kernel: mpsc::UnboundedReceiver<NetEvent>,
    stop: CancellationToken,
    snapshots: watch::Sender<Arc<Snapshot>>,
    bus: Bus,
    /// Conditions of services, by service.
    services: BTreeMap<&'static str, String>,
    /// Commands that wait for errands; each starts again with their results.
    halted: JoinSet<(Command, Found)>,
    /// For each container of such a command, the later commands about the same container, which wait behind it.
    behind: BTreeMap<ContainerName, VecDeque<Command>>,
    errands: JoinSet<(Batch, Brought)>,
    /// Reloads whose errands are not all over: how many are left, and the answer that is sent then.
    unanswered: BTreeMap<Batch, (usize, Answer)>,
    batches: Batch,
}

/// The container that a command changes.
fn container_of(command: &Command) -> Option<&ContainerName> {
    match command {
        Command::Attach { name, .. }
        | Command::AttachDeclared { name, .. }
        | Command::Ended { name, .. }
        | Command::Detach { name, .. }
        | Command::AttachInterface { add: AddInterface { container: name, .. }, .. }
        | Command::DetachInterface { name, .. } => Some(name),
        Command::Readdress { new, .. } => Some(&new.key.container),
        _ => None,
    }
}

/// Number of a group of errands that one operation left to be done.
type Batch = u64;

impl<C: Core> Controller<C> {
    /// A controller of `core`, and the channel of its snapshots, which has the first one already. It receives commands
    /// from `queue` and kernel events from `kernel`, and ends when `stop` is cancelled.
    pub(crate) fn new(
        mut core: C,
        queue: Queue,
        kernel: mpsc::UnboundedReceiver<NetEvent>,
        bus: Bus,
        stop: CancellationToken,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let first = Snapshot { revision: 1, ..core.snapshot(&Snapshot::default()) };
        let (snapshots, receiver) = watch::channel(Arc::new(first));
        let controller = Self {
            core,
            queue,
            kernel,
            stop,
            snapshots,
            bus,
            services: BTreeMap::new(),
            halted: JoinSet::new(),
            behind: BTreeMap::new(),
            errands: JoinSet::new(),
            unanswered: BTreeMap::new(),
            batches: 0,
        };
        (controller, receiver)
    }

    /// Runs until `stop` is cancelled, and finishes the present command; or until `down`.
    ///
    /// # Errors
    /// Everything that `down` could not remove.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let mut audit = Instant::now() + FIRST_AUDIT;
        let mut calm = Instant::now();
        loop {
            self.begin_errands();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    tracing::info!("stopping; the data plane goes on");
                    for (_, answer) in std::mem::take(&mut self.unanswered).into_values() {
                        self.answer(answer, Ok(()));
                    }
                    return Ok(());
                }
                () = sleep_until(audit) => {
                    self.core.audit().await;
                    audit = Instant::now() + AUDIT;
                }
                Some(event) = after(calm, &mut self.kernel) => {
                    let begun = Instant::now();
                    self.core.on_event(&event).await;
                    // Events that are there already are handled together.
                    while let Ok(event) = self.kernel.try_recv() {
                        self.core.on_event(&event).await;
                    }
                    self.core.settle().await;
                    calm = Instant::now() + (begun.elapsed() * STORM_SHARE).min(MAX_CALM);
                }
                Some(ended) = self.errands.join_next() => self.note(ended).await,
                Some(ended) = self.halted.join_next() => match ended {
                    Ok((command, found)) => {
                        if let Some(result) = self.go_on(command, found).await {
                            return result;
                        }
                    }
                    Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                    // The runtime is shutting down.
                    Err(_) => {}
                },
                Some(command) = self.queue.recv() => {
                    let behind = container_of(&command).and_then(|name| self.behind.get_mut(name));
                    if let Some(behind) = behind {
                        behind.push_back(command);
                    } else if let Some(result) = self.carry_out(command, Found::default()).await {
                        return result;
                    }
                }
            }
            self.publish();
        }
    }

    /// Carries out `command`. Returns the result of `down`, after which the controller ends.
    async fn carry_out(&mut self, command: Command, found: Found) -> Option<Result<(), Failure>> {
        match command {
            Command::Attach { name, request, prepared, answer } => {
                let done = self.core.attach(&name, &request, &prepared, &found).await;
                self.end(done, answer, found, |answer| Command::Attach { name, request, prepared, answer });
            }
            Command::AttachDeclared { name, prepared, answer } => {
                let done = self.core.attach_declared(&name, &prepared, &found).await;
                self.end(done, answer, found, |answer| Command::AttachDeclared { name, prepared, answer });
            }
            Command::Ended { name, pid, answer } => {
                let result = self.core.container_ended(&name, pid).await;
                self.answer(answer, result);
            }
            Command::Detach { name, answer } => {
                let done = self.core.detach(&name, &found).await;
                self.end(done, answer, found, |answer| Command::Detach { name, answer });
            }
            Command::AttachInterface { add, answer } => {
                let done = self.core.attach_interface(&add, &found).await;
                self.end(done, answer, found, |answer| Command::AttachInterface { add, answer });
            }
            Command::DetachInterface { name, interface, answer } => {
                let done = self.core.detach_interface(&name, &interface, &found).await;
                self.end(done, answer, found, |answer| Command::DetachInterface { name, interface, answer });
            }
            Command::Readdress { new, answer } => {
                let done = self.core.readdress(&new, &found).await;
                self.end(done, answer, found, |answer| Command::Readdress { new, answer });
            }
            Command::Reload { answer } => {
                let result = self.core.reload().await;
                match self.begin_errands() {
                    Some((batch, count)) if result.is_ok() => drop(self.unanswered.insert(batch, (count, answer))),
                    _ => self.answer(answer, result),
                }
            }
            Command::Plan { answer } => {
                let plan = self.core.plan().await;
                // The sender may have hung up.
                let _ = answer.send(plan);
            }
            Command::Report(Report::PortTaken { proto, port }) => self.core.port_is_taken(proto, port),
            Command::Report(Report::NamespaceGone { name }) => self.core.namespace_is_gone(&name),
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

    /// Answers a command that is done, or halts it until its errands have run; `again` is the command then.
    fn end(&mut self, done: Result<(), Halt>, answer: Answer, found: Found, again: impl FnOnce(Answer) -> Command) {
        match done {
            Ok(()) => self.answer(answer, Ok(())),
            Err(Halt::Failed(failure)) => self.answer(answer, Err(failure)),
            Err(Halt::Needs(errands)) => self.halt(again(answer), found, errands),
        }
    }

    /// Starts a halted command again, and then the commands that waited behind it, until one of them is halted too.
    async fn go_on(&mut self, command: Command, found: Found) -> Option<Result<(), Failure>> {
        let name = container_of(&command).cloned();
        let mut behind = name.as_ref().and_then(|name| self.behind.remove(name)).unwrap_or_default();
        let mut next = Some((command, found));
        while let Some((command, found)) = next {
            if let Some(result) = self.carry_out(command, found).await {
                return Some(result);
            }
            if let Some(halted) = name.as_ref().and_then(|name| self.behind.get_mut(name)) {
                halted.append(&mut behind);
            }
            next = behind.pop_front().map(|command| (command, Found::default()));
        }
        None
    }

    /// Starts `command` again when its `errands` are over.
    fn halt(&mut self, command: Command, mut found: Found, errands: Vec<Errand>) {
        if let Some(name) = container_of(&command) {
            self.behind.entry(name.clone()).or_default();
        }
        let all: Vec<_> = errands.into_iter().map(|errand| self.core.run(errand)).collect();
        self.halted.spawn(async move {
            let mut running = JoinSet::from_iter(all);
            while let Some(ended) = running.join_next().await {
                match ended {
                    Ok(brought) => found.add(brought),
                    Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                    Err(_) => {}
                }
            }
            (command, found)
        });
    }

    /// Starts the errands that the core left to be done. Returns the number of the group and how many they are.
    fn begin_errands(&mut self) -> Option<(Batch, usize)> {
        let errands = self.core.errands();
        if errands.is_empty() {
            return None;
        }
        self.batches += 1;
        let (batch, count) = (self.batches, errands.len());
        for errand in errands {
            let work = self.core.run(errand);
            self.errands.spawn(async move { (batch, work.await) });
        }
        Some((batch, count))
    }

    /// Passes an errand's result to the core, and answers the reload whose last errand it was.
    async fn note(&mut self, ended: Result<(Batch, Brought), JoinError>) {
        let (batch, brought) = match ended {
            Ok(ended) => ended,
            // Nobody can say what is half done after a panic, so the daemon ends, as with a panic in the controller
            // itself.
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => return,
        };
        self.core.errand_ended(brought).await;
        if let Some((left, _)) = self.unanswered.get_mut(&batch) {
            *left -= 1;
        }
        if self.unanswered.get(&batch).is_some_and(|(left, _)| *left == 0)
            && let Some((_, answer)) = self.unanswered.remove(&batch)
        {
            self.answer(answer, Ok(()));
        }
    }

    fn answer(&mut self, answer: Answer, result: Result<(), Failure>) {
        self.publish();
        // The sender may have hung up; the reload is done all the same.
        let _ = answer.send(result.map(|()| self.snapshots.borrow().clone()));
    }

    /// Publishes a new snapshot and events about the changes, if there are any.
    fn publish(&mut self) {
        let begun = std::time::Instant::now();
        for (container, text) in self.core.take_repairs() {
            self.bus.publish(EventView::change(Change::Repaired, container, Some(text)));
        }
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

/// The next kernel event, but not before the time `calm`.
async fn after(calm: Instant, kernel: &mut mpsc::UnboundedReceiver<NetEvent>) -> Option<NetEvent> {
    sleep_until(calm).await;
    kernel.recv().await
}
