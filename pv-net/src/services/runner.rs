//! Follows the runner: which containers run, and at once which have ended. Asks it for the automatic starts.
//!
//! The daemon works without a runner. When one comes, its socket appears in the run directory, which is watched.

use crate::command::Commands;
use crate::failure::{Failure, Kind};
use crate::kernel::path_watch::PathWatch;
use crate::model::{ContainerName, NetnsRef, RunState, RunStatus};
use crate::runner::client::{Runner, Watch};
use crate::runner::protocol::{Reply, Request, Told};
use crate::snapshot::{Attached, ContainerStatus, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often the runner is looked for when its directory cannot be watched.
const BLIND: Duration = Duration::from_secs(5);
/// When a runtime is asked once more about a container of which it did not know yet. Each time it takes as much longer.
const AGAIN: Duration = Duration::from_secs(1);
/// How much longer at most: every half minute.
const MOST_PAUSE: u32 = 30;
/// How many containers are asked about at the same time. The runner has a thread for each.
const LOOKS: usize = 8;

/// What the service needs.
pub struct Follow {
    /// The device's state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Takes the ends of containers.
    pub commands: Commands,
    /// The runner.
    pub runner: Runner,
    /// The directory of its socket.
    pub dir: PathBuf,
    /// Whether this daemon has asked for the automatic starts. It has not if the runner has ended before they were over.
    pub has_begun: watch::Sender<bool>,
    /// What the last runner has told.
    pub known: BTreeMap<ContainerName, RunStatus>,
}

/// Follows the runner whenever there is one.
///
/// # Errors
/// When its answers are not understood.
pub async fn runner(mut follow: Follow) -> Result<(), Failure> {
    let watch = PathWatch::new().map_err(|e| not_watched(&e))?;
    loop {
        // Watched before the socket is tried, so that none is missed that is made in between.
        let is_watched = watch.watch(&follow.dir);
        if let Ok(states) = follow.runner.watch().await {
            let followed = follow.follow(states).await;
            follow.runner.note(None);
            if !followed? {
                // It takes connections and does not answer: it has too many.
                sleep(AGAIN).await;
            }
            continue;
        }
        match is_watched {
            Ok(_) => watch.changed().await.map_err(|e| not_watched(&e))?,
            Err(e) => {
                tracing::debug!(error = %e, "not watched for the runner's socket");
                sleep(BLIND).await;
            }
        }
    }
}

fn not_watched(e: &std::io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("watch for the runner: {e}"))
}

/// A container that is attached by a process that is not the one of which the runner knows.
struct Doubt {
    pid: u32,
    asked: u32,
    /// When the runner is asked next.
    next: Instant,
    is_busy: bool,
    is_settled: bool,
}

impl Doubt {
    fn new(pid: u32, pause: Duration) -> Self {
        Self { pid, asked: 0, next: Instant::now() + pause, is_busy: false, is_settled: false }
    }

    /// Whether it is to be asked about, now or later.
    const fn waits(&self) -> bool {
        !self.is_busy && !self.is_settled
    }
}

/// The answer to a look at a container, with the process that was asked about.
type Looked = (ContainerName, Option<u32>, Result<Reply, Failure>);

