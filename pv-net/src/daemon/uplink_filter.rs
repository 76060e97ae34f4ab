//! The uplinks' filter: what it drops, and on which uplinks it runs.

use super::Daemon;
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::model::{IfName, XdpMode};
use crate::plan::{HookPoint, Observed, Op, ProgramState, Tables, filter_rate, filter_sources};
use pv_net_common::FilterRate;
use std::collections::BTreeMap;

impl Daemon {
    /// Brings the filter to what the configuration says. It runs on the uplinks that the configuration lists, else on
    /// those with a default route, since behind other links are neighbours and not the Internet. An uplink that cannot
    /// have it is a condition and does not affect the others.
    pub(super) async fn refresh_filter(&mut self, observed: &Observed) -> Result<(), Failure> {
        let mode = self.device.uplink_filter.as_ref().and_then(|f| f.xdp.mode());
        let (dropped, rate) = match (&self.device.uplink_filter, mode) {
            (Some(filter), Some(_)) => (filter_sources(filter, self.device.pools.values()), filter_rate(filter)),
            _ => (BTreeMap::new(), FilterRate::default()),
        };
        let mut uplinks = self.uplinks.clone();
        uplinks.retain(|name, _| self.filterable.contains(name));
        self.filter_conditions.clear();
        let mut ops = observed.tables.filter_steps(&Tables { dropped, rate, ..Tables::default() });
        let mut filtered = Vec::new();
        for ((at, index), state) in &observed.hooked {
            let HookPoint::Filter(has) = at else { continue };
            let is_wanted = uplinks.values().any(|i| i == index) && mode == Some(*has);
            if !is_wanted {
                ops.push(Op::Unhook { at: *at, link: observed.name_of(*index), index: *index });
            } else if *state == ProgramState::Own {
                filtered.push(*index);
            }
        }
        self.apply_all(&ops).await?;
        let Some(mode) = mode else { return Ok(()) };
        for (name, index) in uplinks.iter().filter(|(_, index)| !filtered.contains(index)) {
            let op = Op::Hook { at: HookPoint::Filter(mode), link: name.clone(), index: *index };
            if let Err(e) = self.host().apply(&op).await {
                tracing::debug!(uplink = %name, error = %e, "no filter");
                self.filter_conditions.push(without_filter(name, mode, &e));
            }
        }
        Ok(())
    }
}

fn without_filter(name: &IfName, mode: XdpMode, why: &dyn std::fmt::Display) -> String {
    let help = match mode {
        XdpMode::Native => "; network.uplink_filter.xdp \"generic\" runs it on any link",
        XdpMode::Generic => "",
    };
    format!("uplink {name}: no uplink_filter: {why}{help}")
}
