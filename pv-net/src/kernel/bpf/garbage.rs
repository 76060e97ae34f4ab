//! Ends flows whose addresses or ways are gone, by removing them from the tables.

use super::BpfError;
use super::ended::Ended;
use super::plane::DataPlane;
use pv_net_common::flow::FLOW_OPENING;
use pv_net_common::{FlowEntry, FlowKey, Ip};
use std::collections::HashMap;

impl DataPlane {
    /// Ends every flow that has one of `addrs` at either end, before or after translation.
    ///
    /// # Errors
    /// When the kernel refuses to remove an entry.
    pub fn end_flows(&mut self, addrs: &[Ip]) -> Result<(), BpfError> {
        self.end_flows_where(|key, entry| {
            [key.src, key.dst, entry.src, entry.dst].iter().any(|addr| addrs.contains(addr))
        })
        .map(drop)
    }

    /// Ends every flow for which `hit` is true in one of its directions; both directions are removed. Returns the ends
    /// of established flows that are in containers, for [`challenge_ack`](crate::kernel::challenge_ack).
    ///
    /// # Errors
    /// When the kernel refuses to remove an entry.
    pub fn end_flows_where(&mut self, hit: impl Fn(&FlowKey, &FlowEntry) -> bool) -> Result<Vec<Ended>, BpfError> {
        let mut ended = Vec::new();
        // The half-open table first: an established flow may still have its entry there, and the next packet would
        // establish the flow from it again.
        for (key, flow) in self.half_open.entries() {
            if hit(&key, &flow.reply) || hit(&flow.origin, &flow.forward) {
                self.half_open.remove(&key)?;
                if flow.phase == FLOW_OPENING {
                    ended.extend(Ended::inside(&key, &flow.reply));
                    ended.extend(Ended::inside(&flow.origin, &flow.forward));
                }
            }
        }
        let entries: HashMap<FlowKey, FlowEntry> = self.flows.entries().into_iter().collect();
        let ends = |key: &FlowKey, entry: &FlowEntry| {
            let opposite = entry.opposite_key(key.proto);
            hit(key, entry) || entries.get(&opposite).is_some_and(|other| hit(&opposite, other))
        };
        let gone: Vec<_> = entries.iter().filter(|(key, entry)| ends(key, entry)).map(|(k, e)| (*k, *e)).collect();
        self.flow_quotas.remove_entries(&mut self.flows, gone.iter().copied())?;
        ended.extend(gone.iter().filter_map(|(key, entry)| Ended::inside(key, entry)));
        Ok(ended)
    }
}
