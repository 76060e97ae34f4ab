//! A test double of Pantavisor: it starts the containers of a revision, waits for their goals, and goes back to the
//! revision before when one fails.
//!
//! It follows these files of `pantavisor/pantavisor` on GitHub: `docs/reference/pantavisor-commands.md` and
//! `ctrl/ctrl_*_ep.c` for the control socket, `docs/overview/containers.md` for goals, groups and roles,
//! `docs/overview/updates.md` and `PLATFORM.md` (section 5) for the try-boot. It does not reboot the device: a container
//! that a revision does not change goes on, so what pv-net leaves in the kernel is seen by it. Nor does it have
//! `auto_recovery`: the first unexpected end of a container counts as the last one.

use crate::{lxc, server};
use anyhow::{Context, Result, bail, ensure};
use harness::{Namespace, Process, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::mem::ManuallyDrop;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How long a container has to end by its signal.
const HALT: Duration = Duration::from_secs(20);

/// A container of the running revision.
#[derive(Debug)]
pub struct Entry {
    /// Its `run.json`.
    pub run: Value,
    /// Its status, as the list names it.
    pub status: &'static str,
    pub process: Option<Process>,
    /// Its namespace, unless it is Pantavisor's own.
    pub ns: Option<Namespace>,
}

impl Entry {
    /// Its goal; without a word about it in `run.json` it is that of the group `app`.
    pub fn goal(&self) -> &str {
        self.run["status_goal"].as_str().unwrap_or("STARTED")
    }

    fn has_reached_its_goal(&self) -> bool {
        self.status == "READY" || self.status == self.goal()
    }
}

#[derive(Debug, Default)]
pub struct State {
    pub revision: String,
    pub containers: BTreeMap<String, Entry>,
    /// The metadata of the device.
    pub device_meta: BTreeMap<String, String>,
    /// How far the update to each revision came: its status and message.
    pub progress: BTreeMap<String, (&'static str, String)>,
}

/// What is done before a rollback.
type Interlude = Box<dyn FnOnce(&Shared) + Send>;

pub struct Shared {
    /// Pantavisor's root directory.
    pub host: PathBuf,
    /// The BPF file system that Pantavisor sees at `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// What containers print.
    pub log: PathBuf,
    pub device: ManuallyDrop<Namespace>,
    state: Mutex<State>,
    /// How long containers have to reach their goals.
    goals: Duration,
    /// How long all of them have to run before an update is kept (`PV_UPDATER_COMMIT_DELAY`).
    commit_delay: Mutex<Duration>,
    interlude: Mutex<Option<Interlude>>,
}

/// The double; its containers end with it.
pub struct Pantavisor {
    pub shared: Arc<Shared>,
    server: server::Server,
}

impl Pantavisor {
    /// One with this root directory, in the namespace of the device.
    pub fn new(host: &Path, bpffs: &Path, log: &Path, device: &Namespace, goals: Duration) -> Result<Self> {
        for dir in ["pantavisor", "storage/trails", "volumes", "etc"] {
            fs::create_dir_all(host.join(dir))?;
        }
        fs::write(host.join("etc/resolv.conf"), "")?;
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            bpffs: bpffs.to_owned(),
            log: log.to_owned(),
            device: Namespace::borrowed(&device.path())?,
            state: Mutex::default(),
            goals,
            commit_delay: Mutex::default(),
            interlude: Mutex::default(),
        });
        let server = server::Server::start(&host.join("pantavisor/pv-ctrl"), shared.clone())?;
        Ok(Self { shared, server })
    }

    /// Goes to a revision, and waits until it is known what became of it: the status of the update and its message.
    pub fn run(&self, revision: &str) -> Result<(&'static str, String)> {
        self.shared.transition(revision);
        let state = self.shared.state();
        state.progress.get(revision).cloned().context("no progress")
    }

    /// What is done once between the failure of a revision and the rollback.
    pub fn before_rollback(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        *self.shared.interlude.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(work));
    }
}

