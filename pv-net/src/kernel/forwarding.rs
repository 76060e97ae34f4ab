//! Forwarding by link, without what the kernel does beside it.

use super::sysctl::{self, SysctlError};
use crate::model::IfName;
use std::fs;
use std::path::PathBuf;

/// What was changed for a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Families (`ipv4`, `ipv6`) for which forwarding was off.
    pub families: Vec<String>,
    /// `accept_ra` was 1, and is 2.
    pub listens: bool,
}

/// Switches forwarding on for a link. One that takes router advertisements goes on with it: where the kernel forwards,
/// `accept_ra` must be 2 for that.
///
/// # Errors
/// When a sysctl cannot be written.
pub fn switch_on(link: &IfName) -> Result<Forwarded, SysctlError> {
    let mut changed = Forwarded::default();
    for family in ["ipv4", "ipv6"] {
        if sysctl::get(family, link, "forwarding").as_deref() != Some("0") {
            continue;
        }
        if family == "ipv6" && sysctl::get(family, link, "accept_ra").as_deref() == Some("1") {
            sysctl::set(family, link, "accept_ra", "2")?;
            changed.listens = true;
        }
        let _routes = (family == "ipv6").then(AdvertisedRoutes::keep);
        sysctl::set(family, link, "forwarding", "1")?;
        changed.families.push(family.to_owned());
    }
    Ok(changed)
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

/// Default routes that routers advertised, kept while `forwarding` is written. The kernel removes those of all links
/// then, whichever link it is written for, but for links with `accept_ra` 2 (`addrconf_fixup_forwarding`,
/// `rt6_purge_dflt_routers`): the device would have no way out until the next advertisement. Where a link does not
/// forward 2 is the same as 1, so that who dies here leaves nothing that matters.
struct AdvertisedRoutes(Vec<PathBuf>);

impl AdvertisedRoutes {
    fn keep() -> Self {
        let links = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
        let listens = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| text.trim() == "1");
        // What `all` and `default` say counts for links to come only.
        let of_link = links.filter(|dir| dir.file_name() != "all" && dir.file_name() != "default");
        let files = of_link.map(|dir| dir.path().join("accept_ra")).filter(listens);
        // A link may be gone meanwhile.
        Self(files.filter(|file| fs::write(file, "2").is_ok()).collect())
    }
}

impl Drop for AdvertisedRoutes {
    fn drop(&mut self) {
        for file in &self.0 {
            if let Err(e) = fs::write(file, "1") {
                tracing::debug!(file = %file.display(), error = %e, "accept_ra stays 2");
            }
        }
    }
}
