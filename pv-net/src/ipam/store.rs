//! The daemon's state on disk: one file that is replaced as a whole, so that a power cut leaves the old or the new one.

use super::Ipam;
pub use super::run_text::RunText;
use crate::kernel::kill_point;
use crate::kernel::netlink::alias::{BorrowedAddress, BorrowedForwarding};
use crate::model::{Attachment, ContainerName, IfName, NetnsRef, PoolName, Sockets};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the file's format.
const VERSION: u32 = 1;
const FILE: &str = "state.json";
/// Suffix of the file's name until it is complete.
const NEW: &str = "new";
/// Only root may read files of the state directory.
const FILE_MODE: u32 = 0o600;

/// Everything that the daemon must know after a restart, except the leases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Leases, in files of earlier versions only; the next start moves them to the lease book.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// Attached containers.
    pub containers: BTreeMap<ContainerName, Arc<ContainerRecord>>,
    /// Numbers of the pools in the maps (`pool_id`).
    pub pool_ids: BTreeMap<PoolName, u32>,
    /// Numbers of the containers in the maps: their identity for policy.
    pub identities: BTreeMap<ContainerName, u32>,
    /// The last number that was given to a pool or container.
    pub next_id: u32,
    /// Addresses that pv-net has added to bridges that it did not make.
    pub borrowed: Vec<BorrowedAddress>,
    /// Bridges that pv-net did not make and has set up.
    #[serde(default)]
    pub raised: Vec<IfName>,
    /// Forwarding sysctls that pv-net has switched on for bridges that it did not make.
    #[serde(default)]
    pub forwarding: Vec<BorrowedForwarding>,
    /// Links whose `accept_ra` was 1 before pv-net set it to 2.
    #[serde(default)]
    pub listening: Vec<IfName>,
    /// Uplinks with programs by clsact; empty on kernels with tcx (6.6), where links are pinned.
    #[serde(default, rename = "filters")]
    pub clsact: Vec<ClsactHook>,
    /// What pv-net has added to `ip_local_reserved_ports`.
    #[serde(default)]
    pub reserved_ports: Option<ReservedPorts>,
}

/// The change of `ip_local_reserved_ports`. Lists are in the kernel's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservedPorts {
    /// The value before, which is restored.
    pub was: String,
    /// The ports that were added.
    pub ours: String,
}

/// A program on an uplink by clsact. The kernel does not tell who attached it or added the qdisc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClsactHook {
    /// The uplink.
    pub link: IfName,
    /// Its index: another link of the same name has no program.
    pub index: u32,
    /// Whether pv-net added the qdisc.
    pub qdisc: bool,
}

/// An attached container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// Its `run.json`, as it was given.
    pub run: RunText,
    /// Where its namespace is; `None` when the record was learned from its links.
    pub netns: Option<NetnsRef>,
    /// Its interfaces.
    pub attachments: Vec<Attachment>,
    /// Whether it is detached when its interfaces are gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_detach: bool,
    /// A change of its interfaces that was begun and has not come to its end. The next daemon finishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// The only sockets that it may have; any where this is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Arc<Sockets>>,
}

/// A change of an attached container's interfaces. What the kernel has does not tell it: an interface that is not there
/// may have been deleted by the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Begun {
    /// The container with several interfaces is detached.
    Detach,
    /// This interface is added.
    Add(IfName),
    /// This interface is removed.
    Remove(IfName),
}

impl State {
    /// The number of `pool`; it gets one if it has none.
    pub fn pool_id(&mut self, pool: &PoolName) -> u32 {
        let next = &mut self.next_id;
        *self.pool_ids.entry(pool.clone()).or_insert_with(|| next_number(next))
    }

    /// The number of `container`; it gets one if it has none.
    pub fn identity(&mut self, container: &ContainerName) -> u32 {
        let next = &mut self.next_id;
        *self.identities.entry(container.clone()).or_insert_with(|| next_number(next))
    }
}

fn next_number(next: &mut u32) -> u32 {
    // Numbers begin with 1, since 0 stands for "nobody" in the maps.
    *next = next.saturating_add(1);
    *next
}

/// A file of the state directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}: {source}", path.display())]
pub struct StoreError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(crate) fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { op, path, source }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The contents of the file at `path`; `None` when it does not exist.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// Renames a bad file, so that a person can look at it, and returns the new name.
///
/// # Errors
/// When the file cannot be renamed.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let named = |n: u32| beside(path, &format!("corrupt-{n}"));
    let aside = (1..).map(named).find(|p| !p.exists()).unwrap_or_else(|| named(0));
    fs::rename(path, &aside).map_err(failed("set aside", path))?;
    Ok(aside)
}