impl Drop for Pantavisor {
    fn drop(&mut self) {
        self.server.stop();
        let names: Vec<String> = self.shared.state().containers.keys().cloned().collect();
        for name in names {
            self.shared.stop(&name);
        }
    }
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_commit_delay(&self, delay: Duration) {
        *self.commit_delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    pub fn trail(&self, revision: &str) -> PathBuf {
        self.host.join("storage/trails").join(revision)
    }

    /// As the command `LOCAL_RUN`: the request is answered before the update is over.
    pub fn begin(self: &Arc<Self>, revision: String) -> JoinHandle<()> {
        let shared = self.clone();
        std::thread::spawn(move || shared.transition(&revision))
    }

    /// Tries a revision, and goes back to the one before when it fails.
    fn transition(&self, to: &str) {
        let from = self.state().revision.clone();
        let note = |status, message: String| self.state().progress.insert(to.to_owned(), (status, message));
        note("TESTING", "Awaiting to see if update is stable".to_owned());
        let Err(why) = self.bring_up(to).and_then(|()| self.stay_up()) else {
            note("DONE", "Update finished, revision set as rollback point".to_owned());
            return;
        };
        let interlude = self.interlude.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = interlude {
            work(self);
        }
        if from.is_empty() {
            note("ERROR", format!("{why:#}"));
            return;
        }
        // What fails here too is seen by the test, since the containers do not run.
        let back = self.bring_up(&from).err().map(|e| format!("; rollback: {e:#}")).unwrap_or_default();
        note("ERROR", format!("{why:#}{back}"));
    }

    fn bring_up(&self, revision: &str) -> Result<()> {
        let wanted = self.wanted(revision)?;
        for name in self.to_be_stopped(&wanted, revision)? {
            self.stop(&name);
            self.state().containers.remove(&name);
        }
        self.point_at(revision)?;
        self.state().revision = revision.to_owned();
        // A group waits until the one before has reached its goals.
        for is_root in [true, false] {
            for (name, run) in wanted.iter().filter(|(_, run)| (run["group"] == "root") == is_root) {
                if self.state().containers.get(name).is_none_or(|entry| entry.process.is_none()) {
                    self.start(name, run).with_context(|| format!("{name}: A container could not be started"))?;
                }
            }
            self.reach_goals()?;
        }
        Ok(())
    }

    /// Containers of a revision with their `run.json`.
    fn wanted(&self, revision: &str) -> Result<BTreeMap<String, Value>> {
        let mut wanted = BTreeMap::new();
        for entry in fs::read_dir(self.trail(revision)).with_context(|| revision.to_owned())? {
            let path = entry?.path().join("run.json");
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let run: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            if run["#spec"] == "service-manifest-run@1" {
                wanted.insert(run["name"].as_str().context("no name")?.to_owned(), run);
            }
        }
        Ok(wanted)
    }

    /// Containers that the revision changes or does not have. The files at its root are those of all with the restart
    /// policy `system`.
    fn to_be_stopped(&self, wanted: &BTreeMap<String, Value>, revision: &str) -> Result<Vec<String>> {
        let read = |of: &str| fs::read_to_string(self.trail(of).join("device.json")).unwrap_or_default();
        let mut state = self.state();
        let is_same_device = read(&state.revision) == read(revision);
        let mut over = Vec::new();
        for (name, entry) in &mut state.containers {
            let is_changed = wanted.get(name) != Some(&entry.run)
                || (!is_same_device && entry.run["restart_policy"] == "system")
                || match &mut entry.process {
                    Some(process) => process.has_ended()?,
                    None => true,
                };
            over.extend(is_changed.then(|| name.clone()));
        }
        Ok(over)
    }

    /// The link is a relative one (`pv_storage_set_active` in `storage.c`).
    fn point_at(&self, revision: &str) -> Result<()> {
        let current = self.trail("current");
        if current.symlink_metadata().is_ok() {
            fs::remove_file(&current)?;
        }
        Ok(symlink(revision, current)?)
    }

    /// All containers go on for a while.
    fn stay_up(&self) -> Result<()> {
        let begun = Instant::now();
        let delay = *self.commit_delay.lock().unwrap_or_else(PoisonError::into_inner);
        while begun.elapsed() < delay {
            self.reach_goals()?;
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn reach_goals(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut waits_for = None;
            for (name, entry) in &mut self.state().containers {
                if let Some(status) = entry.process.as_mut().map(Process::ended).transpose()?.flatten() {
                    bail!("{name}: A container could not be started: {status}");
                }
                if !entry.has_reached_its_goal() {
                    waits_for = Some(name.clone());
                }
            }
            let Some(name) = waits_for else { return Ok(()) };
            ensure!(begun.elapsed() < harness::patience(self.goals), "{name}: Status goal not reached");
            sleep(Duration::from_millis(20));
        }
    }

    pub fn start(&self, name: &str, run: &Value) -> Result<()> {
        let dir = self.trail("current").join(name);
        let container = lxc::Container::read(self, name, &dir, run)?;
        container.before_start()?;
        {
            // Whoever asks is known by its process, so nobody is answered until that is noted.
            let mut state = self.state();
            let (process, ns) = container.start()?;
            let entry = Entry { run: run.clone(), status: "STARTING", process: Some(process), ns };
            state.containers.insert(name.to_owned(), entry);
        }
        let pid = self.state().containers.get(name).and_then(|e| e.process.as_ref()).map(Process::pid);
        if let Err(why) = container.started(pid.context("no process")?) {
            self.stop(name);
            return Err(why);
        }
        if let Some(entry) = self.state().containers.get_mut(name)
            && entry.status == "STARTING"
        {
            entry.status = "STARTED";
        }
        Ok(())
    }

    /// Ends a container. Its entry stays.
    pub fn stop(&self, name: &str) {
        let mut state = self.state();
        let Some(entry) = state.containers.get_mut(name) else { return };
        entry.status = "STOPPED";
        let (process, ns) = (entry.process.take(), entry.ns.take());
        drop(state);
        if let Some(mut process) = process {
            // It may have ended already; what does not end is killed.
            let _ = process.signal(Signal::SIGTERM);
            let _ = eventually(HALT, || {
                ensure!(process.has_ended()?, "it goes on");
                Ok(())
            });
        }
        drop(ns);
    }
}

/// The list of containers, as `docs/reference/pvcontrol.md` shows it.
pub fn listed(state: &State) -> Value {
    let one = |(name, entry): (&String, &Entry)| {
        json!({
            "name": name,
            "group": entry.run["group"],
            "status": entry.status,
            "status_goal": entry.goal(),
            "restart_policy": entry.run["restart_policy"],
            "roles": entry.run["roles"],
            "user_stopped": "false",
        })
    };
    state.containers.iter().map(one).collect()
}
