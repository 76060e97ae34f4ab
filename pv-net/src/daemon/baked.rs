//! Addresses that configurations of LXC have in them, beside all pools. A container that LXC gives one to would clash with
//! whoever pv-net gives it to.

use super::Daemon;
use super::leases::Reservation;
use crate::config::{ConfigError, Form, load};
use crate::ipam::LeaseKey;
use crate::model::{Container, ContainerKind, ContainerName, Device, RuntimeSpec};
use crate::runtime::lxc;
use std::io;
use std::path::PathBuf;

impl Daemon {
    /// The addresses of pools that LXC configurations have in them, and what is wrong with these files. A container
    /// that LXC does not know yet has none.
    pub(super) fn baked(&self) -> (Vec<Reservation>, Vec<ConfigError>) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        let configs = match self.paths.form() {
            Form::Own => self.declared.values().filter_map(|d| self.lxc_config(&d.container)).collect(),
            Form::Revision => load::lxc_configs(&self.paths.containers).unwrap_or_else(|wrong| {
                errors.extend(wrong);
                Vec::new()
            }),
        };
        for (name, file) in configs {
            if file.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                continue;
            }
            match load::regular(&file) {
                Ok(config) => found.extend(of_pools(&file.display().to_string(), &config, &name, &self.device)),
                Err(wrong) => errors.extend(wrong),
            }
        }
        (found, errors)
    }

    /// Where LXC has the configuration of a declared container; `None` for other runtimes.
    fn lxc_config(&self, container: &Container) -> Option<(ContainerName, PathBuf)> {
        if container.kind != ContainerKind::Lxc {
            return None;
        }
        let dir = match container.startable.as_ref().map(|startable| &startable.runtime) {
            Some(RuntimeSpec::Lxc(lxc)) => lxc.path.join(&lxc.id),
            _ => self.paths.lxc.join(container.name.as_str()),
        };
        Some((container.name.clone(), dir.join("config")))
    }
}

/// The addresses of pools in `config`, the text of `file`. They are the container's own: no other one is given them.
fn of_pools(file: &str, config: &str, container: &ContainerName, device: &Device) -> Vec<Reservation> {
    let reservation = |(interface, addr)| {
        let pool = device.pools.values().find(|pool| pool.networks().any(|net| net.contains(addr)))?;
        let key = LeaseKey { pool: pool.name.clone(), container: container.clone(), interface };
        Some(Reservation { file: file.to_owned(), addr, key })
    };
    lxc::addresses(config).into_iter().filter_map(reservation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_device;

    #[test]
    fn only_addresses_of_pools_are_reserved() {
        let device = r#"{"network": {"pools": {"a": {"subnet": "10.0.3.0/24"}, "b": {"subnet6": "fd00:4::/64"}}}}"#;
        let device = parse_device("device.json", device).expect("valid");
        let container = "web".parse().expect("a name");
        let config = "lxc.net.0.ipv4.address = 10.0.3.9/24\nlxc.net.0.ipv6.address = fd00:4::9\n\
                      lxc.net.1.ipv4.address = 10.0.4.9/24\n";
        let found = of_pools("config", config, &container, &device);
        let said: Vec<String> = found.iter().map(|r| format!("{}: {}", r.key, r.addr)).collect();
        assert_eq!(said, ["web@eth0 (pool a): 10.0.3.9", "web@eth0 (pool b): fd00:4::9"]);
    }
}
