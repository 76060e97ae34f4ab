//! The sweep of the flow tables: removes flows that were silent for too long. It has its own handles to the maps and
//! runs beside the controller, which may end flows and give out ports at the same time. What both of them write is
//! behind a lock that nobody holds while reading a table.

use super::clock::Clock;
use super::ended::Ended;
use super::flow_quotas::{FlowQuotas, counted_link};
use super::flows::{half_open_silence, next_sweep, silence, was_reset};
use super::owners::{Devices, Owners, slot_used};
use super::table::{Access, Single, Table};
use super::{BpfError, pin};
use crate::model::FlowTimeouts;
use pv_net_common::flow::{FLOW_REPLY, TCP_RST_SEEN};
use pv_net_common::{FlowEntry, FlowKey, GlobalConfig, HalfOpenFlow, LinkId, NatOwner, names};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// The result of a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Number of entries that were removed.
    pub removed: usize,
    /// Number of entries that were in the flow table.
    pub read: usize,
    /// Time until the next sweep is due.
    pub next: Duration,
    /// Containers' ends of flows that are over because of a reset that may be forged. The next sweep removes them,
    /// unless the container has answered by then.
    pub doubtful: Vec<Ended>,
}

/// What a sweeper needs beside the pinned maps. Several sweepers can be made from it, one after another.
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
    /// When a map is missing, or has another layout.
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

/// Sweeps the tables, and remembers what the last sweep saw.
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
    /// Ports of masquerade that had an owner but no flow at the last sweep, each with the number of looks at the
    /// device's sockets when that was first seen.
    unused: HashMap<u32, (NatOwner, u64)>,
    /// First port of the range at the last sweep.
    first_port: u16,
}

impl Sweeper {
    /// Removes flows that were silent for too long, and corrects the flow counts. A flow that is over because of a
    /// reset from outside stays until its container was asked. The time grows with the number of flows, so call this on
    /// a thread that may block.
    ///
    /// # Errors
    /// When the kernel refuses to run `pv_clock`, or to read or write a map.
    pub fn sweep(&mut self, timeouts: &FlowTimeouts) -> Result<Swept, BpfError> {
        let ticks = self.clock.ticks(&self.config)?;
        let before = self.flow_quotas.now();
        let entries: HashMap<FlowKey, FlowEntry> = self.flows.entries().into_iter().collect();
        let mut flows = HashMap::<LinkId, i64>::new();
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
        // Also removes the half-open entry that the flow left when it was established, which would keep its port taken.
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
        // A count that seems wrong is checked again soon.
        let next = if self.flow_quotas.are_doubtful() { Some(Duration::ZERO) } else { left };
        Ok(Swept { removed, read: entries.len(), next: next_sweep(next, timeouts), doubtful })
    }

    /// Frees ports that have an owner but no flow now and had none at the last sweep. One sweep is not enough, since
    /// the flow of a new owner may be about to be entered. `flows` are all flows, by the key and entry of their opener.
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
            // A port that has become the device's since the map was read must stay.
            if devices.slots.contains(&slot) || (!is_devices && used.contains(&slot)) {
                continue;
            }
            let since = match self.unused.get(&slot) {
                Some((before, since)) if *before == owner => {
                    // The bind hook marks a port as the device's at once, while the device's sockets are only read now
                    // and then. The port is free when a look at the sockets that began after the mark was seen did not
                    // find it.
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
