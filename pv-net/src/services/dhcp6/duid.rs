//! The server's DUID (RFC 8415 section 11.5), of type UUID. It is made once and kept in the state directory, so that
//! clients recognise the server after a restart.

use crate::ipam::store;
use std::io;
use std::path::Path;

/// The type: a UUID follows (RFC 6355).
const UUID: [u8; 2] = [0, 4];
/// A type and a UUID.
const LEN: usize = 18;

/// The identity in the file `path`. When there is none, or it is damaged, a new one is made and written.
///
/// # Errors
/// The file system's.
pub(super) fn load(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(duid) if duid.len() == LEN && duid.starts_with(&UUID) => return Ok(duid),
        Ok(_) => tracing::warn!(path = %path.display(), "the DHCPv6 server's identity is damaged: it gets a new one"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let mut uuid = [0; LEN - UUID.len()];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    // Version 4 and the variant of RFC 9562 sections 4.1 and 5.4.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let duid = [&UUID[..], &uuid].concat();
    let name = path.file_name().and_then(|name| name.to_str()).zip(path.parent());
    let (name, dir) = name.ok_or_else(|| io::Error::other("no file name"))?;
    store::replace(dir, name, &duid).map_err(io::Error::other)?;
    Ok(duid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_the_same_and_one_that_is_damaged_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("dhcp6-duid");
        let first = load(&path).expect("made");
        assert_eq!((first.len(), &first[..2], first[8] >> 4, first[10] >> 6), (18, &UUID[..], 4, 2));
        assert_eq!(load(&path).expect("read"), first);
        std::fs::write(&path, &first[..7]).expect("written");
        let second = load(&path).expect("made");
        assert_ne!(second, first);
        assert_eq!(load(&path).expect("read"), second);
        assert!(load(&dir.path().join("none/duid")).is_err());
    }
}
