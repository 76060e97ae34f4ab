//! The device's own name servers, from its `resolv.conf`. The file is checked only when somebody asks, so that an idle
//! daemon never wakes for it. It may be a symbolic link.

use super::resolv_conf::{self, RESOLVED};
use crate::model::NameServer;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How often the file is checked for changes at most.
const LOOK: Duration = Duration::from_millis(500);
/// How long the file system may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes that are read.
const MAX_BYTES: u64 = 64 << 10;

/// What tells whether a file has changed.
pub(super) type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The device's name servers.
#[derive(Debug)]
pub(crate) struct DeviceServers {
    path: Arc<Path>,
    state: Mutex<State>,
    /// Held by the task that reads the file, until it has finished.
    looking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    looked: Option<Instant>,
    stamps: [Stamp; 2],
    servers: Arc<[NameServer]>,
}

impl DeviceServers {
    /// The servers named in the file at `path`.
    #[must_use]
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path: path.into(), state: Mutex::default(), looking: Arc::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is a single assignment, so the state is valid even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers, unless the file has to be checked again.
    #[must_use]
    pub(crate) fn known(&self, now: Instant) -> Option<Arc<[NameServer]>> {
        let state = self.state();
        let looked = state.looked?;
        (now.saturating_duration_since(looked) < LOOK).then(|| state.servers.clone())
    }

    /// The servers that the file names now. A file system that does not answer delays only the callers of this
    /// function.
    pub(crate) async fn current(&self) -> Arc<[NameServer]> {
        if let Some(servers) = self.known(Instant::now()) {
            return servers;
        }
        // One task reads the file and the others wait for it, but not longer than [`PATIENCE`].
        let Ok(looking) = timeout(PATIENCE, self.looking.clone().lock_owned()).await else {
            return self.state().servers.clone();
        };
        if let Some(servers) = self.known(Instant::now()) {
            return servers;
        }
        let (path, before) = (self.path.clone(), self.state().clone());
        let look = spawn_blocking(move || {
            let looked = look(&path, before);
            drop(looking);
            looked
        });
        if let Ok(Ok(looked)) = timeout(PATIENCE, look).await {
            *self.state() = looked;
        }
        self.state().servers.clone()
    }
}

pub(super) fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

fn look(path: &Path, before: State) -> State {
    let looked = Some(Instant::now());
    // The stamps are taken before the files are read, so that a change in between is seen the next time.
    let stamps = [stamp(path), stamp(Path::new(RESOLVED))];
    if before.looked.is_some() && stamps == before.stamps {
        return State { looked, ..before };
    }
    let mut servers = read(path);
    if resolv_conf::is_stub(&servers) {
        let real = read(Path::new(RESOLVED));
        if !real.is_empty() {
            servers = real;
        }
    }
    tracing::info!(file = %path.display(), ?servers, "the device's servers for names");
    State { looked, stamps, servers: servers.into_iter().map(NameServer::plain).collect() }
}

fn read(path: &Path) -> Vec<SocketAddr> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let done = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    if let Err(e) = done {
        tracing::debug!(file = %path.display(), error = %e, "not read");
        return Vec::new();
    }
    let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    resolv_conf::servers(&String::from_utf8_lossy(&bytes), index)
}
