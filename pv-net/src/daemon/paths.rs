//! Where things are, and the lock that keeps a second daemon away.

use crate::failure::{Failure, Kind};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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

    /// Makes the directories that the daemon writes to.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make(&self) -> Result<(), Failure> {
        for dir in [&self.state_dir, &self.run_dir] {
            fs::create_dir_all(dir).map_err(|e| failed("make directory", dir, &e))?;
        }
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
    /// When another daemon has it.
    pub fn take(paths: &Paths) -> Result<Self, Failure> {
        let path = paths.run_dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed("open", &path, &e))?;
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
