//! What the host's firewall and sysctls keep from pools: looked at again now and then, for nobody tells of changes.

use super::Daemon;
use crate::kernel::{netfilter, sysctl};
use crate::plan::{kept_by_firewall, strict_filters};

impl Daemon {
    /// Notes what stands in the way. A firewall that cannot be read is none.
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
        // The kernel takes the stricter of both (`IN_DEV_RPFILTER`): loose is 2, and the larger counts.
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
