//! Checks what the host's firewall and sysctls take away from pools. Checked periodically, since no event reports
//! changes.

use super::Daemon;
use crate::kernel::{netfilter, sysctl};
use crate::plan::{kept_by_firewall, strict_filters};

impl Daemon {
    /// Updates the conditions. A firewall that cannot be read counts as none.
    pub(super) fn look_at_firewall(&mut self) {
        self.firewall_conditions.clear();
        if self.plane.is_none() {
            return;
        }
        match netfilter::dropping() {
            Ok((chains, rules)) => {
                let named = |chain: &_, bridge: &str| rules.name(chain, bridge);
                let kept = kept_by_firewall(&chains, netfilter::bridged(), &self.pool_bridges(), named);
                self.firewall_conditions = kept;
            }
            Err(e) => tracing::debug!(error = %e, "the host's firewall is not known"),
        }
        // The kernel uses the larger of both values (`IN_DEV_RPFILTER`): 1 is strict, 2 is loose.
        let value = |text: Option<String>| text.and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
        let all =
            value(std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").ok().map(|t| t.trim().to_owned()));
        let filters: Vec<(&str, u32)> = self
            .uplinks
            .keys()
            .map(|name| (name.as_str(), value(sysctl::get("ipv4", name, "rp_filter")).max(all)))
            .collect();
        let strict = strict_filters(&filters);
        self.firewall_conditions.extend(strict);
    }
}
