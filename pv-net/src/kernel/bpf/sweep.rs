//! The sweep of the flow tables: what has been silent for too long goes. It has holds of its own on the maps, and runs
//! beside the controller, that may end flows and give out ports meanwhile: what both write is behind a lock, which
//! nobody holds while a table is read.

use super::clock::Clock;
use super::ended::Ended;
use super::flow_quotas::{FlowQuotas, counted_link};
use super::flows::{half_open_silence, next_sweep, silence, was_reset};
use super::owners::{Devices, Owners, slot_used};
use super::table::{Access, Single, Table};
use super::{BpfError, pin};
use crate::model::FlowTimeouts;
use pv_net_common::flow::{FLOW_REPLY, TCP_RST_SEEN};
use pv_net_common::{FlowEntry, FlowKey, GlobalConfig, HalfOpenFlow, NatOwner, names};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// What a sweep of the tables did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Entries that went.
    pub removed: usize,
    /// Entries that were in the flow table.
    pub read: usize,
    /// When the next one is due.
    pub next: Duration,
    /// Ends of flows whose time is over by a reset that may be forged. They go with the next sweep, but for those whose
    /// container has answered.
    pub doubtful: Vec<Ended>,
}

/// What sweeps need beside the pinned maps: as many sweepers can be made of it, one after the other.
#[derive(Clone)]
pub struct Sweeping {
    pub(super) pin_dir: PathBuf,
    pub(super) flow_quotas: FlowQuotas,
    pub(super) devices: Devices,
}

impl Sweeping {
    /// Opens the tables.
    ///
    /// # Errors
    /// When a map is not there, or is of another layout.
    pub fn sweeper(&self) -> Result<Sweeper, BpfError> {
        let maps = pin::maps_dir(&self.pin_dir);
        let config = Single::open(&maps, names::MAP_CONFIG, Access::Read)?;
        Ok(Sweeper {
            clock: Clock::open(&self.pin_dir, &config)?,
            config,
            flows: Table::open(&maps, names::MAP_FLOWS, Access::Write)?,
            half_open: Table::open(&maps, names::MAP_HALF_OPEN, Access::Write)?,
            owners: Owners::open(&maps)?,
            flow_quotas: self.flow_quotas.clone(),
            devices: self.devices.clone(),
            asked: HashSet::new(),
            unused: HashMap::new(),
            first_port: 0,
        })
    }
}

/// Sweeps the tables, and remembers what it saw the last time.
pub struct Sweeper {
    clock: Clock,
    config: Single<GlobalConfig>,
    flows: Table<FlowKey, FlowEntry>,
    half_open: Table<FlowKey, HalfOpenFlow>,
    owners: Owners,
    flow_quotas: FlowQuotas,
    devices: Devices,
    /// Flows with a reset whose containers were asked after the last sweep.
    asked: HashSet<FlowKey>,
    /// Ports of masquerade without a flow at the last sweep, and how often the device's sockets had been looked at when
    /// that was first seen.
    unused: HashMap<u32, (NatOwner, u64)>,
    /// Where their range began then.
    first_port: u16,
}

impl Sweeper {
    /// Removes flows that have been silent for too long, and sets the counts right. One that is over by a reset of
    /// somebody outside is left until its container was asked. It takes as long as the tables are full: not on a thread
    /// that others wait for.
    ///
    /// # Errors
    /// When the kernel refuses to run the clock, to read a map or to write to one.
    pub fn sweep(&mut self, timeouts: &FlowTimeouts) -> Result<Swept, BpfError> {
        let ticks = self.clock.ticks(&self.config)?;
        let before = self.flow_quotas.now();
        let entries: HashMap<FlowKey, FlowEntry> = self.flows.entries().into_iter().collect();
        let mut flows = HashMap::<u32, i64>::new();
        for (key, entry) in entries.iter().filter(|(_, entry)| entry.flags & FLOW_REPLY == 0) {
            *flows.entry(counted_link(key, entry)).or_default() += 1;
        }
        self.flow_quotas.correct(&before, &flows)?;
        let mut left: Option<Duration> = None;
        let mut stays = |time: Duration| left = Some(left.map_or(time, |least| least.min(time)));
        let mut gone = Vec::new();
        let asked = std::mem::take(&mut self.asked);
        let mut doubtful = Vec::new();
        for (key, entry) in &entries {
            let silence = silence(&entries, key, entry, ticks, timeouts);
            if !silence.is_over() {
                stays(silence.left());
            } else if entry.tcp & TCP_RST_SEEN == 0 || asked.contains(key) {
                gone.push((*key, *entry));
            } else {
                self.asked.insert(*key);
                doubtful.extend(Ended::inside(key, entry));
                stays(Duration::ZERO);
            }
        }
        let mut removed = self.flow_quotas.remove_entries(&mut self.flows, gone.iter().copied())?;
        // What the flow left behind when it was established: with it the port would stay taken.
        for (key, entry) in &gone {
            if entry.flags & FLOW_REPLY == 0 {
                self.half_open.remove(&entry.opposite_key(key.proto))?;
            }
        }
        let half_open = self.half_open.entries();
        for (key, flow) in &half_open {
            match half_open_silence(flow, ticks, timeouts) {
                Some(silence) if silence.is_over() && was_reset(flow) && !asked.contains(key) => {
                    self.asked.insert(*key);
                    doubtful.extend(Ended::inside(key, &flow.reply));
                    doubtful.extend(Ended::inside(&flow.origin, &flow.forward));
                    stays(Duration::ZERO);
                }
                Some(silence) if silence.is_over() => removed += usize::from(self.half_open.remove(key)?),
                Some(silence) => stays(silence.left()),
                None => {}
            }
        }
        let openers = half_open.iter().map(|(_, flow)| (&flow.origin, &flow.forward));
        self.free_ports(entries.iter().chain(openers))?;
        // A count that seems wrong is looked at again soon.
        let next = if self.flow_quotas.are_doubtful() { Some(Duration::ZERO) } else { left };
        Ok(Swept { removed, read: entries.len(), next: next_sweep(next, timeouts), doubtful })
    }

    /// Takes out the owners without a flow, when they had none at the last sweep either: one that is about to have a
    /// flow keeps its port. `flows` are all, by the key and the entry of their opener.
    fn free_ports<'a>(&mut self, flows: impl Iterator<Item = (&'a FlowKey, &'a FlowEntry)>) -> Result<(), BpfError> {
        let first = self.config.get()?.nat_first_port;
        if std::mem::replace(&mut self.first_port, first) != first {
            self.unused.clear();
        }
        let used: HashSet<u32> = flows.filter_map(|(key, entry)| slot_used(first, key, entry)).collect();
        let owners = self.owners.entries();
        let mut unused = HashMap::new();
        let devices = self.devices.lock();
        for (slot, owner) in owners {
            let is_devices = owner == NatOwner::DEVICE;
            // What is the device's by now stays, whoever it was of when the map was read.
            if devices.slots.contains(&slot) || (!is_devices && used.contains(&slot)) {
                continue;
            }
            let since = match self.unused.get(&slot) {
                Some((before, since)) if *before == owner => {
                    // The bind hook gives the device a port at once, and its sockets are looked at now and then: it is
                    // nobody's when a look that began after the mark was seen did not find it.
                    if !is_devices || devices.looks >= since + 2 {
                        self.owners.set(slot, NatOwner::FREE)?;
                        continue;
                    }
                    *since
                }
                _ => devices.looks,
            };
            unused.insert(slot, (owner, since));
        }
        self.unused = unused;
        Ok(())
    }
}