/// Writes the file `name` in `dir` durably: when this returns, a power cut cannot lose it, and before that the old file
/// is there. Returns the new file, open at its end.
///
/// # Errors
/// When a file operation fails. It may then be unknown which of the two files is there.
pub(crate) fn replace(dir: &Path, name: &str, content: &[u8]) -> Result<File, StoreError> {
    let path = dir.join(name);
    let new = beside(&path, NEW);
    kill_point::pass();
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let mut file = options.open(&new).map_err(failed("write", &new))?;
    #[cfg(test)]
    recorder::note(|| recorder::Op::Create(new.clone()));
    file.write_all(content).map_err(failed("write", &new))?;
    #[cfg(test)]
    recorder::note(|| recorder::Op::Write(new.clone(), content.to_vec()));
    file.sync_all().map_err(failed("write", &new))?;
    #[cfg(test)]
    recorder::note(|| recorder::Op::Sync(new.clone()));
    kill_point::pass();
    fs::rename(&new, &path).map_err(failed("replace", &path))?;
    #[cfg(test)]
    recorder::note(|| recorder::Op::Rename(new.clone(), path.clone()));
    // Renaming is durable only after its directory was synced.
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("write", dir))?;
    #[cfg(test)]
    recorder::note(|| recorder::Op::SyncDir);
    Ok(file)
}

/// Records what is done to files, for a test that plays it on a disk that loses its power.
#[cfg(test)]
pub(crate) mod recorder {
    use std::cell::RefCell;
    use std::path::PathBuf;

    /// What was done; the bytes are appended.
    #[derive(Clone, Debug)]
    pub(crate) enum Op {
        Create(PathBuf),
        Write(PathBuf, Vec<u8>),
        Sync(PathBuf),
        Rename(PathBuf, PathBuf),
        SyncDir,
    }

    thread_local!(static OPS: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) });

    /// Begins to record what this thread does.
    pub(crate) fn begin() {
        OPS.with_borrow_mut(|ops| *ops = Some(Vec::new()));
    }

    /// Notes one, if this thread is recorded.
    pub(crate) fn note(op: impl FnOnce() -> Op) {
        OPS.with_borrow_mut(|ops| ops.as_mut().map(|ops| ops.push(op())));
    }

    /// What was done so far.
    pub(crate) fn so_far() -> Vec<Op> {
        OPS.with_borrow(|ops| ops.clone().unwrap_or_default())
    }
}

/// Removes the file `name` in `dir`, and what [`replace`] may have left. Files that were set aside stay.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn remove_file(dir: &Path, name: &str) -> Result<(), StoreError> {
    let path = dir.join(name);
    for path in [beside(&path, NEW), path] {
        kill_point::pass();
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Envelope<'a> {
    version: u32,
    /// SHA-256 of `body` in its compact form, in hexadecimal.
    checksum: String,
    #[serde(borrow)]
    body: &'a serde_json::value::RawValue,
}

