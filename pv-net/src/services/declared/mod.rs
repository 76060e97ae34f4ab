//! Attaches declared containers that somebody else starts, as soon as their namespace files exist.
//!
//! Events only say that something may have changed; the service then looks itself, and periodically without an event.
//! So a missed event has no lasting effect. A directory or namespace that does not answer delays its own containers
//! only.

mod next;
#[cfg(test)]
mod tests;

use crate::command::{Commands, Prepared, Report};
use crate::failure::{Failure, Kind};
use crate::kernel::link::has_end_of;
use crate::kernel::netlink::{Net, NetError, Netns};
use crate::kernel::netns::{self, NetnsId, Place};
use crate::kernel::path_watch::{PathWatch, Watched};
use crate::model::{ContainerName, Device, NetnsRef};
use crate::snapshot::{Attached, Awaited, ContainerStatus, Snapshot};
use next::{Memory, Next};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

/// In a storm of events there is at most one look in this time.
const CALM: Duration = Duration::from_millis(20);
/// Time between two looks without an event, for changes that are not reported, such as mounts in a directory behind a
/// symbolic link.
const AUDIT: Duration = Duration::from_secs(30);
/// That time when the kernel gives no more inotify watches.
const BLIND: Duration = Duration::from_secs(1);
/// Most containers that are checked or attached at the same time.
const AT_ONCE: usize = 8;

/// Attaches declared containers whenever their namespaces exist.
///
/// # Errors
/// When the kernel reports neither files nor mounts.
pub async fn declared(mut snapshots: watch::Receiver<Arc<Snapshot>>, commands: Commands) -> Result<(), Failure> {
    if snapshots.wait_for(|s| !s.awaited.is_empty()).await.is_err() {
        // The controller has ended.
        return Ok(());
    }
    let watch = PathWatch::new().map_err(|e| not_watched(&e))?;
    let mut service = Service::new(watch, commands);
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        service.follow(&snapshot);
        service.look();
        let wake = service.act(&snapshot).await;
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            changed = service.watch.changed() => {
                changed.map_err(|e| not_watched(&e))?;
                service.places.values_mut().for_each(|place| place.is_due = true);
            }
            Some(looked) = service.looks.join_next() => service.note_look(looked.map_err(|e| panicked(&e))?),
            Some(worked) = service.work.join_next() => {
                service.note_work(worked.map_err(|e| panicked(&e))?, &snapshots.borrow());
            }
            () = sleep_until(wake) => {}
        }
    }
}

fn not_watched(e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("watch for namespaces of declared containers: {e}"))
}

fn panicked(e: &JoinError) -> Failure {
    super::panicked("a declared container's namespace", e)
}

/// A directory with namespace files of declared containers.
struct Folder {
    /// Something in it may have changed since the last look.
    is_due: bool,
    /// A look is under way.
    is_busy: bool,
    /// When it was last looked at.
    looked: Option<Instant>,
    /// The watch for it; `None` when the kernel refuses one.
    watched: Option<Watched>,
    /// Changes in it are not reported.
    is_blind: bool,
}

/// The result of a look at a directory.
struct Looked {
    folder: PathBuf,
    watched: io::Result<Watched>,
    found: Vec<(ContainerName, PathBuf, Place)>,
}

/// The result of attaching a container.
struct Worked {
    name: ContainerName,
    ended: Ended,
}

enum Ended {
    /// Its links lead into this namespace.
    Attached(Option<NetnsId>),
    /// It could not be attached.
    Failed(Failure),
    /// Its links exist, but it could not be checked where they lead.
    NotCompared,
    /// The namespace is gone.
    Gone,
}

struct Service {
    watch: Arc<PathWatch>,
    commands: Commands,
    device: Arc<Device>,
    awaited: Arc<BTreeMap<ContainerName, Awaited>>,
    containers: BTreeMap<ContainerName, Memory>,
    places: BTreeMap<PathBuf, Folder>,
    /// Watches that may not be needed any more.
    stale: BTreeSet<Watched>,
    looks: JoinSet<Looked>,
    work: JoinSet<Worked>,
    turn: Arc<Semaphore>,
}

