//! The eBPF object, built from `pv-net-ebpf`.

use super::BpfError;
use lzma_rust2::LzmaReader;
use std::io::{Error, Read};

/// The object, compressed by LZMA to a ninth.
static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-net-ebpf.lzma"));
/// More than the object ever has, bytes.
const LIMIT: u64 = 16 << 20;
/// More memory than it takes beside the object, KiB. The build chooses a dictionary of 256.
const MEMORY: u32 = 1024;

/// The object. A daemon that adopts pinned programs does not need it.
///
/// # Errors
/// When this binary is damaged.
pub(super) fn object() -> Result<Vec<u8>, BpfError> {
    let damaged = |e: Error| BpfError::Load(format!("the programs in this binary cannot be read: {e}"));
    let mut object = Vec::new();
    let reader = LzmaReader::new_mem_limit(COMPRESSED, MEMORY, None).map_err(damaged)?;
    reader.take(LIMIT).read_to_end(&mut object).map_err(damaged)?;
    Ok(object)
}

/// The object's hash: a daemon that adopts pinned programs does not need to read the object.
pub(super) static OBJECT_SHA256: &[u8; 32] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-net-ebpf.sha256"));
