//! Declared containers that are started by somebody else. The daemon's side of the service that attaches them when
//! their namespace exists: which ones there are, and which must not be attached.

use super::{Daemon, Paths};
use crate::command::{AttachRequest, Halt, Prepared};
use crate::failure::{Failure, Kind};
use crate::kernel::errand::{Errand, Found};
use crate::kernel::kill_point;
use crate::kernel::netns::NetnsId;
use crate::model::{ContainerName, NetnsRef};
use crate::snapshot::{Awaited, share};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The declared containers that are attached when their namespace exists.
#[derive(Clone)]
pub(super) struct Waiting {
    /// In the form that snapshots have.
    all: Arc<BTreeMap<ContainerName, Awaited>>,
    /// Those that were detached by hand, each with the namespace that it had then.
    detached: BTreeMap<ContainerName, NetnsId>,
    /// The file in which these are stored.
    file: PathBuf,
    /// Why a container is not attached although its namespace exists.
    failures: BTreeMap<ContainerName, String>,
}

impl Waiting {
    /// Reads what an earlier daemon stored since the last boot.
    pub(super) fn load(paths: &Paths) -> Self {
        let file = paths.detached();
        let detached = match read(&file) {
            Ok(detached) => detached,
            Err(e) => {
                let file = file.display();
                tracing::warn!(%file, error = %e, "containers that were detached may be attached again: file not read");
                BTreeMap::new()
            }
        };
        Self { all: Arc::default(), detached, file, failures: BTreeMap::new() }
    }

    /// All declared containers, in the form that snapshots have.
    pub(super) fn all(&self) -> Arc<BTreeMap<ContainerName, Awaited>> {
        self.all.clone()
    }

    /// Why `name` is not attached although its namespace exists.
    pub(super) fn failure(&self, name: &ContainerName) -> Option<&String> {
        self.failures.get(name)
    }

    /// Stores in which namespace `name` was detached; `None` deletes that.
    fn set_detached(&mut self, name: &ContainerName, netns: Option<NetnsId>) {
        let before = match netns {
            Some(id) => self.detached.insert(name.clone(), id),
            None => self.detached.remove(name),
        };
        if before == netns {
            return;
        }
        if let Some(awaited) = Arc::make_mut(&mut self.all).get_mut(name) {
            awaited.detached_in = netns;
        }
        if let Err(e) = write(&self.file, &self.detached) {
            // The running daemon knows it even without the file.
            tracing::warn!(file = %self.file.display(), error = %e, "not written down which containers were detached");
        }
    }
}

/// Reads the file; a missing one is an empty list.
fn read(file: &Path) -> io::Result<BTreeMap<ContainerName, NetnsId>> {
    match std::fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(e),
    }
}

/// Replaces the file in one step, so that a daemon that is killed leaves the old or the new one. It is not synced: its
/// contents mean nothing after a reboot.
fn write(file: &Path, detached: &BTreeMap<ContainerName, NetnsId>) -> io::Result<()> {
    let new = file.with_extension("json.new");
    kill_point::pass();
    std::fs::write(&new, serde_json::to_vec(detached)?)?;
    kill_point::pass();
    std::fs::rename(&new, file)
}

impl Daemon {
    /// Updates the list of declared containers that are attached when their namespace exists.
    pub(super) fn await_declared(&mut self) {
        let awaited = |name: &ContainerName, declared: &super::Declaration| {
            let container = &declared.container;
            let path = container.netns.clone().filter(|_| !container.interfaces.is_empty())?;
            Some(Awaited {
                path,
                run: declared.text.as_str().into(),
                detached_in: self.awaited.detached.get(name).copied(),
            })
        };
        let all = self.declared.iter().filter_map(|(name, declared)| Some((name.clone(), awaited(name, declared)?)));
        self.awaited.all = share(&self.awaited.all, all.collect());
        let all = &self.awaited.all;
        self.awaited.failures.retain(|name, _| all.contains_key(name));
    }

