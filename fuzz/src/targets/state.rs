//! The daemon's state file: what was saved is loaded, and unreadable files are reported.

use pv_net::ipam::store::{State, decode, encode, envelope, load};
use std::path::Path;
use tempfile::TempDir;

/// Target `state`. The input is used as a file, and as the body of a file with a valid checksum.
pub fn check(input: &[u8]) {
    file(input);
    if let Ok(text) = std::str::from_utf8(input) {
        file(&envelope(text));
    }
}

fn file(bytes: &[u8]) {
    let dir = folder();
    let path = dir.path().join("state.json");
    std::fs::write(&path, bytes).expect("a file in memory");
    let (state, conditions) = load(dir.path()).expect("a file that is there is read");
    match decode(bytes) {
        Ok(decoded) => {
            assert!(conditions.is_empty() && path.exists());
            assert_eq!(state, decoded);
            let saved = encode(&state).expect("what was decoded can be encoded");
            let again = decode(&saved).expect("what was encoded can be decoded");
            assert_eq!(again, state, "saved and loaded");
            assert_eq!(encode(&again).expect("encoded"), saved);
        }
        Err(why) => {
            assert!(!why.is_empty());
            assert_eq!((state, conditions.len()), (State::default(), 1), "it is said: {why}");
            let aside = std::fs::read(dir.path().join("state.json.corrupt-1")).expect("it is set aside");
            assert_eq!(aside, bytes);
            assert!(!path.exists());
        }
    }
}

/// A directory in memory, if there is such a file system.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a folder")
}

/// Names of fields, and values of their kinds.
pub fn words() -> Vec<Vec<u8>> {
    let words = "ipam leases cursors key pool container interface ipv4 ipv6 mac fixed v4 v6 turn released containers \
        run netns path pid attachments host_if default_route pool_ids identities next_id borrowed link address raised \
        sockets listen connect resolve to ports cidr world host tcp/80 forwarding family filters index qdisc version checksum body web db eth0 internal 10.0.3.2 fd00::2 10.0.3.1/24 \
        02:00:0a:00:03:02";
    words.split(' ').map(|w| w.as_bytes().to_vec()).collect()
}
