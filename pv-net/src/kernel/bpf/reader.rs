//! Reading what the programs write, without a word to the controller: a hold of its own on each map, which the kernel
//! lets read and not write.

use super::clock::Clock;
use super::flows::{FlowRecord, FlowState};
use super::table::{Access, Counters, Single, Table, map_error, pinned};
use super::{BpfError, pin};
use crate::model::XdpMode;
use aya::maps::{MapData, RingBuf};
use pv_net_common::{
    DropReason, FlowCount, FlowEntry, FlowKey, FlowLimit, GlobalConfig, HalfOpenFlow, InterfaceInfo, Stat, names,
};
use std::path::{Path, PathBuf};

/// Flows, counters and what else the API shows of the maps. It holds for as long as the pinned maps are the same ones.
pub struct Reader {
    pin_dir: PathBuf,
    clock: Clock,
    config: Single<GlobalConfig>,
    flows: Table<FlowKey, FlowEntry>,
    half_open: Table<FlowKey, HalfOpenFlow>,
    counts: Table<u32, FlowCount>,
    limits: Table<u32, FlowLimit>,
    interfaces: Table<u32, InterfaceInfo>,
    drops: Counters,
    stats: Counters,
}

impl Reader {
    /// Opens what is pinned under `pin_dir`.
    ///
    /// # Errors
    /// When a map or the program for the time is not there, or is of another layout.
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

    /// Every direction of every flow. It takes as long as the tables are full: not on a thread that others wait for.
    ///
    /// # Errors
    /// When the kernel refuses to run the clock or to read a map.
    pub fn flows(&self) -> Result<Vec<FlowRecord>, BpfError> {
        let ticks = self.clock.ticks(&self.config)?;
        let record = |key, entry: FlowEntry, state| FlowRecord { key, entry, age_secs: ticks.age_secs(&entry), state };
        let established = self.flows.entries().into_iter();
        let mut records: Vec<_> =
            established.map(|(key, entry)| record(key, entry, FlowState::of_entry(&entry))).collect();
        for (_, flow) in self.half_open.entries() {
            let key = flow.origin;
            // The half-open entry of an established flow stays behind until the LRU needs its room.
            if self.flows.get(&key)?.is_none() {
                records.push(record(key, flow.forward, FlowState::of_phase(flow.phase)));
            }
        }
        Ok(records)
    }

    /// Flows that count for the container behind link `index`, and how many it may have.
    #[must_use]
    pub fn flow_use(&self, index: u32) -> Option<(u64, u32)> {
        let freed = self.limits.get(&index).ok()?.unwrap_or_default().freed;
        let live = self.counts.get(&index).ok()??.live(freed);
        let info = self.interfaces.get(&index).ok()??;
        Some((u64::try_from(live).unwrap_or_default(), info.max_flows))
    }

    /// Dropped packets by reason.
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

    /// Uplinks that have the filter, and how it runs there.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn filtered_uplinks(&self) -> Result<Vec<(String, XdpMode)>, BpfError> {
        pin::filtered_uplinks(&self.pin_dir)
    }
}

/// The stream of what the programs report. Whoever reads it takes the records out: there is one reader at a time.
///
/// # Errors
/// When the map is not pinned under `pin_dir`, or is of another layout.
pub fn kernel_events(pin_dir: &Path) -> Result<RingBuf<MapData>, BpfError> {
    let name = names::MAP_EVENTS;
    RingBuf::try_from(pinned(&pin::maps_dir(pin_dir), name)?).map_err(map_error("open", name))
}
