//! Which maps an upgrade keeps.

use crate::{ABI_VERSION, names};

/// The [`ABI_VERSION`] that brought the present layout of a pinned map: with it, and with every later one, what is in the
/// map means the same. A new daemon keeps such a map of an older one with all that is in it, and makes the others anew.
///
/// Whoever changes what a map holds raises [`ABI_VERSION`], and sets the map's number here to it. `config` is the one
/// that may grow without: a field that is new at its end is zero after an upgrade, and what was there is copied.
#[must_use]
pub fn layout_since(map: &str) -> u32 {
    match map {
        names::MAP_HALF_OPEN | names::MAP_PORT_MAP => 7,
        _ => 6,
    }
}

/// Maps that one number of `config`, the generation of the rules, speaks of: they are kept together or not at all.
pub const TOGETHER: [&str; 4] =
    [names::MAP_CONFIG, names::MAP_POLICY_IDS, names::MAP_POLICY_CIDRS, names::MAP_POLICY_PAIRS];

/// Counts of what is in `flows`: they begin anew with it.
pub const COUNTS_OF_FLOWS: [&str; 2] = [names::MAP_FLOW_COUNTS, names::MAP_FLOW_LIMITS];

/// Which of the pinned maps an upgrade makes anew. `abi` is the layout of those that are there, none when it is not
/// known, and `fits` says whether a map is there and of the kind and sizes that it has now.
pub fn made_anew(abi: Option<u32>, fits: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    // Nobody knows here what a later version has changed.
    let known = abi.filter(|abi| *abi <= ABI_VERSION);
    let same = move |map: &str| known.is_some_and(|abi| layout_since(map) <= abi) && fits(map);
    // The numbers in it are those of one daemon: programs of another layout keep theirs until they are replaced.
    let config = known == Some(ABI_VERSION) && TOGETHER.iter().all(|map| same(map));
    // Flows are stamped with numbers of `config`, and those go on only when it can be read.
    let numbered = known.is_some_and(|abi| layout_since(names::MAP_CONFIG) <= abi);
    let flows = same(names::MAP_FLOWS);
    names::MAPS.into_iter().filter(move |map| {
        let kept =
            numbered && same(map) && (config || !TOGETHER.contains(map)) && (flows || !COUNTS_OF_FLOWS.contains(map));
        !kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn anew(abi: Option<u32>, misfit: &[&str]) -> Vec<&'static str> {
        made_anew(abi, |map| !misfit.contains(&map)).collect()
    }

    #[test]
    fn no_layout_is_of_the_future() {
        for map in names::MAPS {
            assert!(layout_since(map) <= ABI_VERSION, "{map}");
        }
    }

    #[test]
    fn maps_of_the_same_layout_stay() {
        assert!(anew(Some(ABI_VERSION), &[]).is_empty());
    }

    #[test]
    fn what_is_not_known_is_made_anew() {
        assert_eq!(anew(None, &[]), names::MAPS);
        assert_eq!(anew(Some(ABI_VERSION + 1), &[]), names::MAPS);
        assert_eq!(anew(Some(0), &[]), names::MAPS);
    }

    #[test]
    fn an_older_layout_takes_along_the_rules() {
        let anew = anew(Some(ABI_VERSION - 1), &[]);
        for map in names::MAPS {
            let changed = layout_since(map) == ABI_VERSION || TOGETHER.contains(&map);
            assert_eq!(anew.contains(&map), changed, "{map}");
        }
    }

    #[test]
    fn one_that_does_not_fit_goes_alone_but_for_what_belongs_to_it() {
        assert_eq!(anew(Some(ABI_VERSION), &[names::MAP_INTERFACES]), [names::MAP_INTERFACES]);
        let mut with_rules = anew(Some(ABI_VERSION), &[names::MAP_POLICY_PAIRS]);
        with_rules.sort_unstable();
        let mut together = TOGETHER;
        together.sort_unstable();
        assert_eq!(with_rules, together);
        let flows = anew(Some(ABI_VERSION), &[names::MAP_FLOWS]);
        assert_eq!(flows, [names::MAP_FLOWS, names::MAP_FLOW_COUNTS, names::MAP_FLOW_LIMITS]);
    }
}
