//! Writes a `resolv.conf` for each container, to be mounted into it.

use crate::dns::zone::PoolZone;
use crate::dns::{Zone, resolv_conf};
use crate::model::{Device, Network, PoolIpam, PoolName};
use crate::snapshot::{ContainerStatus, Phase, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::task::spawn_blocking;

/// Most files that a condition names.
const NAMED: usize = 3;
/// Readable by everybody, since a container's programs may not be root.
const MODE: u32 = 0o644;

/// The files, and the condition about them.
pub(super) struct Files {
    dir: PathBuf,
    /// The written texts, by container; `None` before the directory was read.
    written: Option<BTreeMap<String, String>>,
    wrong: Option<String>,
}

impl Files {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, written: None, wrong: None }
    }

    /// The condition.
    pub fn wrong(&self) -> impl Iterator<Item = &str> {
        self.wrong.iter().map(String::as_str)
    }

    /// Writes new and changed files, and removes those that belong to no container any more.
    pub async fn follow(&mut self, zone: &Zone, snapshot: &Snapshot) {
        let domain = snapshot.device.domain.as_str();
        let text = |container: &ContainerStatus| {
            let pools = pools(&container.phase);
            let mut servers = servers(zone, &pools);
            let mut domains = if servers.is_empty() { Vec::new() } else { vec![domain] };
            let networks = networks(&container.phase);
            servers.extend(networks.iter().flat_map(|network| network.dns()));
            domains.extend(networks.iter().flat_map(|network| network.search()));
            // Where the network chooses servers there is a file before it has, that a runtime can mount.
            let is_told = pools.iter().any(|pool| asks_network(&snapshot.device, pool));
            let text = || resolv_conf::of_container(container.name.as_str(), &domains, &servers);
            (!servers.is_empty() || is_told).then(text)
        };
        // Declared containers, too: a runtime mounts the file before it attaches the container.
        let wanted: BTreeMap<String, String> =
            snapshot.containers.iter().filter_map(|c| Some((c.name.to_string(), text(c)?))).collect();
        if self.written.as_ref() == Some(&wanted) {
            return;
        }
        let (dir, before, new) = (self.dir.clone(), self.written.take(), wanted.clone());
        let failed = spawn_blocking(move || write(&dir, before.as_ref(), &new)).await;
        let failed = failed.unwrap_or_else(|e| vec![format!("files in {}: {e}", self.dir.display())]);
        self.wrong = (!failed.is_empty()).then(|| failed[..failed.len().min(NAMED)].join("; "));
        // After a failure everything is compared again the next time, which costs little.
        self.written = failed.is_empty().then_some(wanted);
    }
}

/// A container's pools, first that of its default route.
fn pools(phase: &Phase) -> Vec<&PoolName> {
    let mut all: Vec<(Option<bool>, &PoolName)> = match phase {
        Phase::Attached(attached) => attached.record.attachments.iter().map(|a| (a.default_route, &a.pool)).collect(),
        Phase::Declared { interfaces, .. } => interfaces.iter().map(|i| (i.default_route, &i.pool)).collect(),
    };
    // Stable: those that say nothing stay in their order.
    all.sort_by_key(|(wish, _)| match wish {
        Some(true) => 0,
        None => 1,
        Some(false) => 2,
    });
    all.into_iter().map(|(_, pool)| pool).collect()
}

/// What networks have given a container's interfaces.
fn networks(phase: &Phase) -> Vec<&Network> {
    let Phase::Attached(attached) = phase else { return Vec::new() };
    attached.record.attachments.iter().filter_map(|a| a.network.as_ref()).collect()
}

fn asks_network(device: &Device, pool: &PoolName) -> bool {
    device.pools.get(pool).is_some_and(|pool| pool.ipam == PoolIpam::Dhcp)
}

/// The servers that a container in these pools asks: their gateways. In a pool whose gateway it does not reach, the
/// servers that are configured for the pool, if any.
fn servers(zone: &Zone, pools: &[&PoolName]) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    let pools = pools.iter().copied().filter(|pool| seen.insert(*pool));
    let found = pools.filter_map(|name| zone.pools().iter().find(|p| p.name == *name && p.answers));
    found.flat_map(|p| if p.is_reached { p.gateways.clone() } else { upstream(p) }).collect()
}

