//! Addresses that configurations of LXC have in them, beside all pools. A container that LXC gives one to would clash with
//! whoever pv-net gives it to.

use super::Daemon;
use super::leases::Reservation;
use crate::config::{ConfigError, load};
use crate::ipam::LeaseKey;
use crate::model::{Container, ContainerKind, Device, RuntimeSpec};
use crate::runtime::lxc;
use std::io;

impl Daemon {
    /// The addresses of pools that the LXC configuration of a declared container has in it; none for other runtimes, and
    /// for a container that LXC does not know yet.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub(super) fn baked(&self, container: &Container) -> Result<Vec<Reservation>, Vec<ConfigError>> {
        if container.kind != ContainerKind::Lxc {
            return Ok(Vec::new());
        }
        let dir = match container.startable.as_ref().map(|startable| &startable.runtime) {
            Some(RuntimeSpec::Lxc(lxc)) => lxc.path.join(&lxc.id),
            _ => self.paths.lxc.join(container.name.as_str()),
        };
        let file = dir.join("config");
        if file.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(Vec::new());
        }
        Ok(of_pools(&file.display().to_string(), &load::regular(&file)?, container, &self.device))
    }
}

/// The addresses of pools in `config`, the text of `file`. They are the container's own: no other one is given them.
fn of_pools(file: &str, config: &str, container: &Container, device: &Device) -> Vec<Reservation> {
    let reservation = |(interface, addr)| {
        let pool = device.pools.values().find(|pool| pool.networks().any(|net| net.contains(addr)))?;
        let key = LeaseKey { pool: pool.name.clone(), container: container.name.clone(), interface };
        Some(Reservation { file: file.to_owned(), addr, key })
    };
    lxc::addresses(config).into_iter().filter_map(reservation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse_device, parse_run};

    #[test]
    fn only_addresses_of_pools_are_reserved() {
        let device = r#"{"network": {"pools": {"a": {"subnet": "10.0.3.0/24"}, "b": {"subnet6": "fd00:4::/64"}}}}"#;
        let device = parse_device("device.json", device).expect("valid");
        let container = parse_run("run.json", r#"{"name": "web", "type": "lxc", "network": {"mode": "none"}}"#);
        let config = "lxc.net.0.ipv4.address = 10.0.3.9/24\nlxc.net.0.ipv6.address = fd00:4::9\n\
                      lxc.net.1.ipv4.address = 10.0.4.9/24\n";
        let found = of_pools("config", config, &container.expect("valid"), &device);
        let said: Vec<String> = found.iter().map(|r| format!("{}: {}", r.key, r.addr)).collect();
        assert_eq!(said, ["web@eth0 (pool a): 10.0.3.9", "web@eth0 (pool b): fd00:4::9"]);
    }
}
