//! Switches forwarding on for a link without losing the default routes of other links.

use super::sysctl;
use crate::model::IfName;
use std::fs;

/// Links that accept router advertisements and do not forward (`accept_ra` is 1).
#[must_use]
pub fn listeners() -> Vec<IfName> {
    let links = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    let names = links.filter_map(|dir| dir.file_name().to_str()?.parse::<IfName>().ok());
    // `all` and `default` are no links; they hold the settings of future links.
    let of_link = names.filter(|name| !matches!(name.as_str(), "all" | "default"));
    of_link.filter(|name| sysctl::get("ipv6", name, "accept_ra").as_deref() == Some("1")).collect()
}

/// Keeps default routes from router advertisements while a `forwarding` sysctl is written. At such a write the kernel
/// removes the advertised default routes of all links except those with `accept_ra` 2 (`addrconf_fixup_forwarding`,
/// `rt6_purge_dflt_routers`), and the device would have no way out until the next advertisement. So these links get
/// `accept_ra` 2 meanwhile, which for a link that does not forward means the same as 1. Their names are in the daemon's
/// state during that time, so that a daemon that is killed here is repaired by the next one.
pub struct AdvertisedRoutes(Vec<IfName>);

impl AdvertisedRoutes {
    /// Sets `accept_ra` to 2 on all [`listeners`] until this is dropped.
    #[must_use]
    pub fn keep() -> Self {
        let mut kept = listeners();
        // A link that has gone meanwhile is left out.
        kept.retain(|link| sysctl::set("ipv6", link, "accept_ra", "2").unwrap_or(false));
        Self(kept)
    }
}

impl Drop for AdvertisedRoutes {
    fn drop(&mut self) {
        for link in &self.0 {
            if let Err(e) = sysctl::set("ipv6", link, "accept_ra", "1") {
                tracing::debug!(%link, error = %e, "accept_ra stays 2");
            }
        }
    }
}
