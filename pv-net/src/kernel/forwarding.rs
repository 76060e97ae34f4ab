//! Forwarding by link, without what the kernel does beside it.

use super::sysctl::{self, SysctlError};
use crate::model::IfName;
use std::fs;

/// What is changed for a link by switching forwarding on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Families (`ipv4`, `ipv6`) for which forwarding is off.
    pub families: Vec<String>,
    /// `accept_ra` is 1, and will be 2.
    pub listens: bool,
}

/// What [`switch_on`] would change for a link.
#[must_use]
pub fn switched_off(link: &IfName) -> Forwarded {
    let is_off = |family: &&str| sysctl::get(family, link, "forwarding").as_deref() == Some("0");
    let families: Vec<String> = ["ipv4", "ipv6"].into_iter().filter(is_off).map(ToOwned::to_owned).collect();
    let listens = families.iter().any(|family| family == "ipv6")
        && sysctl::get("ipv6", link, "accept_ra").as_deref() == Some("1");
    Forwarded { families, listens }
}

/// Switches forwarding on for a link. One that takes router advertisements goes on with it: where the kernel forwards,
/// `accept_ra` must be 2 for that.
///
/// # Errors
/// When a sysctl cannot be written.
pub fn switch_on(link: &IfName) -> Result<(), SysctlError> {
    let Forwarded { families, listens } = switched_off(link);
    if listens {
        sysctl::set("ipv6", link, "accept_ra", "2")?;
    }
    for family in families {
        let _routes = (family == "ipv6").then(AdvertisedRoutes::keep);
        sysctl::set(&family, link, "forwarding", "1")?;
    }
    Ok(())
}

/// Sets `accept_ra` back to 1, where nobody has made something else of it.
///
/// # Errors
/// When the sysctl cannot be written.
pub fn listen_as_before(link: &IfName) -> Result<(), SysctlError> {
    if sysctl::get("ipv6", link, "accept_ra").as_deref() == Some("2") {
        sysctl::set("ipv6", link, "accept_ra", "1")?;
    }
    Ok(())
}

/// Links that take router advertisements and do not forward.
#[must_use]
pub fn listeners() -> Vec<IfName> {
    let links = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    let names = links.filter_map(|dir| dir.file_name().to_str()?.parse::<IfName>().ok());
    // What `all` and `default` say counts for links to come only.
    let of_link = names.filter(|name| !matches!(name.as_str(), "all" | "default"));
    of_link.filter(|name| sysctl::get("ipv6", name, "accept_ra").as_deref() == Some("1")).collect()
}

/// Default routes that routers advertised, kept while `forwarding` is written. The kernel removes those of all links
/// then, whichever link it is written for, but for links with `accept_ra` 2 (`addrconf_fixup_forwarding`,
/// `rt6_purge_dflt_routers`): the device would have no way out until the next advertisement. Where a link does not
/// forward 2 is the same as 1. The daemon's state has their names meanwhile: whoever dies here is made good.
struct AdvertisedRoutes(Vec<IfName>);

impl AdvertisedRoutes {
    fn keep() -> Self {
        let mut kept = listeners();
        // A link may be gone meanwhile.
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
