//! Automatic starts, in the order of their services.

use super::containers::Containers;
use super::marks::Mark;
use crate::config::load::{self, Declared};
use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, Start};
use crate::runtime::order::{self, Needs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

/// How many containers start at the same time.
const AT_ONCE: usize = 4;

/// How far the starts have come.
#[derive(Default)]
struct Progress {
    /// Whether each container that was tried runs.
    ended: BTreeMap<ContainerName, bool>,
    /// How many are being started.
    under_way: usize,
}

/// Starts all containers with `"start": "auto"` that do not run, once each. What does not start is noted as failed, and
/// so is what needs it.
///
/// # Errors
/// When the directory of declared containers cannot be read.
pub(super) fn start(containers: &Containers) -> Result<(), Failure> {
    let declared = load::containers(&containers.paths().containers, containers.paths().form())?;
    let (mut wanted, wrong) = wanted(declared);
    wanted.retain(|name, _| {
        let is_kept = Mark::Stopped.is_on(containers.paths(), name);
        if is_kept {
            tracing::info!(container = %name, "not started: it was stopped by a request");
        }
        !is_kept
    });
    tracing::info!(containers = wanted.len(), "automatic starts");
    let mut providers = order::providers(&wanted);
    let shared = (Mutex::new(Progress::default()), Condvar::new());
    let give_up = |name: &ContainerName, why: &str| {
        let runs = containers.runs(name);
        if !runs {
            containers.note_failed(name, why.to_owned());
        }
        finish(name, runs, &shared);
    };
    // Those with a wrong file and those of a circle are never started. Others that need one of them are told so.
    for (name, why) in &wrong {
        if providers.remove(name).is_some() {
            give_up(name, why);
        }
    }
    let mut waiting = providers.clone();
    // Whoever waits for one that is not among them would hide a circle.
    waiting.values_mut().for_each(|before| before.retain(|name| !wrong.contains_key(name)));
    while let Some(circle) = order::circle(&waiting) {
        let why = format!("it waits for itself: {}", order::in_words(&circle));
        for name in circle.iter().collect::<BTreeSet<_>>() {
            providers.remove(name);
            give_up(name, &why);
        }
        waiting.retain(|name, _| !circle.contains(name));
        waiting.values_mut().for_each(|before| before.retain(|name| !circle.contains(name)));
    }
    std::thread::scope(|scope| {
        for (name, before) in &providers {
            let shared = &shared;
            let one = move || one(containers, name, before, shared);
            if let Err(e) = std::thread::Builder::new().name("pv-net-start".to_owned()).spawn_scoped(scope, one) {
                containers.note_failed(name, format!("no thread for its start: {e}"));
                finish(name, false, shared);
            }
        }
    });
    Ok(())
}

/// The containers with `"start": "auto"`, and what is wrong with the files of some.
fn wanted(declared: Vec<Declared>) -> (BTreeMap<ContainerName, Needs>, BTreeMap<ContainerName, String>) {
    let (mut wanted, mut wrong, mut unknown) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for declared in declared {
        let automatic = match declared.container {
            Ok(container) => {
                let startable = container.startable.filter(|startable| startable.start == Start::Auto);
                startable.map(|startable| (container.name, startable.requires, Vec::new()))
            }
            Err(errors) => named_by(&declared.path, &declared.text).map(|name| (name, Vec::new(), errors)),
        };
        let Some((name, requires, mut errors)) = automatic else { continue };
        let mut needs = Needs { requires, offers: Vec::new() };
        match declared.offers {
            Ok(offers) => needs.offers = offers.into_iter().map(|offer| offer.name).collect(),
            Err(more) => {
                errors.extend(more);
                unknown.insert(name.clone());
            }
        }
        if !errors.is_empty() {
            needs.requires.clear();
            wrong.insert(name.clone(), Failure::from(errors).line());
        }
        wanted.insert(name, needs);
    }
    order::suspect(&mut wanted, &unknown);
    (wanted, wrong)
}

/// The container of a wrong `run.json` that says `"start": "auto"`, by its directory.
fn named_by(file: &Path, text: &str) -> Option<ContainerName> {
    let run: Value = serde_json::from_str(text).ok()?;
    let dir = file.parent()?.file_name()?.to_str()?;
    if run["start"] == json!(Start::Auto) { dir.parse().ok() } else { None }
}

/// Starts a container when all of `before` have come to an end.
fn one(
    containers: &Containers,
    name: &ContainerName,
    before: &BTreeSet<ContainerName>,
    shared: &(Mutex<Progress>, Condvar),
) {
    if containers.runs(name) {
        return finish(name, true, shared);
    }
    let mut progress = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    while progress.under_way >= AT_ONCE || !before.iter().all(|name| progress.ended.contains_key(name)) {
        progress = shared.1.wait(progress).unwrap_or_else(PoisonError::into_inner);
    }
    if let Some(missing) = before.iter().find(|name| progress.ended.get(*name) != Some(&true)) {
        drop(progress);
        containers.note_failed(name, format!("it needs container {missing}, which was not started"));
        return finish(name, false, shared);
    }
    progress.under_way += 1;
    drop(progress);
    let runs = match containers.start(name) {
        Ok(_) => true,
        // It runs already, or somebody else is starting it: a runner that was killed, for instance.
        Err(failure) => {
            failure.kind == Kind::Conflict
                && containers.look_until_settled(name).is_ok_and(|status| status.pid.is_some())
        }
    };
    shared.0.lock().unwrap_or_else(PoisonError::into_inner).under_way -= 1;
    finish(name, runs, shared);
}

fn finish(name: &ContainerName, runs: bool, shared: &(Mutex<Progress>, Condvar)) {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended.insert(name.clone(), runs);
    shared.1.notify_all();
}
