//! Counts how many flows each container has in the flow table.
//!
//! The programs count the flows that they enter and remove, the daemon counts those that it removes, each in its own
//! map, so neither overwrites the other's number. A flow is counted as ended by whoever removes its opener's entry,
//! which succeeds only once. In the daemon both the controller and the sweep remove flows, so its counts are behind a
//! lock, which is held for one link at a time.

use super::BpfError;
use super::table::{Access, Table};
use pv_net_common::flow::{FLOW_REPLY, quota_link};
use pv_net_common::{FlowCount, FlowEntry, FlowKey, FlowLimit, LinkId, names};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts, shared by everybody in the daemon who removes flows.
#[derive(Clone)]
pub(super) struct FlowQuotas(Arc<Mutex<Counts>>);

/// Both maps of counts.
pub(super) struct Counts {
    counts: Table<LinkId, FlowCount>,
    limits: Table<LinkId, FlowLimit>,
    /// By link: by how many flows the count was too high in the last sweep.
    off: HashMap<LinkId, i64>,
}

/// The counts of a link: the programs', and the flows that the daemon has removed.
pub(super) type Counted = (FlowCount, u64);

impl FlowQuotas {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        Ok(Self(Arc::new(Mutex::new(Counts {
            counts: Table::open(maps, names::MAP_FLOW_COUNTS, Access::Write)?,
            limits: Table::open(maps, names::MAP_FLOW_LIMITS, Access::Write)?,
            off: HashMap::new(),
        }))))
    }

    /// A thread that panicked with the lock has written one number or none, so the counts can still be used.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count for a link whose container may have `most` flows (0: no limit). A count that exists already
    /// continues.
    pub(super) fn begin(&self, link: LinkId, most: u32) -> Result<(), BpfError> {
        let mut counts = self.lock();
        let counted = counts.counts.get(&link)?.is_some();
        let before = if counted { counts.limits.get(&link)? } else { None };
        let limit = FlowLimit { most: most.into(), ..before.unwrap_or_default() };
        if before != Some(limit) {
            counts.limits.set(&link, &limit)?;
        }
        if counted { Ok(()) } else { counts.counts.set(&link, &FlowCount::default()) }
    }

    /// Whether a link is counted, with this limit.
    pub(super) fn is_counted(&self, link: LinkId, most: u32) -> bool {
        let counts = self.lock();
        let limit = counts.limits.get(&link).ok().flatten();
        limit.is_some_and(|limit| limit.most == u64::from(most)) && matches!(counts.counts.get(&link), Ok(Some(_)))
    }

    /// Ends counting for a link.
    pub(super) fn end(&self, link: LinkId) -> Result<(), BpfError> {
        let mut counts = self.lock();
        counts.off.remove(&link);
        counts.counts.remove(&link)?;
        counts.limits.remove(&link).map(drop)
    }

    /// All counts as they are now.
    pub(super) fn now(&self) -> HashMap<LinkId, Counted> {
        let counts = self.lock();
        let freed: HashMap<LinkId, u64> =
            counts.limits.entries().into_iter().map(|(l, limit)| (l, limit.freed)).collect();
        let all = counts.counts.entries().into_iter();
        all.map(|(link, count)| (link, (count, freed.get(&link).copied().unwrap_or_default()))).collect()
    }

    /// Corrects counts that are wrong by the same number in two sweeps. An update that was under way during one sweep
    /// is not wrong by the same number in the next, and a link whose count has changed meanwhile is checked again
    /// later. `before` are the counts from before `flows` was read.
    pub(super) fn correct(
        &self,
        before: &HashMap<LinkId, Counted>,
        flows: &HashMap<LinkId, i64>,
    ) -> Result<(), BpfError> {
        before.iter().try_for_each(|(link, then)| {
            self.lock().correct(*link, *then, flows.get(link).copied().unwrap_or_default())
        })
    }

    /// Whether a count seemed wrong in the last sweep and has to be checked again.
    pub(super) fn are_doubtful(&self) -> bool {
        !self.lock().off.is_empty()
    }

    /// Removes entries from the flow table and counts the flows that this ends. Returns the number of entries removed.
    pub(super) fn remove_entries(
        &self,
        flows: &mut Table<FlowKey, FlowEntry>,
        entries: impl Iterator<Item = (FlowKey, FlowEntry)>,
    ) -> Result<usize, BpfError> {
        let mut freed = HashMap::<LinkId, i64>::new();
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
    fn free(&mut self, link: LinkId, flows: i64) -> Result<(), BpfError> {
        let Some(limit) = self.limits.get(&link)? else { return Ok(()) };
        self.limits.set(&link, &FlowLimit { freed: limit.freed.wrapping_add_signed(flows), ..limit })
    }

    /// [`FlowQuotas::correct`] for one link, which has `flows` flows in the table.
    fn correct(&mut self, link: LinkId, then: Counted, flows: i64) -> Result<(), BpfError> {
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
            tracing::debug!(%link, off, "count of flows set right");
            self.free(link, off)?;
        }
        Ok(())
    }
}

/// The link that a flow counts for, given one of its directions.
pub(super) fn counted_link(key: &FlowKey, entry: &FlowEntry) -> LinkId {
    let opposite = entry.opposite_key(key.proto);
    if entry.flags & FLOW_REPLY == 0 { quota_link(key, &opposite) } else { quota_link(&opposite, key) }
}
