//! The containers that can be started: what is known of each, one operation at a time for each, and who waits for news.

use super::execute::Programs;
use super::marks::{Mark, directory};
use super::network::{self, Hooks};
use super::outcome::{after_failure, are_same, refused, share_user};
use super::process::{is_gone, since_boot, started};
use super::protocol::Told;
use crate::config::load;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::kernel::own_dir;
use crate::model::{Container, ContainerName, RunState, RunStatus, RuntimeSpec, Startable};
use crate::runtime::start::{Runtime, RuntimeError, runtime};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an operation waits for the one before on the same container.
const TURN: Duration = Duration::from_secs(15);

/// All containers; cheap to clone.
#[derive(Clone)]
pub(super) struct Containers {
    paths: Arc<Paths>,
    hooks: Arc<Hooks>,
    known: Arc<(Mutex<Known>, Condvar)>,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) all: BTreeMap<ContainerName, Entry>,
    /// One more with each change.
    revision: u64,
}

pub(super) struct Entry {
    pub(super) status: RunStatus,
    /// An operation on it is under way.
    pub(super) is_busy: bool,
    /// That operation is to end it.
    pub(super) is_ending: bool,
    /// Its health check is under way.
    pub(super) is_checked: bool,
    /// The process that this runner has started last.
    started: Option<u32>,
}

impl Entry {
    const fn new() -> Self {
        Self { status: RunStatus::stopped(), is_busy: false, is_ending: false, is_checked: false, started: None }
    }
}

/// A revision, and the states that containers had then.
pub(super) type News = (u64, BTreeMap<ContainerName, Told>);

/// What an operation is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Start,
    Stop,
    Restart,
}

impl Containers {
    /// Makes the directories that are needed.
    ///
    /// # Errors
    /// When one cannot be made, or others could write to it.
    pub(super) fn new(paths: &Paths) -> Result<Self, Failure> {
        own_dir::make(&directory(paths), super::DIR_MODE)?;
        let hooks = Arc::new(Hooks::of_this_program(paths)?);
        Ok(Self { paths: Arc::new(paths.clone()), hooks, known: Arc::default() })
    }

