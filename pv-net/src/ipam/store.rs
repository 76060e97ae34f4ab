//! The daemon's state on disk: one file, replaced whole, so that a power cut leaves the old or the new one.

use super::{Ipam, Lease};
use crate::kernel::kill_point;
use crate::kernel::netlink::alias::{BorrowedAddress, BorrowedForwarding};
use crate::model::{Attachment, ContainerName, IfName, NetnsRef, PoolName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the file's form.
const VERSION: u32 = 1;
const FILE: &str = "state.json";
const NEW_FILE: &str = "state.json.new";

/// All that the daemon must know after a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Addresses.
    pub ipam: Ipam,
    /// Attached containers.
    pub containers: BTreeMap<ContainerName, Arc<ContainerRecord>>,
    /// Numbers of the pools in the maps.
    pub pool_ids: BTreeMap<PoolName, u32>,
    /// Numbers of the containers in the maps: their identity for policy.
    pub identities: BTreeMap<ContainerName, u32>,
    /// The next number that nobody had.
    pub next_id: u32,
    /// Addresses on bridges that somebody else made.
    pub borrowed: Vec<BorrowedAddress>,
    /// Bridges that somebody else made, and that were down.
    #[serde(default)]
    pub raised: Vec<IfName>,
    /// Sysctls of bridges that somebody else made.
    #[serde(default)]
    pub forwarding: Vec<BorrowedForwarding>,
    /// Bridges that somebody else made, and whose `accept_ra` was 1 before they forwarded.
    #[serde(default)]
    pub listening: Vec<IfName>,
    /// Uplinks with programs by clsact; none where the kernel has tcx (6.6), whose links are pinned.
    #[serde(default, rename = "filters")]
    pub clsact: Vec<ClsactHook>,
    /// Ports that the device does not take for itself.
    #[serde(default)]
    pub reserved_ports: Option<ReservedPorts>,
}

/// What was done to `ip_local_reserved_ports`. Lists as the kernel writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservedPorts {
    /// What was there, and is given back.
    pub was: String,
    /// What was added.
    pub ours: String,
}

/// A program on an uplink by clsact. Nothing in the kernel says who put it there, nor who added the qdisc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClsactHook {
    /// The uplink.
    pub link: IfName,
    /// Its index: another link of that name has no program.
    pub index: u32,
    /// Whether pv-net added the qdisc.
    pub qdisc: bool,
}

/// An attached container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// Its `run.json`, as it was given.
    pub run: serde_json::Value,
    /// Where its namespace is; unknown when it was learned again from its links.
    pub netns: Option<NetnsRef>,
    /// Its interfaces.
    pub attachments: Vec<Attachment>,
}

impl State {
    /// The number of `pool`, given to it now if it has none.
    pub fn pool_id(&mut self, pool: &PoolName) -> u32 {
        let next = &mut self.next_id;
        *self.pool_ids.entry(pool.clone()).or_insert_with(|| next_number(next))
    }

    /// The number of `container`, given to it now if it has none.
    pub fn identity(&mut self, container: &ContainerName) -> u32 {
        let next = &mut self.next_id;
        *self.identities.entry(container.clone()).or_insert_with(|| next_number(next))
    }

    /// The leases of one container.
    pub fn leases_of(&self, container: &ContainerName) -> impl Iterator<Item = &Lease> {
        self.ipam.leases().filter(move |l| l.key.container == *container)
    }
}

fn next_number(next: &mut u32) -> u32 {
    // Zero stands for "nobody" in the maps.
    *next = next.saturating_add(1);
    *next
}

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}: {source}", path.display())]
pub struct StoreError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { op, path, source }
}

#[derive(Serialize, Deserialize)]
struct Envelope<B> {
    version: u32,
    /// SHA-256 of `body` in its compact form, hexadecimal.
    checksum: String,
    body: B,
}

fn checksum(body: &str) -> String {
    Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the state in `dir`. A file that is torn or makes no sense is set aside under another name, and what happened
/// is said in the second value.
///
/// # Errors
/// Only when the disk cannot be read or the bad file not be set aside.
pub fn load(dir: &Path) -> Result<(State, Vec<String>), StoreError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((State::default(), Vec::new())),
        Err(e) => return Err(failed("read", &path)(e)),
    };
    match decode(&text) {
        Ok(state) => Ok((state, Vec::new())),
        Err(why) => {
            let aside = free_name(dir);
            fs::rename(&path, &aside).map_err(failed("set aside", &path))?;
            let condition = format!(
                "state lost: {}: {why}; set aside as {}, leases are learned again from the links that exist",
                path.display(),
                aside.display()
            );
            Ok((State::default(), vec![condition]))
        }
    }
}

fn free_name(dir: &Path) -> PathBuf {
    (1u32..).map(|n| dir.join(format!("{FILE}.corrupt-{n}"))).find(|p| !p.exists()).unwrap_or_else(|| dir.join(FILE))
}

/// The state in the text of a file.
///
/// # Errors
/// What is wrong with it: that it is torn, of another version, or makes no sense.
pub fn decode(text: &[u8]) -> Result<State, String> {
    let envelope: Envelope<&serde_json::value::RawValue> =
        serde_json::from_slice(text).map_err(|e| format!("torn or not JSON: {e}"))?;
    if envelope.version != VERSION {
        return Err(format!("version {} is not {VERSION}", envelope.version));
    }
    if checksum(envelope.body.get()) != envelope.checksum {
        return Err("checksum does not match".to_owned());
    }
    serde_json::from_str(envelope.body.get()).map_err(|e| e.to_string())
}

/// The text of the file that holds `state`.
///
/// # Errors
/// The encoder's.
pub fn encode(state: &State) -> serde_json::Result<Vec<u8>> {
    envelope(serde_json::to_string(state)?)
}

/// The text of a file with this body.
///
/// # Errors
/// When it is no JSON.
pub fn envelope(body: String) -> serde_json::Result<Vec<u8>> {
    let checksum = checksum(&body);
    let body = serde_json::value::RawValue::from_string(body)?;
    serde_json::to_vec(&Envelope { version: VERSION, checksum, body })
}

/// Writes the state to `dir`, durably: when this returns, a power cut cannot lose it.
///
/// # Errors
/// When the disk refuses; the old file is still there then.
pub fn save(dir: &Path, state: &State) -> Result<(), StoreError> {
    let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
    let text = encode(state).map_err(|e| failed("encode", &path)(e.into()))?;
    kill_point::pass();
    let mut file = File::create(&new).map_err(failed("write", &new))?;
    file.write_all(&text).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("write", &new))?;
    kill_point::pass();
    fs::rename(&new, &path).map_err(failed("replace", &path))?;
    // The name is durable when its directory is.
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("write", dir))
}

/// Removes what [`save`] wrote; what was set aside stays, for a person to look at.
///
/// # Errors
/// When the disk refuses.
pub fn remove(dir: &Path) -> Result<(), StoreError> {
    for path in [dir.join(FILE), dir.join(NEW_FILE)] {
        kill_point::pass();
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
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
                run: serde_json::json!({"name": name.as_str()}),
                netns: Some(NetnsRef::Pid(7)),
                attachments: Vec::new(),
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
            // A flip in the white space of the envelope would change nothing; there is none.
            prop_assert!(conditions.len() == 1 && state == State::default());
        }
    }
}
