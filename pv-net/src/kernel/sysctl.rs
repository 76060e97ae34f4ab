//! Per-interface sysctls. `/proc/sys/net` shows the network namespace of the thread that opens it.

use crate::model::IfName;
use std::io;
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
    match std::fs::write(&path, value) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SysctlError { path, source }),
    }
}
