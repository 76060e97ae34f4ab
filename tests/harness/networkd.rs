//! systemd-networkd, which manages the links of a namespace.

use crate::{Namespace, Process};
use anyhow::{Context, Result};
use std::process::Stdio;

/// The shortest lease that it surely renews: its timers are up to 10 s late, so that they come at the same time as others,
/// and half of a lease must be longer than that.
pub const LEASE: &str = "24s";

/// What it needs of a machine: places of its own for its files, and `/sys` read-only, or it waits for udev for ever.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /etc/systemd/network
mount -t sysfs -o ro sysfs /sys
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network /run/systemd/netif
printf "$1" > /etc/systemd/network/10-link.network
exec /lib/systemd/systemd-networkd
"#;

/// What it notes of a link that it manages, such as the servers of its leases.
///
/// # Errors
/// When it has noted nothing yet.
pub fn noted(networkd: &Process, ns: &Namespace, link: &str) -> Result<String> {
    let index = ns.ip(&format!("-o link show dev {link}"))?;
    let index = index.split(':').next().context("no index")?;
    // Its /run is that of its own mount namespace.
    let file = format!("/proc/{}/root/run/systemd/netif/links/{index}", networkd.pid());
    std::fs::read_to_string(&file).with_context(|| file.clone())
}

/// Starts it. It manages `link` as `network` says, which are settings of the section `[Network]`.
///
/// # Errors
/// When it cannot be started.
pub fn start(ns: &Namespace, link: &str, network: &str) -> Result<Process> {
    let settings = format!("[Match]\nName={link}\n[Network]\nLinkLocalAddressing=ipv6\n{network}\n");
    let mut command = ns.command("unshare");
    command.args(["-m", "sh", "-ec", SCRIPT, "networkd", &settings]);
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}