    /// What is shared. A panic of another thread leaves nothing half done in it: each change is one assignment.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, known: &mut Known, name: &ContainerName, status: RunStatus) {
        let entry = known.all.entry(name.clone()).or_insert_with(Entry::new);
        let before = &entry.status;
        let since_boot_secs = match status.pid {
            Some(pid) if before.pid == Some(pid) => before.since_boot_secs,
            Some(pid) => started(pid),
            // One that has ended is noted a second time as soon as it is known how.
            None if before.pid.is_none() && status.state != RunState::Changing => before.since_boot_secs,
            None => since_boot(),
        };
        entry.status = RunStatus { since_boot_secs, ..status };
        known.revision += 1;
        self.known.1.notify_all();
    }

    /// Notes why a container was not started. One that runs, or is just being started, keeps its state.
    pub(super) fn note_failed(&self, name: &ContainerName, why: String) {
        tracing::warn!(container = %name, %why, "not started");
        let mut known = self.known();
        if known.all.get(name).is_none_or(|entry| entry.status.pid.is_none() && !entry.is_busy) {
            self.note(&mut known, name, RunStatus::failed(why));
        }
    }

    /// Whether the container is known to run.
    pub(super) fn runs(&self, name: &ContainerName) -> bool {
        self.status(name).pid.is_some()
    }

    /// The states, as soon as they are not those of `after`; nothing if they still are after `within`.
    pub(super) fn news(&self, after: Option<u64>, within: Duration) -> Option<News> {
        let until = Instant::now() + within;
        let mut known = self.known();
        while after == Some(known.revision) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            known = self.known.1.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let told = |entry: &Entry| {
            let is_started = entry.started.is_some() && entry.started == entry.status.pid;
            Told { status: entry.status.clone(), is_started }
        };
        let all = known.all.iter().map(|(name, entry)| (name.clone(), told(entry)));
        Some((known.revision, all.collect()))
    }

    /// Waits until no other operation on the container is under way, and begins one.
    pub(super) fn begin(&self, name: &ContainerName) -> Result<Busy<'_>, Failure> {
        let until = Instant::now() + TURN;
        let mut known = self.known();
        while known.all.get(name).is_some_and(|entry| entry.is_busy) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!("container {name}: it is just being started or stopped");
                return Err(Failure::new(Kind::Conflict, why).help("ask again when that has come to its end"));
            }
            known = self.known.1.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let entry = known.all.entry(name.clone());
        entry.or_insert_with(Entry::new).is_busy = true;
        Ok(Busy { containers: self, name: name.clone(), is_over: false })
    }

    /// Waits for as long as it takes until no other operation on the container is under way, and begins one.
    pub(super) fn begin_after_all(&self, name: &ContainerName) -> Busy<'_> {
        loop {
            if let Ok(busy) = self.begin(name) {
                return busy;
            }
        }
    }

    /// Begins a health check of a container, of which there is one at a time.
    pub(super) fn begin_check(&self, name: &ContainerName) -> Result<Checking<'_>, Failure> {
        let mut known = self.known();
        let entry = known.all.entry(name.clone()).or_insert_with(Entry::new);
        if entry.is_checked {
            let why = format!("container {name}: its health check is under way");
            return Err(Failure::new(Kind::Conflict, why).help("ask again when that has come to its end"));
        }
        entry.is_checked = true;
        Ok(Checking { containers: self, name: name.clone() })
    }

    /// What is known of a container.
    pub(super) fn status(&self, name: &ContainerName) -> RunStatus {
        self.known().all.get(name).map_or_else(RunStatus::stopped, |entry| entry.status.clone())
    }

    /// Starts a container.
    ///
    /// # Errors
    /// When it runs already, or does not run afterwards.
    pub(super) fn start(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        self.operate(name, Wish::Start)
    }

    /// Stops a container. One that a person has asked to stop is not started automatically until the next boot.
    ///
    /// # Errors
    /// When it does not run, or goes on.
    pub(super) fn stop(&self, name: &ContainerName, is_asked: bool) -> Result<RunStatus, Failure> {
        let status = self.operate(name, Wish::Stop)?;
        if is_asked && let Err(failure) = Mark::Stopped.put(self.paths(), name) {
            tracing::warn!(container = %name, error = %failure, "the next automatic start will start it");
        }
        Ok(status)
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// When it goes on, or does not run afterwards.
    pub(super) fn restart(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        self.operate(name, Wish::Restart)
    }

    fn operate(&self, name: &ContainerName, wish: Wish) -> Result<RunStatus, Failure> {
        let (container, startable) = self.startable(name)?;
        self.is_alone(name, &startable.runtime, wish)?;
        let busy = self.begin(name)?;
        if wish != Wish::Stop {
            Mark::Stopped.remove(self.paths(), name);
        }
        let before = self.status(name);
        let changing = RunStatus { pid: before.pid, ..RunStatus::new(RunState::Changing) };
        {
            let mut known = self.known();
            if let Some(entry) = known.all.get_mut(name) {
                entry.is_ending = wish != Wish::Start;
            }
            self.note(&mut known, name, changing);
        }
        let (done, status) = self.with_runtime(name, &startable.runtime, |runtime| {
            let stop = || runtime.stop(startable.stop_timeout);
            let prepare = || {
                let prepared = self.hooks.prepare(&container, &startable.runtime);
                prepared.map_err(|failure| failure.about(format!("container {name}")))
            };
            let done = match wish {
                Wish::Start => prepare().and_then(|()| self.launch(name, runtime)),
                Wish::Stop => stop().map(|()| RunStatus::stopped()).map_err(|e| refused(name, &e)),
                // One that could not be started again goes on.
                Wish::Restart => prepare().and_then(|()| match stop() {
                    Ok(()) | Err(RuntimeError::NotRunning) => self.launch(name, runtime),
                    Err(e) => Err(refused(name, &e)),
                }),
            };
            let status = match &done {
                Ok(status) => status.clone(),
                Err(failure) => after_failure(name, failure, before, runtime),
            };
            (done, status)
        });
        match &done {
            Ok(RunStatus { pid: Some(pid), .. }) => {
                if let Some(entry) = self.known().all.get_mut(name) {
                    entry.started = Some(*pid);
                }
                tracing::info!(container = %name, pid, "started");
            }
            Ok(_) => tracing::info!(container = %name, "stopped"),
            Err(failure) => tracing::warn!(container = %name, error = %failure, "not done"),
        }
        let status = busy.end(status, &startable.runtime);
        done.map(|_| status)
    }

    /// A declared container, and how it is started.
    pub(super) fn startable(&self, name: &ContainerName) -> Result<(Container, Startable), Failure> {
        network::startable(&self.paths, name)
    }

    /// Fails if another declared container is the same one in the runtime, or would be started as the same user.
    fn is_alone(&self, name: &ContainerName, runtime: &RuntimeSpec, wish: Wish) -> Result<(), Failure> {
        let declared = load::containers(&self.paths.containers, self.paths.form())?;
        let others = declared.into_iter().filter_map(|declared| declared.container.ok());
        for other in others.filter(|other| other.name != *name) {
            let Some(of_other) = other.startable.map(|startable| startable.runtime) else { continue };
            let (what, help) = if are_same(&of_other, runtime) {
                ("is the same one in its runtime", "give each a \"runtime\" with an \"id\" of its own")
            } else if wish != Wish::Stop && share_user(&of_other, runtime) {
                ("has the same user", "give each a \"user\" of its own in \"runtime\", or leave it out")
            } else {
                continue;
            };
            let why = format!("container {name}: container {} {what}", other.name);
            return Err(Failure::new(Kind::Usage, why).help(help));
        }
        Ok(())
    }

    /// Does `work` with the container's runtime. Its files are removed before the operation ends and the next one begins.
    pub(super) fn with_runtime<T>(
        &self,
        name: &ContainerName,
        spec: &RuntimeSpec,
        work: impl FnOnce(&dyn Runtime) -> T,
    ) -> T {
        let programs = self.programs(name);
        // A runner that was killed may have left some.
        programs.remove_files();
        let done = work(&*runtime(spec, &programs));
        programs.remove_files();
        done
    }

    /// What calls a container's runtime.
    pub(super) fn programs(&self, name: &ContainerName) -> Programs {
        Programs::new(&directory(&self.paths), name.as_str(), self.hooks.launcher(name))
    }

    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }
}

