//! Sysctls of interfaces and of the namespace. `/proc/sys/net` shows the network namespace of the thread that opens it.

use crate::kernel::kill_point;
use crate::model::IfName;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// A sysctl that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {}: {source}", path.display())]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// What the device's own connections have their ports from.
pub const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// What they do not get of it.
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// A list of ports has at most so many bytes: every second one.
const LONGEST: usize = 256 * 1024;

/// Reads one of the namespace.
///
/// # Errors
/// The kernel's.
pub fn read(path: &str) -> Result<String, SysctlError> {
    let read = || {
        // In one call: a list of ports is cut to the size of the first, and has no second (`proc_do_large_bitmap`).
        let mut text = vec![0; LONGEST];
        let length = File::open(path)?.read(&mut text)?;
        text.truncate(length);
        String::from_utf8(text).map_err(io::Error::other)
    };
    read().map(|text| text.trim().to_owned()).map_err(|source| SysctlError { path: path.into(), source })
}

/// Writes one of the namespace.
///
/// # Errors
/// The kernel's.
pub fn write(path: &str, value: &str) -> Result<(), SysctlError> {
    kill_point::pass();
    // An empty write does not reach the kernel.
    fs::write(path, format!("{value}\n")).map_err(|source| SysctlError { path: path.into(), source })
}

/// A slash separates, so that a dot in a link's name is not taken for one.
fn path(family: &str, link: &IfName, key: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{key}"))
}

/// Reads `net.FAMILY.conf.LINK.KEY`; none when the kernel does not have it.
#[must_use]
pub fn get(family: &str, link: &IfName, key: &str) -> Option<String> {
    std::fs::read_to_string(path(family, link, key)).ok().map(|text| text.trim().to_owned())
}

/// Writes `net.ipv6.conf.LINK.KEY`, in the calling thread's namespace. Whether the kernel has it: without IPv6 there
/// is nothing to switch off.
///
/// # Errors
/// Any failure but the absence of the file.
pub fn set_ipv6(link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
    set("ipv6", link, key, value)
}

/// Writes `net.FAMILY.conf.LINK.KEY`, as [`set_ipv6`] does.
///
/// # Errors
/// Any failure but the absence of the file.
pub fn set(family: &str, link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
    let path = path(family, link, key);
    kill_point::pass();
    match std::fs::write(&path, value) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SysctlError { path, source }),
    }
}
