//! Where things are, and the lock that keeps a second daemon away.

use crate::failure::{Failure, Kind};
use crate::kernel::own_dir;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Only root reads the state: it has what containers were started with.
const STATE_DIR_MODE: u32 = 0o700;
/// The socket in it says itself who may talk to the daemon.
const RUN_DIR_MODE: u32 = 0o755;
/// Whoever can open the lock can hold it.
const LOCK_MODE: u32 = 0o600;

/// Files and directories of one daemon.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `device.json`.
    pub config: PathBuf,
    /// Declared containers: `NAME/run.json`.
    pub containers: PathBuf,
    /// State that survives a reboot.
    pub state_dir: PathBuf,
    /// Socket and lock.
    pub run_dir: PathBuf,
    /// Pins.
    pub bpffs: PathBuf,
    /// Cgroup for socket hooks.
    pub cgroup: PathBuf,
}

fn failed(op: &str, path: &Path, e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{op} {}: {e}", path.display()))
}

impl Paths {
    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// There while grace periods are short by this daemon.
    #[must_use]
    pub fn grace_marker(&self) -> PathBuf {
        self.run_dir.join("rcu-expedited")
    }

    /// Makes the directories that the daemon writes to.
    ///
    /// # Errors
    /// When one cannot be made, or others could change what is in it.
    pub fn make(&self) -> Result<(), Failure> {
        own_dir::make(&self.state_dir, STATE_DIR_MODE)?;
        own_dir::make(&self.run_dir, RUN_DIR_MODE)?;
        Ok(())
    }
}

/// Held by the one daemon of a run directory.
pub struct RunLock {
    _file: Flock<File>,
}

impl RunLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// When another daemon has it, or the file is not ours.
    pub fn take(paths: &Paths) -> Result<Self, Failure> {
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
        // Earlier versions let everybody open it.
        if found.mode() & 0o777 != LOCK_MODE {
            let narrowed = file.set_permissions(Permissions::from_mode(LOCK_MODE));
            narrowed.map_err(|e| failed("set the mode of", &path, &e))?;
        }
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let why = format!("{}: another daemon runs with this run directory", paths.run_dir.display());
                Err(Failure::new(Kind::Conflict, why).help("stop it, or give this one its own --run-dir"))
            }
            Err((_, e)) => Err(failed("lock", &path, &e.into())),
        }
    }
}
