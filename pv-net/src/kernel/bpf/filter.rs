//! The maps that say what XDP on the uplinks drops.

use super::BpfError;
use super::table::{Access, Single, map_error, pinned};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use pv_net_common::{FilterRate, FilterSource, names};
use std::collections::BTreeMap;
use std::path::Path;

/// What is dropped: prefix length in bits, source, and the number of the reason it is counted under.
pub type FilterSources = BTreeMap<(u32, FilterSource), u32>;

/// The maps.
pub(super) struct Filter {
    sources: LpmTrie<MapData, FilterSource, u32>,
    rate: Single<FilterRate>,
}

impl Filter {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let sources = pinned(maps, names::MAP_FILTER_SOURCES)?;
        Ok(Self {
            sources: LpmTrie::try_from(sources).map_err(map_error("open", names::MAP_FILTER_SOURCES))?,
            rate: Single::open(maps, names::MAP_FILTER_RATE, Access::Write)?,
        })
    }

    pub(super) fn set(&mut self, sources: &FilterSources, rate: FilterRate) -> Result<(), BpfError> {
        let name = names::MAP_FILTER_SOURCES;
        let before: FilterSources =
            self.sources.iter().filter_map(Result::ok).map(|(k, v)| ((k.prefix_len(), k.data()), v)).collect();
        // Add before removing: a source that a new prefix holds instead is never let in between.
        for ((bits, source), reason) in sources.iter().filter(|(k, v)| before.get(*k) != Some(*v)) {
            self.sources.insert(&Key::new(*bits, *source), reason, 0).map_err(map_error("write", name))?;
        }
        for (bits, source) in before.keys().filter(|k| !sources.contains_key(*k)) {
            match self.sources.remove(&Key::new(*bits, *source)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(map_error("remove from", name)(e)),
            }
        }
        if self.rate.get()? != rate {
            self.rate.set(rate)?;
        }
        Ok(())
    }
}
