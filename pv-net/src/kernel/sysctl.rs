//! Sysctls of links and of the network namespace. `/proc/sys/net` shows the namespace of the thread that opens it.

use crate::kernel::kill_point;
use crate::model::IfName;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// A sysctl that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {}: {source}", path.display())]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// The error of the system call.
    pub source: io::Error,
}

/// Directory of the IPv6 sysctls of links.
pub const IPV6: &str = "/proc/sys/net/ipv6/conf";
/// The range from which the kernel chooses ports for the device's own connections.
pub const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports of that range that the kernel does not choose.
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// Most bytes of a list of ports in text form: every second port.
const LONGEST: usize = 256 * 1024;

/// Reads a sysctl of the namespace.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn read(path: &str) -> Result<String, SysctlError> {
    let read = || {
        // In one call: the kernel cuts a list of ports to the size of the first read and returns nothing to a second
        // one (`proc_do_large_bitmap`).
        let mut text = vec![0; LONGEST];
        let length = File::open(path)?.read(&mut text)?;
        text.truncate(length);
        String::from_utf8(text).map_err(io::Error::other)
    };
    read().map(|text| text.trim().to_owned()).map_err(|source| SysctlError { path: path.into(), source })
}

/// Writes a sysctl of the namespace.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &str, value: &str) -> Result<(), SysctlError> {
    kill_point::pass();
    // An empty write would not reach the kernel, so an empty list needs the newline.
    fs::write(path, format!("{value}\n")).map_err(|source| SysctlError { path: path.into(), source })
}

/// The path of a sysctl. It is built with slashes, since a link's name may have dots.
fn path(family: &str, link: &IfName, key: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{key}"))
}

/// Reads `net.FAMILY.conf.LINK.KEY`; `None` when the kernel does not have it.
#[must_use]
pub fn get(family: &str, link: &IfName, key: &str) -> Option<String> {
    std::fs::read_to_string(path(family, link, key)).ok().map(|text| text.trim().to_owned())
}

/// Writes `net.ipv6.conf.LINK.KEY` in the calling thread's namespace. Returns whether the kernel has the setting;
/// without IPv6 there is nothing to switch off.
///
/// # Errors
/// When the file exists but cannot be written.
pub fn set_ipv6(link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
    set("ipv6", link, key, value)
}

/// Writes `net.FAMILY.conf.LINK.KEY`, like [`set_ipv6`].
///
/// # Errors
/// When the file exists but cannot be written.
pub fn set(family: &str, link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
    let path = path(family, link, key);
    kill_point::pass();
    match std::fs::write(&path, value) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SysctlError { path, source }),
    }
}

/// Writes `LINK/KEY` below `directory`, which is [`IPV6`] of some namespace, like [`set_ipv6`]. The thread need not be
/// in that namespace: the kernel uses the one in which the directory was opened (`proc_sys_lookup`; seen on 6.18).
///
/// # Errors
/// When the file exists but cannot be written.
pub fn set_below(directory: BorrowedFd<'_>, link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
    let below = format!("{link}/{key}");
    kill_point::pass();
    match openat(directory, below.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file).write_all(value.as_bytes()).map(|()| true),
        Err(Errno::ENOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
    .map_err(|source| SysctlError { path: Path::new(IPV6).join(below), source })
}
