//! Taking flows out of the flow table, and how many each container has there.
//!
//! The programs count what they enter and take out, the daemon what it takes out: neither writes over the other. Who
//! took out the opener's entry has ended the flow, and only one can.

use super::BpfError;
use super::flows::{half_open_silence, next_sweep, silence, was_reset};
use super::load::DataPlane;
use super::table::Table;
use pv_net_common::flow::{
    FLOW_NEIGHBOUR, FLOW_OPENING, FLOW_REPLY, FLOW_STACK, FLOW_UPLINK, TCP_RST_SEEN, quota_link,
};
use pv_net_common::{FlowCount, FlowEntry, FlowKey, FlowLimit, Ip, names};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// The two counts of each container's flows.
pub(super) struct FlowQuotas {
    counts: Table<u32, FlowCount>,
    limits: Table<u32, FlowLimit>,
    /// By link, what the last sweep saw: flows too many in the counts.
    off: HashMap<u32, i64>,
}

impl FlowQuotas {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            counts: Table::open(maps, names::MAP_FLOW_COUNTS)?,
            limits: Table::open(maps, names::MAP_FLOW_LIMITS)?,
            off: HashMap::new(),
        })
    }

    /// Begins to count for a link, whose container may have `most` flows; one that is counted already goes on.
    pub(super) fn begin(&mut self, link: u32, most: u32) -> Result<(), BpfError> {
        let counted = self.counts.get(&link)?.is_some();
        let before = if counted { self.limits.get(&link)? } else { None };
        let limit = FlowLimit { most: most.into(), ..before.unwrap_or_default() };
        if before != Some(limit) {
            self.limits.set(&link, &limit)?;
        }
        if counted { Ok(()) } else { self.counts.set(&link, &FlowCount::default()) }
    }

    /// Ends it.
    pub(super) fn end(&mut self, link: u32) -> Result<(), BpfError> {
        self.off.remove(&link);
        self.counts.remove(&link)?;
        self.limits.remove(&link).map(drop)
    }

    fn free(&mut self, link: u32, flows: i64) -> Result<(), BpfError> {
        let Some(limit) = self.limits.get(&link)? else { return Ok(()) };
        self.limits.set(&link, &FlowLimit { freed: limit.freed.wrapping_add_signed(flows), ..limit })
    }

    fn live(&self, link: u32) -> Result<Option<i64>, BpfError> {
        let freed = self.limits.get(&link)?.unwrap_or_default().freed;
        Ok(self.counts.get(&link)?.map(|count| count.live(freed)))
    }

    /// Sets right what is off by the same number in two sweeps: an addition that was under way in one of them is not
    /// in the other, and a link that is in use is looked at again. `before` is from before `flows` were read.
    fn correct(&mut self, before: &HashMap<u32, FlowCount>, flows: &HashMap<u32, i64>) -> Result<(), BpfError> {
        for (link, then) in before {
            if self.counts.get(link)? != Some(*then) {
                self.off.remove(link);
                continue;
            }
            let off = self.live(*link)?.unwrap_or_default() - flows.get(link).copied().unwrap_or_default();
            if off == 0 {
                self.off.remove(link);
            } else if self.off.insert(*link, off) == Some(off) {
                self.off.remove(link);
                tracing::debug!(link, off, "count of flows set right");
                self.free(*link, off)?;
            }
        }
        Ok(())
    }
}

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

/// The end of a flow that is in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The container's host-side link.
    pub link: u32,
    /// IP protocol number.
    pub proto: u32,
    /// The flow's other end, as the container sees it.
    pub peer: SocketAddr,
    /// The container's end.
    pub own: SocketAddr,
    /// Source MAC of what the container gets.
    pub gateway_mac: [u8; 6],
    /// The container's MAC.
    pub mac: [u8; 6],
}

impl Ended {
    /// The end that the direction leads to; none when it leads outside or to the stack.
    fn inside(key: &FlowKey, entry: &FlowEntry) -> Option<Self> {
        let there = entry.flags & (FLOW_NEIGHBOUR | FLOW_UPLINK | FLOW_STACK) == 0 && entry.ifindex != 0;
        there.then(|| Self {
            link: entry.ifindex,
            proto: key.proto,
            peer: SocketAddr::new(entry.src.into(), u16::from_be(entry.sport_be)),
            own: SocketAddr::new(entry.dst.into(), u16::from_be(entry.dport_be)),
            gateway_mac: entry.src_mac,
            mac: entry.dst_mac,
        })
    }
}