/// The pool's servers without TLS: to one with TLS a container would send its questions unencrypted.
fn upstream(pool: &PoolZone) -> Vec<IpAddr> {
    let plain = pool.upstream.iter().flat_map(|servers| servers.iter()).filter(|server| server.tls.is_none());
    plain.map(|server| server.address.ip()).collect()
}

/// Writes and removes as much as possible. Returns the failures; a file that cannot be written affects its own
/// container only.
fn write(dir: &Path, before: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> Vec<String> {
    let failed = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
    let mut wrong = Vec::new();
    for (name, text) in wanted {
        if before.and_then(|b| b.get(name)) != Some(text) {
            let path = dir.join(format!("{name}.conf"));
            wrong.extend(put(&path, text).err().map(|e| failed(&path, e)));
        }
    }
    let entries = match std::fs::read_dir(dir) {
        // `pv-net down` has removed the directory.
        Err(e) if e.kind() == io::ErrorKind::NotFound && wanted.is_empty() => return wrong,
        Err(e) => return [wrong, vec![failed(dir, e)]].concat(),
        Ok(entries) => entries,
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if !wanted.contains_key(name)
            && let Err(e) = std::fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            wrong.push(failed(&path, e));
        }
    }
    wrong
}

/// Writes a file. An existing file is overwritten in place, since it may be mounted into its container. If the
/// container can write to it, the file may be of any length, or locked by a lease; so it is neither read as a whole nor
/// waited for.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(mut file) => {
            let mut there = Vec::new();
            (&file).take(text.len() as u64 + 1).read_to_end(&mut there)?;
            if there == text.as_bytes() {
                return Ok(());
            }
            file.set_len(0)?;
            file.rewind()?;
            return file.write_all(text.as_bytes());
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(&new)?;
    file.write_all(text.as_bytes())?;
    // Set explicitly, independent of the umask.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(MODE))?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_is_mounted_somewhere_stays_that_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let one = |text: &str| BTreeMap::from([("web".to_owned(), text.to_owned())]);
        let (first, second) = (one("nameserver 10.0.3.1\n# long\n"), one("nameserver 10.0.4.1\n"));
        let path = dir.path().join("web.conf");
        std::fs::write(dir.path().join("old.conf"), "x").expect("written");
        assert!(write(dir.path(), None, &first).is_empty());
        let inode = || std::fs::metadata(&path).map(|m| (m.ino(), m.mode() & 0o777)).expect("there");
        let before = inode();
        assert_eq!(before.1, 0o644);
        assert!(write(dir.path(), Some(&first), &second).is_empty());
        assert_eq!((inode(), std::fs::read_to_string(&path).expect("read")), (before, second["web"].clone()));
        assert!(!dir.path().join("old.conf").exists());
        // A container has made the file longer than any memory.
        let file = File::options().write(true).open(&path).expect("opened");
        file.set_len(1 << 40).expect("made longer");
        assert!(write(dir.path(), None, &second).is_empty());
        assert_eq!((inode(), std::fs::read_to_string(&path).expect("read")), (before, second["web"].clone()));
        assert!(write(dir.path(), Some(&second), &BTreeMap::new()).is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
    }

    #[test]
    fn one_file_that_cannot_be_written_is_nobody_elses_matter() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = ["a", "b", "c"].map(|name| (name.to_owned(), "nameserver 10.0.3.1\n".to_owned()));
        std::os::unix::fs::symlink("/nowhere", dir.path().join("b.conf")).expect("linked");
        std::fs::write(dir.path().join("old.conf"), "x").expect("written");
        let wrong = write(dir.path(), None, &BTreeMap::from(names));
        assert!(wrong.len() == 1 && wrong[0].contains("b.conf: "), "{wrong:?}");
        assert!(dir.path().join("a.conf").exists() && dir.path().join("c.conf").exists());
        assert!(!dir.path().join("old.conf").exists());
    }
}
