//! The eBPF object, built from `pv-net-ebpf`.

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pv-net-ebpf"));
/// A daemon that takes over pinned programs need not read the object.
pub(super) static OBJECT_SHA256: &[u8; 32] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-net-ebpf.sha256"));
