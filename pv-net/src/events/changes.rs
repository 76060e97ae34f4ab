//! The differences between a snapshot and the one before, as events. Pure.

use super::Change;
use crate::model::ContainerName;
use crate::snapshot::{ContainerStatus, Snapshot};
use std::sync::Arc;

/// A change: its kind, its container (`None`: the device), and its condition if it is about one.
pub(crate) type Changed = (Change, Option<ContainerName>, Option<String>);

/// All changes, in the order of the containers' names, the device last.
#[must_use]
pub fn changes(before: &Snapshot, after: &Snapshot) -> Vec<Changed> {
    let mut all = Vec::new();
    let mut old = before.containers.iter().peekable();
    for new in &*after.containers {
        while let Some(gone) = old.next_if(|c| c.name < new.name) {
            of_container(Some(gone), None, &mut all);
        }
        let was = old.next_if(|c| c.name == new.name);
        if !was.is_some_and(|was| Arc::ptr_eq(was, new)) {
            of_container(was.map(|c| &**c), Some(new), &mut all);
        }
    }
    old.for_each(|gone| of_container(Some(gone), None, &mut all));
    if !Arc::ptr_eq(&before.device, &after.device) {
        all.push((Change::Reloaded, None, None));
    }
    if !Arc::ptr_eq(&before.conditions, &after.conditions) {
        of_conditions(&before.conditions, &after.conditions, None, &mut all);
    }
    all
}

fn of_container(before: Option<&ContainerStatus>, after: Option<&ContainerStatus>, all: &mut Vec<Changed>) {
    let Some(name) = after.or(before).map(|c| &c.name) else { return };
    // Compared: whether the container is attached, and whether all of its links exist.
    let state = |c: Option<&ContainerStatus>| {
        c.and_then(ContainerStatus::attached).map(|a| a.links.iter().all(Option::is_some))
    };
    let change = match (state(before), state(after)) {
        (None | Some(false), Some(true)) => Some(Change::Attached),
        (Some(true), Some(false)) => Some(Change::LinkLost),
        (Some(_), None) => Some(Change::Detached),
        _ => None,
    };
    all.extend(change.map(|change| (change, Some(name.clone()), None)));
    let conditions = |c: Option<&ContainerStatus>| c.map(|c| c.conditions.clone()).unwrap_or_default();
    of_conditions(&conditions(before), &conditions(after), Some(name), all);
}

fn of_conditions(before: &[String], after: &[String], container: Option<&ContainerName>, all: &mut Vec<Changed>) {
    let mut add = |change, text: &String| all.push((change, container.cloned(), Some(text.clone())));
    after.iter().filter(|text| !before.contains(text)).for_each(|text| add(Change::Condition, text));
    before.iter().filter(|text| !after.contains(text)).for_each(|text| add(Change::ConditionCleared, text));
}
