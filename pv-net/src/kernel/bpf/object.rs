//! The eBPF object, built from `pv-net-ebpf`.

use super::BpfError;
use miniz_oxide::inflate::decompress_to_vec_with_limit;

/// The object, deflated (RFC 1951) to a fifth.
static DEFLATED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-net-ebpf.deflate"));
/// More than the object ever has, bytes.
const LIMIT: usize = 16 << 20;

/// The object. A daemon that adopts pinned programs does not need it.
///
/// # Errors
/// When this binary is damaged.
pub(super) fn object() -> Result<Vec<u8>, BpfError> {
    let damaged = |e| BpfError::Load(format!("the programs in this binary cannot be read: {e}"));
    decompress_to_vec_with_limit(DEFLATED, LIMIT).map_err(damaged)
}

/// The object's hash: a daemon that adopts pinned programs does not need to read the object.
pub(super) static OBJECT_SHA256: &[u8; 32] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-net-ebpf.sha256"));