/// A health check, which ends with this value.
pub(super) struct Checking<'a> {
    containers: &'a Containers,
    name: ContainerName,
}

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.containers.known().all.get_mut(&self.name) {
            entry.is_checked = false;
        }
    }
}

/// An operation on a container, which ends with this value.
pub(super) struct Busy<'a> {
    containers: &'a Containers,
    name: ContainerName,
    /// It has ended, and another one may have begun.
    is_over: bool,
}

impl Busy<'_> {
    /// Ends the operation with the container in this state, and returns the state that is noted. One that runs is watched
    /// from now on.
    ///
    /// A process that was known to run is given up only when the kernel says that it has ended. The runtime may not
    /// answer, or answer about another container, for instance after a change of `run.json`.
    pub(super) fn end(mut self, mut status: RunStatus, spec: &RuntimeSpec) -> RunStatus {
        let watched = {
            let mut known = self.containers.known();
            let before = known.all.get(&self.name).and_then(|entry| entry.status.pid);
            if let (None, Some(pid)) = (status.pid, before)
                && !is_gone(pid)
            {
                let why = status.why.unwrap_or_else(|| "its runtime does not know that it runs".to_owned());
                status = RunStatus { why: Some(why), ..RunStatus::running(pid) };
            }
            let pid = status.pid.filter(|pid| before != Some(*pid));
            self.containers.note(&mut known, &self.name, status.clone());
            // Together with the state: the process may end at once, and its end belongs to no operation.
            if let Some(entry) = known.all.get_mut(&self.name) {
                (entry.is_busy, entry.is_ending) = (false, false);
            }
            self.is_over = true;
            pid
        };
        if let Some(pid) = watched {
            self.containers.watch(&self.name, pid, spec.clone());
        }
        status
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Some(entry) = self.containers.known().all.get_mut(&self.name) {
            (entry.is_busy, entry.is_ending) = (false, false);
        }
        self.containers.known.1.notify_all();
    }
}
