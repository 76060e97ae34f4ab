//! The maps of the uplinks' filter (XDP).

use super::BpfError;
use super::table::{Access, Single, Trie};
use pv_net_common::{FilterRate, FilterSource, names};
use std::path::Path;

/// The maps.
pub(super) struct Filter {
    /// Prefixes of sources to drop, with the number of the drop reason.
    pub sources: Trie<FilterSource, u32>,
    /// How much each source may send.
    pub rate: Single<FilterRate>,
}

impl Filter {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            sources: Trie::open(maps, names::MAP_FILTER_SOURCES)?,
            rate: Single::open(maps, names::MAP_FILTER_RATE, Access::Write)?,
        })
    }
}