impl Follow {
    /// Follows one runner until it ends. Returns whether it has told any states.
    async fn follow(&mut self, mut states: Watch) -> Result<bool, Failure> {
        let mut begun = self.has_begun.subscribe();
        let (mut has_told, mut may_ask) = (false, true);
        let mut doubts: BTreeMap<ContainerName, Doubt> = BTreeMap::new();
        let mut looks: JoinSet<Looked> = JoinSet::new();
        // Declared since the runner's start; it is asked once about each.
        let mut asked: BTreeSet<ContainerName> = BTreeSet::new();
        loop {
            tokio::select! {
                next = states.next() => {
                    let Some(all) = next? else { return Ok(has_told) };
                    // What runs when the daemon starts was attached, or left unattached on purpose, before.
                    if has_told {
                        self.stop_unattached(started(&self.known, &all));
                    }
                    has_told = true;
                    // Those that have lost their process are asked about at once: only the kernel's word counts.
                    for (name, pid) in self.take(all) {
                        doubts.insert(name, Doubt::new(pid, Duration::ZERO));
                    }
                }
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        // The controller has ended, and the service is about to be.
                        return std::future::pending().await;
                    }
                }
                Some(Ok(looked)) = looks.join_next() => self.note(looked, &mut doubts).await,
                // They may have to be asked for again.
                _ = begun.changed() => {}
                () = sleep(AGAIN), if doubts.values().any(Doubt::waits) => {}
            }
            // Once for each daemon: a container that ends later is not started again here. When the runner was killed
            // in the middle of the starts, the next one goes on with them; the same one is never asked twice.
            if has_told && may_ask && !*begun.borrow_and_update() {
                may_ask = !self.start_all().await;
            }
            let snapshot = self.snapshots.borrow_and_update().clone();
            let found = doubtful(&snapshot, &self.known);
            doubts.retain(|name, _| found.contains_key(name));
            for (name, pid) in found {
                // An operation that is under way mostly settles it.
                let is_changing = self.known.get(&name).is_some_and(|status| status.state == RunState::Changing);
                let new = || Doubt::new(pid, if is_changing { AGAIN } else { Duration::ZERO });
                let doubt = doubts.entry(name.clone()).or_insert_with(new);
                if doubt.pid != pid {
                    *doubt = new();
                }
                if !doubt.waits() || doubt.next > Instant::now() || looks.len() >= LOOKS {
                    continue;
                }
                doubt.asked = doubt.asked.saturating_add(1);
                doubt.next = Instant::now() + AGAIN * doubt.asked.min(MOST_PAUSE);
                doubt.is_busy = true;
                let runner = self.runner.clone();
                looks.spawn(look(runner, name, Some(pid)));
            }
            for name in snapshot.containers.iter().filter(|c| c.is_startable).map(|c| &c.name) {
                let is_new = has_told && !self.known.contains_key(name) && !asked.contains(name);
                if is_new && looks.len() < LOOKS {
                    asked.insert(name.clone());
                    looks.spawn(look(self.runner.clone(), name.clone(), None));
                }
            }
        }
    }

    /// Takes over new states. Returns the containers whose process the runner does not name any more, with that.
    fn take(&mut self, all: BTreeMap<ContainerName, Told>) -> Vec<(ContainerName, u32)> {
        let all: BTreeMap<_, _> = all.into_iter().map(|(name, told)| (name, told.status)).collect();
        self.runner.note(Some(all.clone()));
        let before = std::mem::replace(&mut self.known, all);
        gone(&before, &self.known)
    }

    /// Asks for the automatic starts, and notes if they do not come to their end. Returns whether they have begun.
    async fn start_all(&self) -> bool {
        let starts = match self.runner.start_all().await {
            Ok(starts) => starts,
            Err(failure) => {
                tracing::warn!(error = %failure, "the automatic starts are not begun");
                return false;
            }
        };
        self.has_begun.send_replace(true);
        let has_begun = self.has_begun.clone();
        tokio::spawn(async move {
            match starts.over().await {
                Ok(()) => tracing::info!("the automatic starts are over"),
                Err(failure) => {
                    tracing::warn!(error = %failure, "the automatic starts are not over, and left to the next runner");
                    has_begun.send_replace(false);
                }
            }
        });
        true
    }

    /// Has those stopped that the runner has started without their being attached: the API does it only as long as its
    /// caller waits, and not for automatic starts.
    fn stop_unattached(&self, started: Vec<(ContainerName, u32)>) {
        let snapshot = self.snapshots.borrow().clone();
        for (name, pid) in started {
            // Its hook has attached it before its first program ran.
            let attached = snapshot.container(&name).and_then(|container| container.attached());
            if attached.is_some_and(|attached| attached.record.netns == Some(NetnsRef::Pid(pid))) {
                continue;
            }
            tracing::error!(container = %name, pid, "it has started without being attached, and is stopped");
            let runner = self.runner.clone();
            tokio::spawn(async move {
                if let Err(failure) = runner.ask(&Request::Stop { name, is_own: true }).await {
                    tracing::warn!(error = %failure, "not stopped");
                }
            });
        }
    }

    async fn note(&self, (name, pid, reply): Looked, doubts: &mut BTreeMap<ContainerName, Doubt>) {
        let is_settled = match reply {
            Ok(Reply::Looked { is_gone: true, .. }) => {
                if let Some(pid) = pid {
                    self.has_ended(name.clone(), pid).await;
                }
                true
            }
            Ok(Reply::Looked { status, .. }) => status.pid == pid,
            // It is none of the runner's.
            Err(failure) => failure.kind == Kind::Usage,
            Ok(_) => false,
        };
        if let Some(doubt) = doubts.get_mut(&name).filter(|doubt| Some(doubt.pid) == pid) {
            doubt.is_busy = false;
            doubt.is_settled = is_settled;
        }
    }

    async fn has_ended(&self, name: ContainerName, pid: u32) {
        if let Err(failure) = self.commands.ended(name, pid).await {
            tracing::warn!(error = %failure, "a container has ended, and something of it is left");
        }
    }
}

