//! The format of the lease file. Pure.

use crate::ipam::{Change, Ipam};

/// The beginning of a lease file: its kind and version.
const MAGIC: &[u8; 16] = b"pv-net leases 1\n";
/// Bytes in front of a frame's content: its length, the content's checksum, and the checksum of these two words.
const HEADER: usize = 12;

/// The contents of a lease file.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The leases after all changes.
    pub ipam: Ipam,
    /// Bytes of the snapshot, including what is in front of it.
    pub snapshot: usize,
    /// Bytes that are complete. What follows was being written when the power went, and nobody had got an answer for
    /// it.
    pub whole: usize,
}

/// A file that holds `ipam` and no changes.
///
/// # Errors
/// When serde_json cannot encode it.
pub fn snapshot(ipam: &Ipam) -> serde_json::Result<Vec<u8>> {
    Ok([MAGIC.as_slice(), &frame(&serde_json::to_vec(ipam)?)].concat())
}

/// The frame of one batch, to be appended.
///
/// # Errors
/// When serde_json cannot encode it.
pub fn batch(changes: &[Change]) -> serde_json::Result<Vec<u8>> {
    Ok(frame(&serde_json::to_vec(changes)?))
}

/// `content` with its length and checksums in front. Batches and snapshots are far below 4 GiB; for anything longer the
/// length is wrong, and the frame is not read.
#[must_use]
pub fn frame(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(crc32fast::hash(content).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(content);
    bytes
}

/// If `bytes` begins with a complete frame: its content, and what follows it.
fn whole_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if crc32fast::hash(&header[..8]) != word(8)? {
        return None;
    }
    let (content, rest) = rest.split_at_checked(usize::try_from(word(0)?).ok()?)?;
    (crc32fast::hash(content) == word(4)?).then_some((content, rest))
}

/// Whether a complete frame begins anywhere in `bytes`. Because the header has its own checksum, the content is checked
/// at few places only.
fn has_frame(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| whole_frame(&bytes[at..]).is_some())
}

/// Decodes a lease file.
///
/// A batch is appended only when the one before it is on disk. So an incomplete last frame was being written when the
/// power went, and is left out. An incomplete frame with complete frames behind it is damage.
///
/// # Errors
/// Why the file is not valid: of another kind, damaged, or inconsistent.
pub fn decode(bytes: &[u8]) -> Result<Contents, String> {
    let Some(framed) = bytes.strip_prefix(MAGIC) else {
        return Err("not a lease file of this version".to_owned());
    };
    // The file got its name when all of this was on disk, so the snapshot must be complete.
    let (content, mut rest) = whole_frame(framed).ok_or("the snapshot in it is damaged")?;
    let mut ipam: Ipam = serde_json::from_slice(content).map_err(|e| format!("its snapshot: {e}"))?;
    let snapshot = bytes.len() - rest.len();
    while let Some((content, next)) = whole_frame(rest) {
        let at = bytes.len() - rest.len();
        let changes: Vec<Change> = serde_json::from_slice(content).map_err(|e| format!("byte {at}: {e}"))?;
        for change in changes {
            ipam.apply(change).map_err(|e| format!("byte {at}: {e}"))?;
        }
        rest = next;
    }
    let whole = bytes.len() - rest.len();
    if has_frame(rest) {
        return Err(format!("byte {whole}: damaged, with leases behind it"));
    }
    Ok(Contents { ipam, snapshot, whole })
}
