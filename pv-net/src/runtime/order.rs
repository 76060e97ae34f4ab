//! In which order containers start: whoever offers a service starts before those that need it. Pure.

use crate::model::ContainerName;
use std::collections::{BTreeMap, BTreeSet};

/// What counts for the order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Services that the container needs.
    pub requires: Vec<String>,
    /// Services that it offers.
    pub offers: Vec<String>,
}

/// For each container those that must run before it starts: all that offer a service that it needs. What it offers itself
/// it need not wait for, and a service that nobody here offers comes from elsewhere.
#[must_use]
pub fn providers(all: &BTreeMap<ContainerName, Needs>) -> BTreeMap<ContainerName, BTreeSet<ContainerName>> {
    let mut offered: BTreeMap<&str, BTreeSet<&ContainerName>> = BTreeMap::new();
    for (name, needs) in all {
        for service in &needs.offers {
            offered.entry(service).or_default().insert(name);
        }
    }
    let of = |(name, needs): (&ContainerName, &Needs)| {
        let services = needs.requires.iter().filter(|service| !needs.offers.contains(service));
        let providers = services.filter_map(|service| offered.get(service.as_str())).flatten();
        (name.clone(), providers.map(|provider| (*provider).clone()).collect())
    };
    all.iter().map(of).collect()
}

/// Takes those of which it is not known what they offer for the providers of every service that nobody else offers.
pub fn suspect(all: &mut BTreeMap<ContainerName, Needs>, unknown: &BTreeSet<ContainerName>) {
    let offered: BTreeSet<&String> = all.values().flat_map(|needs| &needs.offers).collect();
    let required = all.values().flat_map(|needs| &needs.requires);
    let missing: BTreeSet<String> = required.filter(|service| !offered.contains(service)).cloned().collect();
    for (_, needs) in all.iter_mut().filter(|(name, _)| unknown.contains(name)) {
        needs.offers = missing.iter().cloned().collect();
    }
}

/// A circle of containers that wait for each other, from one back to itself, if there is one.
#[must_use]
pub fn circle(providers: &BTreeMap<ContainerName, BTreeSet<ContainerName>>) -> Option<Vec<ContainerName>> {
    // What waits for nobody is taken away until nothing changes. Whatever is left waits for something that is left.
    let mut left: BTreeMap<&ContainerName, BTreeSet<&ContainerName>> =
        providers.iter().map(|(name, before)| (name, before.iter().collect())).collect();
    loop {
        let free: BTreeSet<&ContainerName> =
            left.iter().filter(|(_, before)| before.is_empty()).map(|(name, _)| *name).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
        left.values_mut().for_each(|before| before.retain(|name| !free.contains(name)));
    }
    let mut way = vec![*left.keys().next()?];
    loop {
        let next = *left.get(way.last()?)?.first()?;
        let seen = way.iter().position(|name| *name == next);
        way.push(next);
        if let Some(start) = seen {
            return Some(way.split_off(start).into_iter().cloned().collect());
        }
    }
}

/// The circle in words.
#[must_use]
pub fn in_words(circle: &[ContainerName]) -> String {
    circle.iter().map(ContainerName::as_str).collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(containers: &[(&str, &[&str], &[&str])]) -> BTreeMap<ContainerName, Needs> {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let each = containers.iter().map(|(name, requires, offers)| {
            (name.parse().expect("a name"), Needs { requires: words(requires), offers: words(offers) })
        });
        each.collect()
    }

    #[test]
    fn who_offers_a_service_is_before_who_needs_it() {
        let containers = all(&[
            ("web", &["sql", "cache", "elsewhere"], &["http"]),
            ("db", &[], &["sql"]),
            ("db2", &[], &["sql"]),
            ("memory", &["sql", "cache"], &["cache"]),
        ]);
        let providers = providers(&containers);
        let of = |name: &str| {
            let names = &providers[&name.parse().expect("a name")];
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("web"), ["db", "db2", "memory"]);
        assert_eq!(of("memory"), ["db", "db2"]);
        assert_eq!(of("db"), [""; 0]);
        assert_eq!(circle(&providers), None);
    }

    #[test]
    fn whoever_may_offer_a_service_is_before_who_needs_it() {
        let mut containers =
            all(&[("db", &[], &["sql"]), ("app", &["sql"], &[]), ("web", &["cache"], &[]), ("wrong", &[], &[])]);
        suspect(&mut containers, &BTreeSet::from(["wrong".parse().expect("a name")]));
        let providers = providers(&containers);
        let of = |name: &str| {
            let names = &providers[&name.parse().expect("a name")];
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!((of("app"), of("web")), (vec!["db".to_owned()], vec!["wrong".to_owned()]));
    }

    #[test]
    fn a_circle_is_named_without_those_that_only_lead_to_it() {
        let containers = all(&[
            ("a", &["s"], &[]),
            ("b", &["q"], &["s"]),
            ("c", &["r"], &["q"]),
            ("d", &["s"], &["r"]),
            ("e", &[], &["x"]),
        ]);
        let found = circle(&providers(&containers)).expect("a circle");
        assert_eq!(in_words(&found), "b → c → d → b");
    }
}