/// Asks the runner about a container.
async fn look(runner: Runner, name: ContainerName, pid: Option<u32>) -> Looked {
    let reply = runner.ask(&Request::Look { name: name.clone(), pid }).await;
    (name, pid, reply)
}

/// The containers that have lost their first process, with that.
fn gone(
    before: &BTreeMap<ContainerName, RunStatus>,
    now: &BTreeMap<ContainerName, RunStatus>,
) -> Vec<(ContainerName, u32)> {
    let lost = |(name, status): (&ContainerName, &RunStatus)| {
        let pid = status.pid?;
        let stays = now.get(name).is_some_and(|now| now.pid == Some(pid));
        (!stays).then(|| (name.clone(), pid))
    };
    before.iter().filter_map(lost).collect()
}

/// The containers that the runner has started since the last news, with their process. Several changes may come as one.
fn started(
    before: &BTreeMap<ContainerName, RunStatus>,
    now: &BTreeMap<ContainerName, Told>,
) -> Vec<(ContainerName, u32)> {
    let is_new = |(name, told): (&ContainerName, &Told)| {
        let pid = told.status.pid.filter(|_| told.is_started)?;
        let is_known = before.get(name).is_some_and(|before| before.pid == Some(pid));
        (!is_known).then(|| (name.clone(), pid))
    };
    now.iter().filter_map(is_new).collect()
}

/// The containers that are attached by another process than the runner knows of, with that process. Somebody else may have
/// started them, or nobody has seen their end.
fn doubtful(snapshot: &Snapshot, known: &BTreeMap<ContainerName, RunStatus>) -> BTreeMap<ContainerName, u32> {
    let doubt = |(container, attached): (&ContainerStatus, &Attached)| {
        let Some(NetnsRef::Pid(pid)) = attached.record.netns else { return None };
        let is_there = attached.links.iter().any(Option::is_some);
        let is_known = known.get(&container.name).is_some_and(|status| status.pid == Some(pid));
        (is_there && !is_known).then(|| (container.name.clone(), pid))
    };
    snapshot.attached().filter_map(doubt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_lost_its_process_has_ended() {
        let name = |name: &str| name.parse::<ContainerName>().expect("a name");
        let states = |all: &[(&str, RunStatus)]| all.iter().map(|(n, s)| (name(n), s.clone())).collect();
        let stopping = RunStatus { pid: Some(3), ..RunStatus::new(RunState::Changing) };
        let before: BTreeMap<_, _> = states(&[
            ("gone", RunStatus::running(1)),
            ("again", RunStatus::running(2)),
            ("stopping", RunStatus::running(3)),
            ("stays", RunStatus::running(4)),
            ("removed", RunStatus::running(5)),
            ("never", RunStatus::stopped()),
        ]);
        let now = states(&[
            ("gone", RunStatus::failed("it has ended by itself".to_owned())),
            ("again", RunStatus::running(22)),
            ("stopping", stopping),
            ("stays", RunStatus::running(4)),
            ("never", RunStatus::running(6)),
        ]);
        assert_eq!(gone(&before, &now), [(name("again"), 2), (name("gone"), 1), (name("removed"), 5)]);
    }

    #[test]
    fn a_start_is_seen_when_its_changes_come_as_one() {
        let name = |name: &str| name.parse::<ContainerName>().expect("a name");
        let before = BTreeMap::from([
            (name("new"), RunStatus::stopped()),
            (name("restarted"), RunStatus::running(2)),
            (name("kept"), RunStatus::running(3)),
        ]);
        let told = |n, status, is_started| (name(n), Told { status, is_started });
        let changing = RunStatus { pid: Some(3), ..RunStatus::new(RunState::Changing) };
        let now = BTreeMap::from([
            told("new", RunStatus::running(1), true),
            told("restarted", RunStatus::running(22), true),
            told("kept", changing, true),
            told("found", RunStatus::running(4), false),
            told("first", RunStatus::running(5), true),
            told("failed", RunStatus::failed("it has ended".to_owned()), true),
        ]);
        assert_eq!(started(&before, &now), [(name("first"), 5), (name("new"), 1), (name("restarted"), 22)]);
    }
}