impl Service {
    fn new(watch: PathWatch, commands: Commands) -> Self {
        Self {
            watch: Arc::new(watch),
            commands,
            device: Arc::default(),
            awaited: Arc::default(),
            containers: BTreeMap::new(),
            places: BTreeMap::new(),
            stale: BTreeSet::new(),
            looks: JoinSet::new(),
            work: JoinSet::new(),
            turn: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Takes over what is declared in a new snapshot.
    fn follow(&mut self, snapshot: &Snapshot) {
        if !Arc::ptr_eq(&self.device, &snapshot.device) {
            self.device = snapshot.device.clone();
            self.containers.values_mut().for_each(Memory::hope);
        }
        if Arc::ptr_eq(&self.awaited, &snapshot.awaited) {
            return;
        }
        self.awaited = snapshot.awaited.clone();
        self.containers.retain(|name, _| snapshot.awaited.contains_key(name));
        let mut folders = BTreeSet::new();
        for (name, awaited) in &*snapshot.awaited {
            let Some(folder) = awaited.path.parent() else { continue };
            folders.insert(folder);
            let mut is_new = false;
            let new = || {
                is_new = true;
                Memory::new(awaited.clone())
            };
            let memory = self.containers.entry(name.clone()).or_insert_with(new);
            is_new |= memory.awaited.path != awaited.path;
            memory.follow(awaited);
            let unknown = || Folder { is_due: true, is_busy: false, looked: None, watched: None, is_blind: false };
            self.places.entry(folder.to_owned()).or_insert_with(unknown).is_due |= is_new;
        }
        let stale = &mut self.stale;
        self.places.retain(|folder, place| {
            let stays = folders.contains(folder.as_path());
            stale.extend(place.watched.filter(|_| !stays));
            stays
        });
    }

    /// Starts looks at the directories where one is due.
    fn look(&mut self) {
        let now = Instant::now();
        for (folder, place) in &mut self.places {
            if place.is_busy || !place.is_ripe(now) {
                continue;
            }
            (place.is_due, place.is_busy, place.looked) = (false, true, Some(now));
            let here = self.containers.iter().filter(|(_, memory)| memory.awaited.path.parent() == Some(folder));
            let wanted = here.map(|(name, memory)| (name.clone(), memory.awaited.path.clone(), memory.namespace()));
            let wanted = wanted.collect();
            self.looks.spawn(look(self.watch.clone(), folder.clone(), wanted));
        }
    }

    fn note_look(&mut self, looked: Looked) {
        let Looked { folder, watched, found } = looked;
        let now = Instant::now();
        for (name, path, place) in found {
            // A reload may have changed the path since.
            if let Some(memory) = self.containers.get_mut(&name).filter(|memory| memory.awaited.path == path) {
                memory.see(place, now);
            }
        }
        let place = self.places.get_mut(&folder);
        match (place, watched) {
            (Some(place), Ok(watched)) => {
                (place.is_busy, place.is_blind) = (false, false);
                self.stale.extend(place.watched.replace(watched));
            }
            (Some(place), Err(e)) => {
                if !place.is_blind {
                    let folder = folder.display();
                    tracing::warn!(%folder, error = %e, "not watched for namespaces: looked at each second instead");
                }
                (place.is_busy, place.is_blind) = (false, true);
            }
            (None, watched) => self.stale.extend(watched),
        }
        // A look that is still under way may just have started to use one of the watches.
        if self.looks.is_empty() {
            let kept = self.places.values().filter_map(|place| place.watched).collect();
            self.watch.forget(&std::mem::take(&mut self.stale), &kept);
        }
    }

    /// Starts what has to be done for each container. Returns when to look again.
    async fn act(&mut self, snapshot: &Snapshot) -> Instant {
        let now = Instant::now();
        let idle = self.places.values().filter(|place| !place.is_busy);
        let mut wake = idle.map(Folder::ripe_at).min().unwrap_or(now + AUDIT);
        for (name, memory) in &mut self.containers {
            let Some(status) = snapshot.container(name).filter(|_| !memory.is_busy) else { continue };
            let links = match memory.next(&status.phase, now) {
                Next::Rest => continue,
                Next::Wait(until) => {
                    wake = wake.min(until);
                    continue;
                }
                Next::Clear => {
                    memory.is_told = false;
                    self.commands.report(Report::NamespaceGone { name: name.clone() }).await;
                    continue;
                }
                Next::Compare(links) => links,
                Next::Attach => Vec::new(),
            };
            memory.is_busy = true;
            let is_file = memory.namespace().is_none();
            let (commands, turn) = (self.commands.clone(), self.turn.clone());
            let (name, path) = (name.clone(), memory.awaited.path.clone());
            self.work.spawn(async move {
                let _turn = turn.acquire().await;
                let ended = attach(&commands, &name, path, &links, is_file).await;
                Worked { name, ended }
            });
        }
        wake
    }

    fn note_work(&mut self, worked: Worked, snapshot: &Snapshot) {
        let Worked { name, ended } = worked;
        let Some(memory) = self.containers.get_mut(&name) else { return };
        memory.is_busy = false;
        let now = Instant::now();
        match ended {
            Ended::Attached(id) => memory.settle(id, now),
            Ended::Failed(failure) if failure.kind == Kind::Conflict && is_whole(snapshot.container(&name)) => {
                tracing::debug!(container = %name, why = %failure, "attached by somebody else");
                memory.settle(memory.namespace(), now);
            }
            Ended::Failed(failure) => {
                tracing::warn!(container = %name, error = %failure, "declared container not attached: tried again later");
                memory.is_told = true;
                memory.fail(now);
            }
            Ended::NotCompared => memory.fail(now),
            Ended::Gone => {
                let folder = memory.awaited.path.parent().map(Path::to_owned);
                if let Some(place) = folder.and_then(|folder| self.places.get_mut(&folder)) {
                    place.is_due = true;
                }
                memory.fail(now);
            }
        }
    }
}

impl Folder {
    /// When the next look is due.
    fn ripe_at(&self) -> Instant {
        let Some(looked) = self.looked else { return Instant::now() };
        looked
            + match (self.is_due, self.is_blind) {
                (true, _) => CALM,
                (false, true) => BLIND,
                (false, false) => AUDIT,
            }
    }

    fn is_ripe(&self, now: Instant) -> bool {
        self.looked.is_none() || self.ripe_at() <= now
    }
}

fn is_whole(container: Option<&Arc<ContainerStatus>>) -> bool {
    container.and_then(|c| c.attached()).is_some_and(Attached::is_whole)
}

/// Looks what is at each of the `wanted` paths in `folder`, on a thread of its own, since the file system may not
/// answer. The directory is watched first, so that later changes are reported.
async fn look(
    watch: Arc<PathWatch>,
    folder: PathBuf,
    wanted: Vec<(ContainerName, PathBuf, Option<NetnsId>)>,
) -> Looked {
    let (send, receive) = oneshot::channel();
    let name = folder.clone();
    let work = move || {
        let watched = watch.watch(&folder);
        let mut found = Vec::with_capacity(wanted.len());
        for (name, path, known) in wanted {
            let place = netns::look(&path, known);
            found.push((name, path, place));
        }
        // An error means that the daemon is stopping.
        let _ = send.send(Looked { folder, watched, found });
    };
    let begun = std::thread::Builder::new().name("netns".to_owned()).spawn(work);
    let failed = |e: io::Error| Looked { folder: name, watched: Err(e), found: Vec::new() };
    match begun {
        Ok(_) => receive.await.unwrap_or_else(|_| failed(io::Error::other("the thread that looks has failed"))),
        Err(e) => failed(e),
    }
}

async fn leads_there(links: &[u32], netns: &Netns) -> Result<bool, NetError> {
    has_end_of(&Net::here()?, links, netns).await
}

/// Attaches a container whose namespace is the file `path`, unless its `links` lead there already. `is_file`: the file
/// has been there for long without being a namespace.
async fn attach(commands: &Commands, name: &ContainerName, path: PathBuf, links: &[u32], is_file: bool) -> Ended {
    let shown = path.display().to_string();
    let reference = NetnsRef::Path(path);
    let netns = commands.open(&reference).await;
    let id = match &netns {
        Ok(netns) if !links.is_empty() => match leads_there(links, netns).await {
            Ok(true) => return Ended::Attached(Some(netns.id())),
            Ok(false) => Some(netns.id()),
            Err(e) => {
                tracing::debug!(container = %name, error = %e, "not known whether its links lead into its namespace");
                return Ended::NotCompared;
            }
        },
        Ok(netns) => Some(netns.id()),
        Err(e) if e.is_absent() => return Ended::Gone,
        Err(netns::NetnsError::NotNetns { .. }) if !is_file => return Ended::Gone,
        Err(_) => None,
    };
    match commands.attach_declared(name.clone(), Prepared { reference, netns }).await {
        Ok(_) => {
            tracing::info!(container = %name, namespace = shown, "attached: its namespace is there");
            Ended::Attached(id)
        }
        Err(failure) => Ended::Failed(failure),
    }
}
