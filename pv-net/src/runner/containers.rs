//! The containers that can be started: what is known of each, one operation at a time for each, and who waits for news.

use super::execute::Programs;
use super::network::{self, Hooks};
use super::outcome::{after_failure, in_words, refused, shares_network};
use super::process::Process;
use crate::config::load;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::kernel::own_dir;
use crate::model::{Container, ContainerName, RunState, RunStatus, RuntimeSpec, Startable};
use crate::runtime::start::{Runtime, RuntimeError, State, runtime};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a start may take.
const START: Duration = Duration::from_secs(30);
/// How long an operation waits for the one before on the same container.
const TURN: Duration = Duration::from_secs(15);
/// Only root may read what runtimes write there.
const DIR_MODE: u32 = 0o700;

/// All containers; cheap to clone.
#[derive(Clone)]
pub(super) struct Containers {
    paths: Arc<Paths>,
    hooks: Arc<Hooks>,
    known: Arc<(Mutex<Known>, Condvar)>,
}

#[derive(Default)]
struct Known {
    all: BTreeMap<ContainerName, Entry>,
    /// One more with each change.
    revision: u64,
}

struct Entry {
    status: RunStatus,
    /// An operation on it is under way.
    is_busy: bool,
}

/// A revision, and the states that containers had then.
pub(super) type News = (u64, BTreeMap<ContainerName, RunStatus>);

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
        own_dir::make(&directory(paths), DIR_MODE)?;
        let hooks = Arc::new(Hooks::of_this_program(paths)?);
        Ok(Self { paths: Arc::new(paths.clone()), hooks, known: Arc::default() })
    }

    /// What is shared. A panic of another thread leaves nothing half done in it: each change is one assignment.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, known: &mut Known, name: &ContainerName, status: RunStatus) {
        let entry = known.all.entry(name.clone());
        let entry = entry.or_insert_with(|| Entry { status: RunStatus::stopped(), is_busy: false });
        entry.status = status;
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

    /// The states, as soon as they are not those of `after`.
    pub(super) fn news(&self, after: Option<u64>) -> News {
        let mut known = self.known();
        while after == Some(known.revision) {
            known = self.known.1.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
        let all = known.all.iter().map(|(name, entry)| (name.clone(), entry.status.clone()));
        (known.revision, all.collect())
    }

    /// Waits until no other operation on the container is under way, and begins one.
    fn begin(&self, name: &ContainerName) -> Result<Busy<'_>, Failure> {
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
        entry.or_insert_with(|| Entry { status: RunStatus::stopped(), is_busy: false }).is_busy = true;
        Ok(Busy { containers: self, name: name.clone() })
    }

    /// Asks the runtimes which containers run, and watches these.
    ///
    /// # Errors
    /// When the directory of declared containers cannot be read.
    pub(super) fn find(&self) -> Result<(), Failure> {
        let declared = load::containers(&self.paths.containers, self.paths.form())?;
        let containers = declared.into_iter().filter_map(|declared| declared.container.ok());
        for container in containers.filter(|container| container.startable.is_some()) {
            if let Err(failure) = self.look(&container.name) {
                self.note(&mut self.known(), &container.name, RunStatus::failed(failure.line()));
            }
        }
        Ok(())
    }

    /// Asks the runtime about a container. One that runs is watched.
    ///
    /// # Errors
    /// When it cannot be started by pv-net, or its runtime does not say.
    pub(super) fn look(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        let (_, startable) = self.startable(name)?;
        let busy = self.begin(name)?;
        let state =
            self.with_runtime(name, &startable.runtime, |runtime| runtime.state()).map_err(|e| refused(name, &e))?;
        let before = self.status(name);
        let status = match state {
            State::Running(pid) => RunStatus::running(pid),
            State::Changing => RunStatus { state: RunState::Changing, pid: None, why: None },
            // How it has ended is known better from before.
            State::Absent | State::Stopped if before.pid.is_none() && before.state != RunState::Changing => before,
            State::Absent | State::Stopped => RunStatus::stopped(),
        };
        busy.end(status.clone(), &startable.runtime);
        Ok(status)
    }

    /// What is known of a container.
    fn status(&self, name: &ContainerName) -> RunStatus {
        self.known().all.get(name).map_or_else(RunStatus::stopped, |entry| entry.status.clone())
    }

    /// Starts a container.
    ///
    /// # Errors
    /// When it runs already, or does not run afterwards.
    pub(super) fn start(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        self.operate(name, Wish::Start)
    }

    /// Stops a container.
    ///
    /// # Errors
    /// When it does not run, or goes on.
    pub(super) fn stop(&self, name: &ContainerName) -> Result<RunStatus, Failure> {
        self.operate(name, Wish::Stop)
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
        self.is_alone(name, &startable.runtime)?;
        let busy = self.begin(name)?;
        self.keep_stopped(name, wish == Wish::Stop);
        let before = self.status(name);
        let changing = RunStatus { state: RunState::Changing, pid: before.pid, why: None };
        self.note(&mut self.known(), name, changing);
        let (done, status) = self.with_runtime(name, &startable.runtime, |runtime| {
            let stop = || runtime.stop(startable.stop_timeout);
            let done = match wish {
                Wish::Start => self.run(&container, &startable.runtime, runtime),
                Wish::Stop => stop().map(|()| RunStatus::stopped()).map_err(|e| refused(name, &e)),
                Wish::Restart => match stop() {
                    Ok(()) | Err(RuntimeError::NotRunning) => self.run(&container, &startable.runtime, runtime),
                    Err(e) => Err(refused(name, &e)),
                },
            };
            let status = match &done {
                Ok(status) => status.clone(),
                Err(failure) => after_failure(name, failure, before, runtime),
            };
            (done, status)
        });
        match &done {
            Ok(RunStatus { pid: Some(pid), .. }) => tracing::info!(container = %name, pid, "started"),
            Ok(_) => tracing::info!(container = %name, "stopped"),
            Err(failure) => tracing::warn!(container = %name, error = %failure, "not done"),
        }
        busy.end(status, &startable.runtime);
        done
    }

    /// Starts a container in its pools, or not at all.
    fn run(&self, container: &Container, spec: &RuntimeSpec, runtime: &dyn Runtime) -> Result<RunStatus, Failure> {
        let name = &container.name;
        self.hooks.prepare(container, spec).map_err(|failure| failure.about(format!("container {name}")))?;
        let pid = runtime.start(START).map_err(|e| refused(name, &e))?;
        if shares_network(pid) {
            let killed = runtime.kill();
            let failure =
                Failure::new(Kind::Internal, format!("container {name}: it has started in the device's network"));
            let failure = failure.help("remove what gives it that from its runtime's configuration");
            return Err(match killed {
                Ok(()) => failure,
                Err(e) => failure.and(refused(name, &e)),
            });
        }
        Ok(RunStatus::running(pid))
    }

    /// A declared container, and how it is started.
    fn startable(&self, name: &ContainerName) -> Result<(Container, Startable), Failure> {
        let container = network::declared(&self.paths, name)?;
        match container.startable.clone() {
            Some(startable) => Ok((container, startable)),
            None => {
                let why = format!("container {name}: its run.json does not say how it is started");
                Err(Failure::new(Kind::Usage, why).help("write \"runtime\" into it, or start it by its runtime"))
            }
        }
    }

    /// Fails if another declared container is the same one in the runtime.
    fn is_alone(&self, name: &ContainerName, runtime: &RuntimeSpec) -> Result<(), Failure> {
        let declared = load::containers(&self.paths.containers, self.paths.form())?;
        let others = declared.into_iter().filter_map(|declared| declared.container.ok());
        let mut others = others.filter(|other| other.name != *name);
        let same = others.find(|other| other.startable.as_ref().is_some_and(|other| other.runtime == *runtime));
        match same {
            None => Ok(()),
            Some(other) => {
                let why = format!("container {name}: container {} is the same one in its runtime", other.name);
                Err(Failure::new(Kind::Usage, why).help("give each a \"runtime\" with an \"id\" of its own"))
            }
        }
    }

    /// Does `work` with the container's runtime. Its files are removed before the operation ends and the next one begins.
    fn with_runtime<T>(&self, name: &ContainerName, spec: &RuntimeSpec, work: impl FnOnce(&dyn Runtime) -> T) -> T {
        let programs = Programs::new(&directory(&self.paths), name.as_str());
        work(&*runtime(spec, &programs))
    }

    /// Where it is written down that a container was stopped by a request.
    fn stopped_mark(&self, name: &ContainerName) -> PathBuf {
        directory(&self.paths).join(format!("{name}.stopped"))
    }

    /// Whether a container was stopped by a request since the last boot, and not started since.
    pub(super) fn is_kept_stopped(&self, name: &ContainerName) -> bool {
        self.stopped_mark(name).exists()
    }

    fn keep_stopped(&self, name: &ContainerName, is_kept: bool) {
        let mark = self.stopped_mark(name);
        let done = match is_kept {
            true => std::fs::write(&mark, ""),
            false if mark.exists() => std::fs::remove_file(&mark),
            false => Ok(()),
        };
        if let Err(e) = done {
            tracing::warn!(file = %mark.display(), error = %e, "not written down whether the container was stopped");
        }
    }

    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Waits on a thread of its own for the end of a container's first process.
    fn watch(&self, name: &ContainerName, pid: u32, spec: RuntimeSpec) {
        let process = Process::open(pid);
        let (containers, name) = (self.clone(), name.clone());
        let wait = move || {
            let watched = process.and_then(|process| {
                if let Some(process) = &process {
                    process.ended(None)?;
                }
                Ok(process)
            });
            match watched {
                Ok(process) => containers.has_ended(&name, pid, &spec, process.as_ref()),
                Err(e) => tracing::error!(container = %name, error = %e, "its end will not be noticed"),
            }
        };
        if let Err(e) = std::thread::Builder::new().name("pv-net-watch".to_owned()).spawn(wait) {
            tracing::error!(error = %e, "a container's end will not be noticed");
        }
    }

    /// Notes that a container's first process has ended. Nobody has asked for that unless an operation is under way.
    fn has_ended(&self, name: &ContainerName, pid: u32, spec: &RuntimeSpec, process: Option<&Process>) {
        let is_mine = |known: &Known| known.all.get(name).is_some_and(|entry| entry.status.pid == Some(pid));
        {
            let mut known = self.known();
            if !is_mine(&known) {
                return;
            }
            let is_asked = known.all.get(name).is_some_and(|entry| entry.is_busy);
            // At once, since the daemon waits for it; how it has ended is told as soon as the kernel says.
            let state = if is_asked { RunState::Changing } else { RunState::Stopped };
            self.note(&mut known, name, RunStatus { state, pid: None, why: None });
            if is_asked {
                return;
            }
        }
        let status = match process.and_then(Process::how) {
            Some(how) if how.success() => RunStatus::stopped(),
            how => RunStatus::failed(in_words(how)),
        };
        tracing::warn!(container = %name, pid, why = status.why, "ended");
        let Ok(busy) = self.begin(name) else { return };
        // It may have been started again before this operation's turn.
        if self.status(name) == RunStatus::stopped() {
            if let Err(e) = self.with_runtime(name, spec, |runtime| runtime.clear()) {
                tracing::warn!(container = %name, error = %e, "its runtime keeps something of it");
            }
            busy.end(status, spec);
        }
    }
}

/// An operation on a container, which ends with this value.
struct Busy<'a> {
    containers: &'a Containers,
    name: ContainerName,
}

impl Busy<'_> {
    /// Ends the operation with the container in this state. One that runs is watched from now on.
    fn end(self, status: RunStatus, spec: &RuntimeSpec) {
        let watched = {
            let mut known = self.containers.known();
            let before = known.all.get(&self.name).and_then(|entry| entry.status.pid);
            let pid = status.pid.filter(|pid| before != Some(*pid));
            self.containers.note(&mut known, &self.name, status);
            pid
        };
        if let Some(pid) = watched {
            self.containers.watch(&self.name, pid, spec.clone());
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.containers.known().all.get_mut(&self.name) {
            entry.is_busy = false;
        }
        self.containers.known.1.notify_all();
    }
}

/// The runner's own directory.
pub(super) fn directory(paths: &Paths) -> PathBuf {
    paths.run_dir.join("runner")
}
