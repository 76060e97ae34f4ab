//! What is wrong with containers, each with the interface that it is about, so that it ends with its cause.

use super::Daemon;
use crate::model::{ContainerName, IfName};
use std::collections::BTreeMap;

/// A condition of a container.
#[derive(Clone, Debug)]
struct Condition {
    /// The host-side link of the interface that it is about; `None` when it is about the whole container.
    host_if: Option<IfName>,
    why: String,
}

/// The conditions of all containers.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions(BTreeMap<ContainerName, Vec<Condition>>);

impl Conditions {
    /// Notes a condition of a container, about the interface with this host-side link.
    pub(super) fn note(&mut self, container: &ContainerName, host_if: Option<&IfName>, why: String) {
        let condition = Condition { host_if: host_if.cloned(), why };
        self.0.entry(container.clone()).or_default().push(condition);
    }

    /// Those of one container.
    pub(super) fn of(&self, container: &ContainerName) -> impl Iterator<Item = &String> {
        self.0.get(container).into_iter().flatten().map(|condition| &condition.why)
    }

    /// Those of all containers.
    pub(super) fn all(&self) -> impl Iterator<Item = (&ContainerName, &String)> {
        self.0.iter().flat_map(|(name, all)| all.iter().map(move |condition| (name, &condition.why)))
    }

    /// Removes one.
    pub(super) fn forget(&mut self, container: &ContainerName, why: &str) {
        if let Some(all) = self.0.get_mut(container) {
            all.retain(|condition| condition.why != why);
        }
    }

    /// Removes all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Removes and returns those of one container; with `host_if` only those about that interface.
    fn take(&mut self, container: &ContainerName, host_if: Option<&IfName>) -> Vec<String> {
        let Some(all) = self.0.get_mut(container) else { return Vec::new() };
        let is_over = |c: &Condition| host_if.is_none() || c.host_if.as_ref() == host_if;
        let (over, stay): (Vec<_>, Vec<_>) = std::mem::take(all).into_iter().partition(is_over);
        *all = stay;
        if all.is_empty() {
            self.0.remove(container);
        }
        over.into_iter().map(|condition| condition.why).collect()
    }
}

impl Daemon {
    /// Removes what is said about addresses that interfaces of a container lack; with `host_if` only of that one.
    pub(super) fn gets_all(&mut self, container: &ContainerName, host_if: Option<&IfName>) {
        if let Some(lacks) = self.lacks.get_mut(container) {
            lacks.retain(|of, _| host_if.is_some_and(|host_if| of != host_if));
            if lacks.is_empty() {
                self.lacks.remove(container);
            }
        }
    }

    /// Removes the conditions of a container that is attached completely now, or is gone; with `host_if` only those
    /// about that interface. Failed steps among them do not count as failed any longer.
    pub(super) fn conditions_are_over(&mut self, container: &ContainerName, host_if: Option<&IfName>) {
        let over = self.container_conditions.take(container, host_if);
        self.failed_steps.retain(|why| !over.contains(why));
        self.gets_all(container, host_if);
        self.misfits.retain(|link, (of, _)| of != container || host_if.is_some_and(|host_if| host_if != link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_end_with_their_interface() {
        let name = |name: &str| name.parse::<ContainerName>().expect("name");
        let link = |name: &str| name.parse::<IfName>().expect("name");
        let mut all = Conditions::default();
        all.note(&name("web"), Some(&link("pvweb-1")), "one".to_owned());
        all.note(&name("web"), Some(&link("pvweb-2")), "two".to_owned());
        all.note(&name("web"), None, "whole".to_owned());
        all.note(&name("db"), Some(&link("pvdb-1")), "other".to_owned());
        assert_eq!(all.take(&name("web"), Some(&link("pvweb-2"))), ["two"]);
        assert_eq!(all.of(&name("web")).collect::<Vec<_>>(), ["one", "whole"]);
        assert_eq!(all.take(&name("web"), None), ["one", "whole"]);
        assert_eq!(all.all().map(|(_, why)| why).collect::<Vec<_>>(), ["other"]);
    }
}
