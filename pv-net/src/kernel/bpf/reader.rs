//! Reads the maps that programs write, without asking the controller: through handles of its own that the kernel allows
//! to read but not to write.

use super::clock::Clock;
use super::flows::{FlowRecord, FlowState};
use super::table::{Access, Counters, Single, Table, map_error, pinned};
use super::{BpfError, pin};
use crate::model::XdpMode;
use aya::maps::{MapData, RingBuf};
use pv_net_common::{
    DropReason, FlowCount, FlowEntry, FlowKey, FlowLimit, GlobalConfig, HalfOpenFlow, InterfaceInfo, LinkId, Stat,
    names,
};
use std::path::{Path, PathBuf};

/// Read-only access to flows, counters and whatever else the API shows of the maps. It is valid as long as the same
/// maps are pinned.
pub struct Reader {
    pin_dir: PathBuf,
    clock: Clock,
    config: Single<GlobalConfig>,
    flows: Table<FlowKey, FlowEntry>,
    half_open: Table<FlowKey, HalfOpenFlow>,
    counts: Table<u32, FlowCount>,
    limits: Table<u32, FlowLimit>,
    interfaces: Table<LinkId, InterfaceInfo>,
    drops: Counters,
    stats: Counters,
}

impl Reader {
    /// Opens the maps pinned under `pin_dir`.
    ///
    /// # Errors
    /// When a map or the program `pv_clock` is missing, or a map has another layout.
    pub fn open(pin_dir: &Path) -> Result<Self, BpfError> {
        let maps = pin::maps_dir(pin_dir);
        let config = Single::open(&maps, names::MAP_CONFIG, Access::Read)?;
        Ok(Self {
            pin_dir: pin_dir.to_owned(),
            clock: Clock::open(pin_dir, &config)?,
            config,
            flows: Table::open(&maps, names::MAP_FLOWS, Access::Read)?,
            half_open: Table::open(&maps, names::MAP_HALF_OPEN, Access::Read)?,
            counts: Table::open(&maps, names::MAP_FLOW_COUNTS, Access::Read)?,
            limits: Table::open(&maps, names::MAP_FLOW_LIMITS, Access::Read)?,
            interfaces: Table::open(&maps, names::MAP_INTERFACES, Access::Read)?,
            drops: Counters::open(&maps, names::MAP_DROPS)?,
            stats: Counters::open(&maps, names::MAP_STATS)?,
        })
    }

    /// The directory of the pins.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The policy generation in force.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn generation(&self) -> Result<u32, BpfError> {
        Ok(self.config.get()?.generation)
    }

    /// Every direction of every flow. The time grows with the number of flows, so call this on a thread that may block.
    ///
    /// # Errors
    /// When the kernel refuses to run `pv_clock` or to read a map.
    pub fn flows(&self) -> Result<Vec<FlowRecord>, BpfError> {
        let ticks = self.clock.ticks(&self.config)?;
        let record = |key, entry: FlowEntry, state| FlowRecord { key, entry, age_secs: ticks.age_secs(&entry), state };
        let established = self.flows.entries().into_iter();
        let mut records: Vec<_> =
            established.map(|(key, entry)| record(key, entry, FlowState::of_entry(&entry))).collect();
        for (_, flow) in self.half_open.entries() {
            let key = flow.origin;
            // An established flow may still have its half-open entry, until the LRU reuses it.
            if self.flows.get(&key)?.is_none() {
                records.push(record(key, flow.forward, FlowState::of_phase(flow.phase)));
            }
        }
        Ok(records)
    }

    /// The number of flows that count for the container behind link `index`, and how many it may have.
    #[must_use]
    pub fn flow_use(&self, index: u32) -> Option<(u64, u32)> {
        let freed = self.limits.get(&index).ok()?.unwrap_or_default().freed;
        let live = self.counts.get(&index).ok()??.live(freed);
        let info = self.interfaces.get(&LinkId::of_index(index)).ok()??;
        Some((u64::try_from(live).unwrap_or_default(), info.max_flows))
    }

    /// Dropped packets by drop reason.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>, BpfError> {
        DropReason::ALL.iter().map(|r| Ok((*r, self.drops.sum(*r as u32)?))).collect()
    }

    /// Packets by path.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn stats(&self) -> Result<Vec<(Stat, u64)>, BpfError> {
        Stat::ALL.iter().map(|s| Ok((*s, self.stats.sum(*s as u32)?))).collect()
    }

    /// Indexes of uplinks that have the filter, with its mode.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn filtered_uplinks(&self) -> Result<Vec<(u32, XdpMode)>, BpfError> {
        pin::filtered_uplinks(&self.pin_dir)
    }
}

/// The ring buffer of the programs' events. A reader takes records out of it, so there may be only one reader at a
/// time.
///
/// # Errors
/// When the map is not pinned under `pin_dir`, or has another layout.
pub fn kernel_events(pin_dir: &Path) -> Result<RingBuf<MapData>, BpfError> {
    let name = names::MAP_EVENTS;
    RingBuf::try_from(pinned(&pin::maps_dir(pin_dir), name)?).map_err(map_error("open", name))
}
