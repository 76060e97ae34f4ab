//! The work of an init process: file systems, modules, and power-off.

use crate::console;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::convert::Infallible;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

/// File systems, in the order in which they are mounted: type and place.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// A file with the names of modules, one a line, each after those that it needs; `cargo xtask vm` makes it.
const MODULES: &str = "/modules/order";

/// Prepares the machine so that the daemon can run on it.
pub fn prepare() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        match mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>) {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(why) => return Err(why).with_context(|| format!("mount {kind} on {place}")),
        }
    }
    for name in fs::read_to_string(MODULES).context(MODULES)?.lines() {
        load(name).with_context(|| format!("module {name}"))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let machine = nix::sys::utsname::uname()?.machine().to_string_lossy().into_owned();
    console::fact(&format!("kernel {} {machine}", release.trim()));
    Ok(())
}

fn load(name: &str) -> Result<()> {
    let file = File::open(format!("/modules/{name}"))?;
    // SAFETY: an open file, an empty string of parameters, no flags.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Powers the machine off.
pub fn power_off() -> ExitCode {
    let off = || -> Result<Infallible, Errno> {
        nix::unistd::sync();
        // SAFETY: no memory is involved; it does not return but with an error.
        Err(Errno::result(unsafe { libc::reboot(libc::RB_POWER_OFF) }).err().unwrap_or(Errno::UnknownErrno))
    };
    match off() {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("power off: {why}");
            ExitCode::FAILURE
        }
    }
}
