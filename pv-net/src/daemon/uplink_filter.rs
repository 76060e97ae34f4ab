//! The filter of the uplinks: what it drops, and on which uplinks it runs.

use super::Daemon;
use crate::failure::Failure;
use crate::model::{IfName, XdpMode};
use crate::plan::{filter_rate, filter_sources};
use pv_net_common::FilterRate;
use std::collections::BTreeMap;

impl Daemon {
    /// Brings the filter to what the configuration says: on the uplinks that it lists, else on those that default
    /// routes lead to. Other links have neighbours, not the world, behind them. `before`: the uplinks that were there the last time. An
    /// uplink that cannot have it is a condition; the others have it all the same.
    pub(super) fn refresh_filter(&mut self, before: &BTreeMap<IfName, u32>) -> Result<(), Failure> {
        let mode = self.device.uplink_filter.as_ref().and_then(|f| f.xdp.mode());
        let (sources, rate) = match (&self.device.uplink_filter, mode) {
            (Some(filter), Some(_)) => (filter_sources(filter, self.device.pools.values()), filter_rate(filter)),
            _ => (BTreeMap::new(), FilterRate::default()),
        };
        let mut uplinks = self.uplinks.clone();
        uplinks.retain(|name, _| self.filterable.contains(name));
        self.filter_conditions.clear();
        let plane = self.plane()?;
        plane.set_filter(&sources, rate)?;
        let mut filtered = Vec::new();
        for (name, has) in plane.filtered_uplinks()? {
            let index = uplinks.iter().find(|(n, _)| n.as_str() == name);
            // Another link of the same name has another index, and the program went with the first.
            let same = index.is_some_and(|(n, i)| before.get(n).is_none_or(|was| was == i));
            if same && mode == Some(has) {
                filtered.push(name);
            } else {
                plane.detach_filter(&name, has)?;
            }
        }
        let Some(mode) = mode else { return Ok(()) };
        let mut conditions = Vec::new();
        for name in uplinks.keys().filter(|n| !filtered.iter().any(|f| f == n.as_str())) {
            if let Err(e) = plane.attach_filter(name, mode) {
                tracing::debug!(uplink = %name, error = %e, "no filter");
                conditions.push(without_filter(name, mode, &e));
            }
        }
        self.filter_conditions = conditions;
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
