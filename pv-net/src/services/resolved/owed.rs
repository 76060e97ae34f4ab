//! The links of which systemd-resolved was told something that has to be taken back some time. When that time comes, the
//! bus may be gone, or the daemon may be another one, so they are in a file. It means nothing after a reboot.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use tokio::task::spawn_blocking;

/// Longer files are none of ours: no device has so many pools.
const LONGEST: u64 = 64 << 10;

/// The links, by their indices.
pub(super) struct Owed {
    file: PathBuf,
    links: BTreeSet<u32>,
}

impl Owed {
    /// Those that an earlier daemon has left since the last boot.
    pub async fn load(file: PathBuf) -> Self {
        let path = file.clone();
        let links = spawn_blocking(move || read(&path)).await.map_err(io::Error::other).flatten();
        let links = links.unwrap_or_else(|e| {
            tracing::warn!(file = %file.display(), error = %e, "systemd-resolved may keep what it was told: file not read");
            BTreeSet::new()
        });
        Self { file, links }
    }

    /// Whether nothing is to be taken back any more.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The links.
    pub fn links(&self) -> impl Iterator<Item = u32> {
        self.links.iter().copied()
    }

    /// Notes that something is told of this link, which is done before it is told.
    pub async fn add(&mut self, link: u32) {
        if self.links.insert(link) {
            self.write().await;
        }
    }

    /// Notes that all was taken back that was told of this link.
    pub async fn remove(&mut self, link: u32) {
        if self.links.remove(&link) {
            self.write().await;
        }
    }

    async fn write(&self) {
        let (path, links) = (self.file.clone(), self.links.clone());
        let written = spawn_blocking(move || write(&path, &links)).await.map_err(io::Error::other).flatten();
        if let Err(e) = written {
            // The running daemon knows it even without the file.
            tracing::warn!(file = %self.file.display(), error = %e, "not written down what systemd-resolved was told");
        }
    }
}

/// Reads the file; a missing one is an empty list.
fn read(file: &Path) -> io::Result<BTreeSet<u32>> {
    use std::io::Read;
    let mut text = Vec::new();
    match std::fs::File::open(file) {
        Ok(file) => file.take(LONGEST).read_to_end(&mut text)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(e),
    };
    Ok(serde_json::from_slice(&text)?)
}

/// Replaces the file in one step, so that a daemon that is killed leaves the old or the new one.
fn write(file: &Path, links: &BTreeSet<u32>) -> io::Result<()> {
    let new = file.with_extension("json.new");
    std::fs::write(&new, serde_json::to_vec(links)?)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_daemon_knows_what_is_to_be_taken_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolved.json");
        let mut owed = Owed::load(path.clone()).await;
        assert!(owed.is_empty());
        owed.add(7).await;
        owed.add(9).await;
        owed.remove(7).await;
        assert_eq!(Owed::load(path.clone()).await.links().collect::<Vec<_>>(), [9]);
        std::fs::write(&path, "x").expect("written");
        let mut owed = Owed::load(path.clone()).await;
        assert!(owed.is_empty());
        owed.add(3).await;
        assert_eq!(Owed::load(path).await.links().collect::<Vec<_>>(), [3]);
    }
}
