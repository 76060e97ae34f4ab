//! The differences between a snapshot and the one before, as events. Pure.

use super::Change;
use crate::model::{Attachment, ContainerName};
use crate::snapshot::{ContainerStatus, Snapshot};
use std::sync::Arc;

/// A change: its kind, its container (`None`: the device), and its text: the condition or the interface that it is about.
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
    if let (Some(was), Some(is)) =
        (before.and_then(ContainerStatus::attached), after.and_then(ContainerStatus::attached))
    {
        of_interfaces(name, &was.record.attachments, &is.record.attachments, all);
    }
    let conditions = |c: Option<&ContainerStatus>| c.map(|c| c.conditions.clone()).unwrap_or_default();
    of_conditions(&conditions(before), &conditions(after), Some(name), all);
}

fn of_interfaces(name: &ContainerName, before: &[Attachment], after: &[Attachment], all: &mut Vec<Changed>) {
    let has = |list: &[Attachment], a: &Attachment| list.iter().any(|other| other.interface == a.interface);
    let mut add = |change, a: &Attachment| all.push((change, Some(name.clone()), Some(a.interface.to_string())));
    after.iter().filter(|a| !has(before, a)).for_each(|a| add(Change::InterfaceAttached, a));
    before.iter().filter(|a| !has(after, a)).for_each(|a| add(Change::InterfaceDetached, a));
}

fn of_conditions(before: &[String], after: &[String], container: Option<&ContainerName>, all: &mut Vec<Changed>) {
    let mut add = |change, text: &String| all.push((change, container.cloned(), Some(text.clone())));
    after.iter().filter(|text| !before.contains(text)).for_each(|text| add(Change::Condition, text));
    before.iter().filter(|text| !after.contains(text)).for_each(|text| add(Change::ConditionCleared, text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::store::ContainerRecord;
    use crate::snapshot::{Attached, Phase};

    /// Container `web` with these interfaces; all of its links exist.
    fn web(interfaces: &[&str]) -> ContainerStatus {
        let attachment = |name: &&str| Attachment {
            container: "web".parse().expect("name"),
            interface: name.parse().expect("name"),
            pool: "p".parse().expect("name"),
            host_if: format!("pv{name}").parse().expect("name"),
            mac: "02:00:0a:00:03:07".parse().expect("MAC"),
            ipv4: None,
            ipv6: None,
            default_route: None,
            network: None,
        };
        let attachments: Vec<Attachment> = interfaces.iter().map(attachment).collect();
        let links = (0..).zip(&attachments).map(|(index, _)| Some(index)).collect();
        let record = Arc::new(ContainerRecord { attachments, ..ContainerRecord::default() });
        let attached = Attached {
            identity: 1,
            record,
            links,
            pairs: Vec::new(),
            aliases: Vec::new(),
            ports: Vec::new(),
            inactive: Vec::new(),
        };
        ContainerStatus {
            name: "web".parse().expect("name"),
            phase: Phase::Attached(attached),
            is_startable: false,
            conditions: Vec::new(),
        }
    }

    #[test]
    fn interfaces_that_come_and_go_are_changes_of_their_own() {
        let changes = |before: Option<&[&str]>, after: Option<&[&str]>| {
            let mut all = Vec::new();
            of_container(before.map(web).as_ref(), after.map(web).as_ref(), &mut all);
            all.into_iter().map(|(change, _, text)| (change, text.unwrap_or_default())).collect::<Vec<_>>()
        };
        let (one, two) = (Some(&["eth0"][..]), Some(&["eth0", "eth1"][..]));
        assert_eq!(changes(one, two), [(Change::InterfaceAttached, "eth1".to_owned())]);
        assert_eq!(changes(two, one), [(Change::InterfaceDetached, "eth1".to_owned())]);
        assert_eq!(changes(None, two), [(Change::Attached, String::new())]);
        assert_eq!(changes(two, None), [(Change::Detached, String::new())]);
        assert_eq!(changes(two, two), []);
    }
}
