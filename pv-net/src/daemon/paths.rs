//! Paths of the daemon's files, and the locks that keep a second daemon away.

use crate::config::Form;
use crate::failure::{Failure, Kind};
use crate::kernel::claim::{self, Claim};
use crate::kernel::own_dir::DirLock;
use crate::kernel::{kill_point, own_dir};
use crate::pantavisor::Revision;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Only root may read the state: it includes the `run.json` of containers.
const STATE_DIR_MODE: u32 = 0o700;
/// Everybody may enter: the socket in it has its own permissions.
const RUN_DIR_MODE: u32 = 0o755;
/// Nobody else may open the lock file, since whoever can open it can hold the lock.
const LOCK_MODE: u32 = 0o600;

/// Files and directories of one daemon.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `device.json`.
    pub config: PathBuf,
    /// Declared containers: the directory of `NAME/run.json`.
    pub containers: PathBuf,
    /// LXC's containers: the directory of `NAME/config`.
    pub lxc: PathBuf,
    /// State that survives a reboot.
    pub state_dir: PathBuf,
    /// Socket, lock, and other files that do not survive a reboot.
    pub run_dir: PathBuf,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Cgroup for the socket hooks.
    pub cgroup: PathBuf,
    /// The device's `resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The revision of Pantavisor that `config` and `containers` are in, if they are in one.
    pub revision: Option<Revision>,
}

fn failed(op: &str, path: &Path, e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{op} {}: {e}", path.display()))
}

impl Paths {
    /// The form of the configuration's files.
    #[must_use]
    pub fn form(&self) -> Form {
        if self.revision.is_some() { Form::Revision } else { Form::Own }
    }

    /// The name of the revision of Pantavisor that runs.
    #[must_use]
    pub fn running_revision(&self) -> Option<String> {
        self.revision.as_ref().and_then(Revision::name)
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// The runner's socket.
    #[must_use]
    pub fn runner_socket(&self) -> PathBuf {
        self.run_dir.join("runner.sock")
    }

    /// A file that exists while this daemon has RCU grace periods shortened.
    #[must_use]
    pub fn grace_marker(&self) -> PathBuf {
        self.run_dir.join("rcu-expedited")
    }

    /// The list of detached declared containers and their namespaces. Neither the namespaces nor this file survive a
    /// reboot.
    #[must_use]
    pub fn detached(&self) -> PathBuf {
        self.run_dir.join("detached.json")
    }

    /// The list of links of which systemd-resolved was told something.
    #[must_use]
    pub fn resolved(&self) -> PathBuf {
        self.run_dir.join("resolved.json")
    }

    /// The directory of `NAME.conf`, a `resolv.conf` for each container.
    #[must_use]
    pub fn resolv_confs(&self) -> PathBuf {
        self.run_dir.join("resolv")
    }

    /// The identity of the DHCPv6 server.
    #[must_use]
    pub fn dhcp6_duid(&self) -> PathBuf {
        self.state_dir.join("dhcp6-duid")
    }

    /// Removes the list of links of which systemd-resolved was told something: it forgets a link that is removed.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_resolved(&self) -> Result<(), Failure> {
        let path = self.resolved();
        kill_point::pass();
        or_gone(&path, std::fs::remove_file(&path))
    }

    /// Removes the list of declared containers that were detached by hand.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_detached(&self) -> Result<(), Failure> {
        let path = self.detached();
        kill_point::pass();
        or_gone(&path, std::fs::remove_file(&path))
    }

    /// Removes the containers' `resolv.conf`s.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_resolv_confs(&self) -> Result<(), Failure> {
        let path = self.resolv_confs();
        kill_point::pass();
        or_gone(&path, std::fs::remove_dir_all(&path))
    }

    /// Makes the directories that the daemon writes to.
    ///
    /// # Errors
    /// When one cannot be made, or others could change what is in it.
    pub fn make(&self) -> Result<(), Failure> {
        own_dir::make(&self.state_dir, STATE_DIR_MODE)?;
        own_dir::make(&self.run_dir, RUN_DIR_MODE)?;
        own_dir::make(&self.resolv_confs(), RUN_DIR_MODE)?;
        Ok(())
    }
}

/// What came of removing `path`, which need not have been there.
fn or_gone(path: &Path, removed: io::Result<()>) -> Result<(), Failure> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}

/// What a daemon has alone: its run directory, its state directory and its network namespace. Its pins it locks when it
/// opens them.
pub struct RunLock {
    _run: Option<Flock<File>>,
    _state: Option<DirLock>,
    _netns: Claim,
}

impl RunLock {
    /// Takes the locks of the directories that exist, and claims the network namespace.
    ///
    /// # Errors
    /// When another daemon has one of them, or the lock's file belongs to somebody else.
    pub fn take(paths: &Paths) -> Result<Self, Failure> {
        let run = paths.run_dir.exists().then(|| Self::of_run_dir(paths)).transpose()?;
        let state = paths.state_dir.exists().then(|| own_dir::lock(&paths.state_dir)).transpose()?;
        Ok(Self { _run: run, _state: state, _netns: claim::network_namespace()? })
    }

    /// Takes the lock of the run directory alone.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn of_run_dir(paths: &Paths) -> Result<Flock<File>, Failure> {
        let path = paths.run_dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(LOCK_MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|e| failed("open", &path, &e))?;
        let found = file.metadata().map_err(|e| failed("look at", &path, &e))?;
        own_dir::check_file(&path, &found)?;
        // Earlier versions made the file with wider permissions.
        if found.mode() & 0o777 != LOCK_MODE {
            let narrowed = file.set_permissions(Permissions::from_mode(LOCK_MODE));
            narrowed.map_err(|e| failed("set the mode of", &path, &e))?;
        }
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(file),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let why = format!("{}: another daemon runs with this run directory", paths.run_dir.display());
                Err(Failure::new(Kind::Conflict, why).help("stop it, or give this one its own --run-dir"))
            }
            Err((_, e)) => Err(failed("lock", &path, &e.into())),
        }
    }
}