/// The link that the flow of this direction counts for.
fn counted_link(key: &FlowKey, entry: &FlowEntry) -> u32 {
    let opposite = entry.opposite_key(key.proto);
    if entry.flags & FLOW_REPLY == 0 { quota_link(key, &opposite) } else { quota_link(&opposite, key) }
}

impl DataPlane {
    /// Flows that count for the container behind link `index`, and how many it may have.
    #[must_use]
    pub fn flow_use(&self, index: u32) -> Option<(u64, u32)> {
        let live = self.flow_quotas.live(index).ok()??;
        let info = self.interfaces.get(&index).ok()??;
        Some((u64::try_from(live).unwrap_or_default(), info.max_flows))
    }

    /// Removes flows that have been silent for too long, and sets the counts right. One that is over by a reset of
    /// somebody outside is left until its container was asked.
    ///
    /// # Errors
    /// The kernel's.
    pub fn collect_garbage(&mut self) -> Result<Swept, BpfError> {
        let ticks = self.ticks()?;
        let before = self.flow_quotas.counts.entries().into_iter().collect();
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
            let silence = silence(&entries, key, entry, ticks, &self.timeouts);
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
        let mut removed = self.remove_entries(gone.iter().copied())?;
        // What the flow left behind when it was established: with it the port would stay taken.
        for (key, entry) in &gone {
            if entry.flags & FLOW_REPLY == 0 {
                self.half_open.remove(&entry.opposite_key(key.proto))?;
            }
        }
        let half_open = self.half_open.entries();
        for (key, flow) in &half_open {
            match half_open_silence(flow, ticks, &self.timeouts) {
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
        let next = if self.flow_quotas.off.is_empty() {
            next_sweep(left, &self.timeouts)
        } else {
            next_sweep(Some(Duration::ZERO), &self.timeouts)
        };
        Ok(Swept { removed, read: entries.len(), next, doubtful })
    }

    /// Takes entries out of the flow table; how many there were.
    fn remove_entries(&mut self, entries: impl Iterator<Item = (FlowKey, FlowEntry)>) -> Result<usize, BpfError> {
        let mut freed = HashMap::<u32, i64>::new();
        let mut removed = 0;
        for (key, entry) in entries {
            if self.flows.remove(&key)? {
                removed += 1;
                if entry.flags & FLOW_REPLY == 0 {
                    *freed.entry(counted_link(&key, &entry)).or_default() += 1;
                }
            }
        }
        for (link, flows) in freed {
            self.flow_quotas.free(link, flows)?;
        }
        Ok(removed)
    }

    /// Ends every flow that has to do with one of `addrs`, before or after translation.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_flows(&mut self, addrs: &[Ip]) -> Result<(), BpfError> {
        self.end_flows_where(|key, entry| {
            [key.src, key.dst, entry.src, entry.dst].iter().any(|addr| addrs.contains(addr))
        })
        .map(drop)
    }

    /// Ends every flow of which `hit` is true for a direction: both go. What comes back are the entries that led into a
    /// container: whom it may concern.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_flows_where(&mut self, hit: impl Fn(&FlowKey, &FlowEntry) -> bool) -> Result<Vec<Ended>, BpfError> {
        let entries: HashMap<FlowKey, FlowEntry> = self.flows.entries().into_iter().collect();
        let ends = |key: &FlowKey, entry: &FlowEntry| {
            let opposite = entry.opposite_key(key.proto);
            hit(key, entry) || entries.get(&opposite).is_some_and(|other| hit(&opposite, other))
        };
        let gone: Vec<_> = entries.iter().filter(|(key, entry)| ends(key, entry)).map(|(k, e)| (*k, *e)).collect();
        self.remove_entries(gone.iter().copied())?;
        let mut ended: Vec<_> = gone.iter().filter_map(|(key, entry)| Ended::inside(key, entry)).collect();
        for (key, flow) in self.half_open.entries() {
            if hit(&key, &flow.reply) || hit(&flow.origin, &flow.forward) {
                self.half_open.remove(&key)?;
                if flow.phase == FLOW_OPENING {
                    ended.extend(Ended::inside(&key, &flow.reply));
                    ended.extend(Ended::inside(&flow.origin, &flow.forward));
                }
            }
        }
        Ok(ended)
    }
}
