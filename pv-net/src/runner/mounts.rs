//! The files that a program of the launcher sees: those of the device, without its sources of names, and without `/run` with the
//! sockets of its services.

use crate::failure::{Failure, Kind};
use nix::mount::{MsFlags, mount};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Where services have their sockets: directories of which a program sees nothing.
pub(super) const HIDDEN: [&str; 2] = ["/run", "/var/run"];
const ETC: &str = "/etc";
/// Where the device's `/etc` is for a program.
const DEVICE_ETC: &str = "/run/etc";
const RESOLV_CONF: &str = "resolv.conf";
/// The files of which a program has its own. With these the C library asks the name servers of `resolv.conf` itself, and no
/// service or file of the device.
const OWN: [(&str, &str); 3] =
    [(RESOLV_CONF, ""), ("hosts", ""), ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")];

fn failed(what: impl std::fmt::Display, e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}

/// Makes the mounts, in a mount namespace that only this process has. `resolv_conf` is the container's; without it no names
/// are resolved.
///
/// # Errors
/// When a file cannot be mounted.
pub(super) fn arrange(resolv_conf: &Path) -> Result<(), Failure> {
    let none: Option<&str> = None;
    // What the device unmounts later is unmounted here too, and nothing that is mounted here is seen there.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).map_err(|e| failed("mounts", e))?;
    let bind = |source: &Path, target: &Path| {
        let bound = mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none);
        bound.map_err(|e| failed(format!("mount {} at {}", source.display(), target.display()), e))
    };
    let servers = match File::open(resolv_conf) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(resolv_conf.display(), e)),
    };
    let [run, var_run] = HIDDEN;
    empty(run)?;
    // Mostly they are one.
    if is_another(run, var_run) {
        empty(var_run)?;
    }
    std::fs::create_dir(DEVICE_ETC).map_err(|e| failed(DEVICE_ETC, e))?;
    bind(Path::new(ETC), Path::new(DEVICE_ETC))?;
    // A file that was mounted over one of the device's would be gone when that is replaced, so the directory is this one's.
    empty(ETC)?;
    links().map_err(|e| failed(ETC, e))?;
    for (name, text) in OWN {
        let path = Path::new(ETC).join(name);
        std::fs::write(&path, text).map_err(|e| failed(path.display(), e))?;
    }
    match servers {
        // Its path leads nowhere by now.
        Some(file) => {
            let open = format!("/proc/self/fd/{}", file.as_raw_fd());
            bind(Path::new(&open), &Path::new(ETC).join(RESOLV_CONF))
        }
        None => Ok(()),
    }
}

/// Mounts an empty directory, in which only root can write.
fn empty(at: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("mode=0755")).map_err(|e| failed(format!("mount {at}"), e))
}

/// Whether `dir` is a directory, and not `one`.
fn is_another(one: &str, dir: &str) -> bool {
    let place = |path: &str| Path::new(path).canonicalize().ok();
    place(dir).is_some_and(|dir| dir.is_dir() && Some(dir) != place(one))
}

/// Links to everything else that the device has in `/etc`. Its own links stay as they are: relative ones lead elsewhere from
/// another directory.
fn links() -> io::Result<()> {
    for entry in std::fs::read_dir(DEVICE_ETC)? {
        let entry = entry?;
        let name = entry.file_name();
        if OWN.iter().any(|(own, _)| name == *own) {
            continue;
        }
        let target = std::fs::read_link(entry.path()).unwrap_or_else(|_| entry.path());
        symlink(target, Path::new(ETC).join(name))?;
    }
    Ok(())
}
