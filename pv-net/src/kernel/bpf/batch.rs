//! Reads a whole hash map by `BPF_MAP_LOOKUP_BATCH` (kernel 5.6). Reading key by key takes two system calls an entry,
//! and starts again whenever the present key is removed meanwhile, so on a busy table it might never end.

use aya::Pod;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, OwnedFd};

const LOOKUP_BATCH: libc::c_int = 24;
/// Entries a call. A call returns whole buckets, so this must be more than the fullest bucket ever has.
const AT_ONCE: usize = 1024;

/// The part of `union bpf_attr` for batches.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// All entries of the hash `map`, bucket by bucket. An entry that exists all the time is returned exactly once.
///
/// # Errors
/// When the kernel refuses the batch look-up: `EINVAL` before 5.6, or `ENOSPC` for a bucket with more than [`AT_ONCE`]
/// entries.
pub(super) fn read<K: Pod, V: Pod>(map: &OwnedFd) -> io::Result<Vec<(K, V)>> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); AT_ONCE];
    let mut values = vec![MaybeUninit::<V>::uninit(); AT_ONCE];
    let mut all = Vec::new();
    // The kernel's position: the number of a bucket.
    let (mut from, mut to) = (0u32, 0u32);
    let mut first = true;
    loop {
        let mut batch = Batch {
            in_batch: if first { 0 } else { std::ptr::from_ref(&from) as u64 },
            out_batch: std::ptr::from_mut(&mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE as u32,
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `batch` is the command's part of `union bpf_attr` and its size is told; keys and values have room
        // for `count` of the map's, whose sizes aya has compared with those of the types.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, std::ptr::from_mut(&mut batch), size_of::<Batch>()) };
        let failed = (done < 0).then(io::Error::last_os_error);
        let last = match failed {
            None => false,
            Some(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Some(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
            Some(e) => return Err(e),
        };
        let count = (batch.count as usize).min(AT_ONCE);
        // SAFETY: the kernel has written `count` of each, and any bytes are a value of a `Pod`.
        all.extend(
            keys[..count].iter().zip(&values[..count]).map(|(k, v)| unsafe { (k.assume_init(), v.assume_init()) }),
        );
        if last {
            return Ok(all);
        }
        (from, first) = (to, false);
    }
}