fn checksum(body: &str) -> String {
    Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the state in `dir`. A file that is damaged or inconsistent is set aside under another name; the second value
/// has the conditions about that.
///
/// # Errors
/// When the file cannot be read, or a bad file cannot be set aside.
pub fn load(dir: &Path) -> Result<(State, Vec<String>), StoreError> {
    let path = dir.join(FILE);
    let Some(text) = read(&path)? else { return Ok((State::default(), Vec::new())) };
    match decode(&text) {
        Ok(state) => Ok((state, Vec::new())),
        Err(why) => {
            let aside = set_aside(&path)?;
            let condition = format!(
                "state lost: {}: {why}; set aside as {}, containers are learned again from the links that exist",
                path.display(),
                aside.display()
            );
            Ok((State::default(), vec![condition]))
        }
    }
}

/// Decodes the text of a state file.
///
/// # Errors
/// Why it is not valid: damaged, of another version, or inconsistent.
pub fn decode(text: &[u8]) -> Result<State, String> {
    let envelope: Envelope<'_> = serde_json::from_slice(text).map_err(|e| format!("torn or not JSON: {e}"))?;
    if envelope.version != VERSION {
        return Err(format!("version {} is not {VERSION}", envelope.version));
    }
    if checksum(envelope.body.get()) != envelope.checksum {
        return Err("checksum does not match".to_owned());
    }
    serde_json::from_str(envelope.body.get()).map_err(|e| e.to_string())
}

/// Encodes `state` as the text of a state file.
///
/// # Errors
/// When serde_json cannot encode it.
pub fn encode(state: &State) -> serde_json::Result<Vec<u8>> {
    Ok(envelope(&serde_json::to_string(state)?))
}

/// Puts a version and a checksum around `body`, which should be JSON.
#[must_use]
pub fn envelope(body: &str) -> Vec<u8> {
    let checksum = checksum(body);
    format!(r#"{{"version":{VERSION},"checksum":"{checksum}","body":{body}}}"#).into_bytes()
}

/// Writes the state to `dir` durably: when this returns, a power cut cannot lose it.
///
/// # Errors
/// When a file operation fails; the old file is still there then.
pub fn save(dir: &Path, state: &State) -> Result<(), StoreError> {
    let text = encode(state).map_err(|e| failed("encode", &dir.join(FILE))(e.into()))?;
    replace(dir, FILE, &text).map(drop)
}

/// Removes what [`save`] wrote.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(dir: &Path) -> Result<(), StoreError> {
    remove_file(dir, FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> State {
        let mut state = State::default();
        for name in ["web", "db"] {
            let name: ContainerName = name.parse().expect("name");
            state.identity(&name);
            let record = ContainerRecord {
                run: RunText::from(&serde_json::json!({"name": name.as_str()})),
                netns: Some(NetnsRef::Pid(7)),
                attachments: Vec::new(),
                auto_detach: name.as_str() == "db",
                begun: Some(Begun::Remove("eth1".parse().expect("name"))),
                sockets: (name.as_str() == "db").then(|| {
                    let text =
                        r#"{"listen": ["tcp/80"], "connect": [{"to": {"cidr": "10.0.0.0/8"}, "ports": ["udp"]}]}"#;
                    Arc::new(serde_json::from_str(text).expect("sockets"))
                }),
            };
            state.containers.insert(name, Arc::new(record));
        }
        state
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()).expect("absent is empty"), (State::default(), Vec::new()));
        save(dir.path(), &sample()).expect("saved");
        assert_eq!(load(dir.path()).expect("loaded"), (sample(), Vec::new()));
    }

    #[test]
    fn numbers_are_never_given_twice() {
        let mut state = sample();
        let pool = state.pool_id(&"internal".parse().expect("name"));
        assert_eq!(pool, state.pool_id(&"internal".parse().expect("name")));
        assert!(!state.identities.values().any(|id| *id == pool));
    }

    #[test]
    fn a_bad_file_is_set_aside_and_not_lost() {
        for text in [
            &b""[..],
            b"{",
            b"\xff\xfe",
            br#"{"version":9,"checksum":"","body":{}}"#,
            br#"{"version":1,"checksum":"00","body":{}}"#,
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), text).expect("written");
            let (state, conditions) = load(dir.path()).expect("no error");
            assert_eq!((state, conditions.len()), (State::default(), 1));
            assert_eq!(fs::read(dir.path().join("state.json.corrupt-1")).expect("kept"), text);
            fs::write(dir.path().join(FILE), text).expect("written");
            load(dir.path()).expect("no error");
            assert!(dir.path().join("state.json.corrupt-2").exists());
        }
    }

    proptest! {
        #[test]
        fn a_torn_file_never_passes_for_a_whole_one(cut in 0.0f64..1.0, flip in 0.0f64..1.0) {
            let dir = tempfile::tempdir().expect("a directory");
            save(dir.path(), &sample()).expect("saved");
            let path = dir.path().join(FILE);
            let whole = fs::read(&path).expect("read");
            let torn = &whole[..(cut * whole.len() as f64) as usize];
            fs::write(&path, torn).expect("written");
            prop_assert_eq!(load(dir.path()).expect("no error").1.len(), 1);
            let mut flipped = whole.clone();
            let at = (flip * whole.len() as f64) as usize;
            flipped[at] ^= 0x01;
            fs::write(&path, &flipped).expect("written");
            let (state, conditions) = load(dir.path()).expect("no error");
            // Every changed bit must be found. The envelope has no white space, where a change would mean nothing.
            prop_assert!(conditions.len() == 1 && state == State::default());
        }
    }
}
