//! Which maps an upgrade keeps, and which it makes anew.

use crate::{ABI_VERSION, names};

/// The [`ABI_VERSION`] in which the pinned map `map` got its present layout: in this version and every later one the
/// map's contents mean the same. A new daemon keeps such a map of an older daemon with its contents, and makes the
/// other maps anew.
///
/// A change of what a map holds must raise [`ABI_VERSION`] and set the map's number here to it. Only `config` may grow
/// without that: its contents are copied, and a new field at its end is zero after an upgrade.
#[must_use]
pub fn layout_since(map: &str) -> u32 {
    match map {
        names::MAP_HALF_OPEN | names::MAP_PORT_MAP => 7,
        names::MAP_NAT_OWNERS => 8,
        _ => 6,
    }
}

/// Maps that are kept together or not at all: the `config` map holds the generation of the policy maps.
pub const TOGETHER: [&str; 4] =
    [names::MAP_CONFIG, names::MAP_POLICY_IDS, names::MAP_POLICY_CIDRS, names::MAP_POLICY_PAIRS];

/// Maps that count the entries of `flows`; when `flows` is made anew, so are they.
pub const COUNTS_OF_FLOWS: [&str; 2] = [names::MAP_FLOW_COUNTS, names::MAP_FLOW_LIMITS];

/// Which of the pinned maps an upgrade makes anew. `abi` is the layout version of the pinned maps, `None` when it is
/// unknown. `fits` says whether a map is pinned and has the type and sizes that this version wants.
pub fn made_anew(abi: Option<u32>, fits: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    // After a downgrade: this version cannot know what a later one has changed.
    let known = abi.filter(|abi| *abi <= ABI_VERSION);
    let same = move |map: &str| known.is_some_and(|abi| layout_since(map) <= abi) && fits(map);
    // The programs of another layout go on using the old `config` until they are replaced, so it is not shared with
    // them.
    let config = known == Some(ABI_VERSION) && TOGETHER.iter().all(|map| same(map));
    // Entries of `flows` carry epochs, which continue only when the old `config` can be read.
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
