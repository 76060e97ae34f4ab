//! How many flows each container has in the flow table.
//!
//! The programs count what they enter and take out, the daemon what it takes out: neither writes over the other. Who
//! took out the opener's entry has ended the flow, and only one can. The controller and the sweep both do it for the
//! daemon, so its number is behind a lock, that is held for one link at a time.

use super::BpfError;
use super::table::{Access, Table};
use pv_net_common::flow::{FLOW_REPLY, quota_link};
use pv_net_common::{FlowCount, FlowEntry, FlowKey, FlowLimit, names};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Both counts, for whoever removes flows.
#[derive(Clone)]
pub(super) struct FlowQuotas(Arc<Mutex<Counts>>);

/// The two counts of each container's flows.
pub(super) struct Counts {
    counts: Table<u32, FlowCount>,
    limits: Table<u32, FlowLimit>,
    /// By link, what the last sweep saw: flows too many in the counts.
    off: HashMap<u32, i64>,
}

/// What the counts of a link were, the programs' and the daemon's.
pub(super) type Counted = (FlowCount, u64);

impl FlowQuotas {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        Ok(Self(Arc::new(Mutex::new(Counts {
            counts: Table::open(maps, names::MAP_FLOW_COUNTS, Access::Write)?,
            limits: Table::open(maps, names::MAP_FLOW_LIMITS, Access::Write)?,
            off: HashMap::new(),
        }))))
    }

    /// Whoever panicked with the lock wrote one number or none.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count for a link, whose container may have `most` flows; one that is counted already goes on.
    pub(super) fn begin(&self, link: u32, most: u32) -> Result<(), BpfError> {
        let mut counts = self.lock();
        let counted = counts.counts.get(&link)?.is_some();
        let before = if counted { counts.limits.get(&link)? } else { None };
        let limit = FlowLimit { most: most.into(), ..before.unwrap_or_default() };
        if before != Some(limit) {
            counts.limits.set(&link, &limit)?;
        }
        if counted { Ok(()) } else { counts.counts.set(&link, &FlowCount::default()) }
    }

    /// Ends it.
    pub(super) fn end(&self, link: u32) -> Result<(), BpfError> {
        let mut counts = self.lock();
        counts.off.remove(&link);
        counts.counts.remove(&link)?;
        counts.limits.remove(&link).map(drop)
    }

    /// All counts as they are now.
    pub(super) fn now(&self) -> HashMap<u32, Counted> {
        let counts = self.lock();
        let freed: HashMap<u32, u64> = counts.limits.entries().into_iter().map(|(l, limit)| (l, limit.freed)).collect();
        let all = counts.counts.entries().into_iter();
        all.map(|(link, count)| (link, (count, freed.get(&link).copied().unwrap_or_default()))).collect()
    }

    /// Sets right what is off by the same number in two sweeps: an addition that was under way in one of them is not
    /// in the other, and a link that is in use is looked at again. `before` is from before `flows` were read.
    pub(super) fn correct(&self, before: &HashMap<u32, Counted>, flows: &HashMap<u32, i64>) -> Result<(), BpfError> {
        before.iter().try_for_each(|(link, then)| {
            self.lock().correct(*link, *then, flows.get(link).copied().unwrap_or_default())
        })
    }

    /// Whether a count seems wrong, and is to be looked at again.
    pub(super) fn are_doubtful(&self) -> bool {
        !self.lock().off.is_empty()
    }

    /// Takes entries out of the flow table; how many there were.
    pub(super) fn remove_entries(
        &self,
        flows: &mut Table<FlowKey, FlowEntry>,
        entries: impl Iterator<Item = (FlowKey, FlowEntry)>,
    ) -> Result<usize, BpfError> {
        let mut freed = HashMap::<u32, i64>::new();
        let mut removed = 0;
        for (key, entry) in entries {
            if flows.remove(&key)? {
                removed += 1;
                if entry.flags & FLOW_REPLY == 0 {
                    *freed.entry(counted_link(&key, &entry)).or_default() += 1;
                }
            }
        }
        freed.into_iter().try_for_each(|(link, flows)| self.lock().free(link, flows))?;
        Ok(removed)
    }
}

impl Counts {
    fn free(&mut self, link: u32, flows: i64) -> Result<(), BpfError> {
        let Some(limit) = self.limits.get(&link)? else { return Ok(()) };
        self.limits.set(&link, &FlowLimit { freed: limit.freed.wrapping_add_signed(flows), ..limit })
    }

    /// The same for one link, that has so many `flows` in the table.
    fn correct(&mut self, link: u32, then: Counted, flows: i64) -> Result<(), BpfError> {
        let freed = self.limits.get(&link)?.unwrap_or_default().freed;
        let Some(count) = self.counts.get(&link)?.filter(|count| (*count, freed) == then) else {
            self.off.remove(&link);
            return Ok(());
        };
        let off = count.live(freed) - flows;
        if off == 0 {
            self.off.remove(&link);
        } else if self.off.insert(link, off) == Some(off) {
            self.off.remove(&link);
            tracing::debug!(link, off, "count of flows set right");
            self.free(link, off)?;
        }
        Ok(())
    }
}

/// The link that the flow of this direction counts for.
pub(super) fn counted_link(key: &FlowKey, entry: &FlowEntry) -> u32 {
    let opposite = entry.opposite_key(key.proto);
    if entry.flags & FLOW_REPLY == 0 { quota_link(key, &opposite) } else { quota_link(&opposite, key) }
}