    /// Attaches a declared container whose namespace exists, unless it was detached by hand in that namespace. A
    /// failure is a condition of the container until it is attached or its namespace goes.
    ///
    /// # Errors
    /// The failure; links, maps and leases are then as before. Or the errands whose results must be in `found`.
    pub(super) async fn attach_declared(
        &mut self,
        name: &ContainerName,
        prepared: &Prepared,
        found: &Found,
    ) -> Result<(), Halt> {
        let awaited = self.awaited.all.get(name);
        // A reload may have changed the container since the service looked.
        let Some(awaited) = awaited.filter(|a| prepared.reference == NetnsRef::Path(a.path.clone())) else {
            return Ok(());
        };
        // It may have been detached since then.
        if prepared.netns.as_ref().is_ok_and(|netns| awaited.detached_in == Some(netns.id())) {
            return Ok(());
        }
        let done = self.attach(name, &AttachRequest::default(), Ok(prepared), found).await;
        match &done {
            Ok(()) => self.is_attached(name),
            Err(Halt::Needs(_)) => {}
            // Somebody else has attached it in another way meanwhile.
            Err(Halt::Failed(failure)) if failure.kind == Kind::Conflict && self.has_all_links(name) => {
                self.awaited.failures.remove(name);
            }
            Err(Halt::Failed(failure)) => {
                let line = failure.line();
                let why = line.strip_prefix(&format!("container {name}: ")).unwrap_or(&line);
                self.awaited
                    .failures
                    .insert(name.clone(), format!("its namespace is there, but it is not attached: {why}"));
            }
        }
        done
    }

    /// Whether the container could not be attached although its namespace exists, so that it would be tried again.
    pub(super) fn is_tried_again(&self, name: &ContainerName) -> bool {
        self.awaited.failures.contains_key(name)
    }

    /// The path of a declared container's namespace.
    pub(super) fn place_of(&self, name: &ContainerName) -> Option<NetnsRef> {
        self.awaited.all.get(name).map(|awaited| NetnsRef::Path(awaited.path.clone()))
    }

    fn has_all_links(&self, name: &ContainerName) -> bool {
        let record = self.state.containers.get(name);
        record.is_some_and(|r| r.attachments.iter().all(|a| self.link_index(&a.host_if).is_some()))
    }

    /// Called when a container is attached, by whomever: what was wrong with it is right now. For example, the
    /// start may have found links of its last namespace that the kernel was just deleting.
    pub(super) fn is_attached(&mut self, name: &ContainerName) {
        self.conditions_are_over(name, None);
        self.awaited.failures.remove(name);
        self.awaited.set_detached(name, None);
    }

    /// Called when the namespace of a declared container does not exist, which is no fault.
    pub(super) fn namespace_is_gone(&mut self, name: &ContainerName) {
        self.awaited.failures.remove(name);
    }

    /// Called before a container is detached: it must not be attached again in its present namespace. This is stored
    /// before the detach, so that a daemon that is killed in between does not undo the request.
    ///
    /// # Errors
    /// When it cannot be told which namespace that is, since the container would then be attached again at once. Or an
    /// errand for it, whose result must be in `found`.
    pub(super) fn stays_detached(&mut self, name: &ContainerName, found: &Found) -> Result<(), Halt> {
        let Some(place) = self.place_of(name) else { return Ok(()) };
        let netns = match found.netns(&place) {
            None => return Err(Halt::Needs(vec![Errand::Open(place)])),
            Some(Ok(netns)) => Some(netns.id()),
            Some(Err(e)) if e.is_gone() => None,
            Some(Err(e)) => {
                let failure = Failure::from(e).about(format!("container {name}: it would be attached again"));
                let help = "take its run.json out of the directory of declared containers, and reload";
                return Err(failure.help(help).into());
            }
        };
        self.awaited.failures.remove(name);
        self.awaited.set_detached(name, netns);
        Ok(())
    }

    /// Called when a detach has failed.
    pub(super) fn may_be_attached(&mut self, name: &ContainerName) {
        self.awaited.set_detached(name, None);
    }
}
