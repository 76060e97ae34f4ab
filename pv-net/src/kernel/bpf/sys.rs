//! System calls that aya does not offer: reading what a pin leads to, and replacing the program of a link of any type.

use std::ffi::CString;
use std::fs::read_link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;

/// The system call `bpf`; `attr` is the command's part of `union bpf_attr`.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes no more of `attr` than its size, that is told; what it points to lives as
    // long as the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(done).map_err(io::Error::other) }
}

fn made(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for this process.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJ_GET, &mut Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(made)
}

/// A BPF link of a program to a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Id of the program.
    pub program: u32,
    /// Index of the device; 0 when the device is gone.
    pub ifindex: u32,
}

/// Reads what the BPF link `fd` connects; `None` when `fd` is no link.
pub(super) fn link_info(fd: &OwnedFd) -> io::Result<Option<LinkInfo>> {
    /// `struct bpf_link_info`, up to the device's index of tcx and XDP links.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        ifindex: u32,
        rest: [u32; 11],
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        size: u32,
        info: u64,
    }
    // The call below also succeeds for maps and programs, with other contents. They are excluded by name, and
    // everything else counts as a link: kernels use several names for links, and a link that was not recognised would
    // lose its guard.
    let what = read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if what.as_os_str() == "anon_inode:bpf-map" || what.as_os_str() == "anon_inode:bpf-prog" {
        return Ok(None);
    }
    let mut info = Info::default();
    let size = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    bpf(OBJ_GET_INFO_BY_FD, &mut Attr { fd: number(fd.as_fd())?, size, info: std::ptr::from_mut(&mut info) as u64 })?;
    Ok(Some(LinkInfo { program: info.program, ifindex: info.ifindex }))
}

/// Ids of the maps that a program uses. aya would open the program by its id for this, which takes `CAP_SYS_ADMIN`.
pub(super) fn maps_of(program: &OwnedFd) -> io::Result<Vec<u32>> {
    /// `struct bpf_prog_info`, up to the maps.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        before: [u64; 6],
        uid: u32,
        map_count: u32,
        maps: u64,
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        size: u32,
        info: u64,
    }
    let size = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    let fd = number(program.as_fd())?;
    let ask = |info: &mut Info| bpf(OBJ_GET_INFO_BY_FD, &mut Attr { fd, size, info: std::ptr::from_mut(info) as u64 });
    let mut count = Info::default();
    ask(&mut count)?;
    let mut maps = vec![0u32; count.map_count as usize];
    let mut info = Info { map_count: count.map_count, maps: maps.as_mut_ptr() as u64, ..Info::default() };
    ask(&mut info)?;
    Ok(maps)
}

/// Replaces the program of `link` by `program`: each packet meets one of the two.
pub(super) fn update_link(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old: u32,
    }
    bpf(LINK_UPDATE, &mut Attr { link: number(link.as_fd())?, program: number(program)?, flags: 0, old: 0 }).map(drop)
}

/// The first value of an array map whose values have `size` bytes.
pub(super) fn first_value(array: BorrowedFd<'_>, size: u32) -> io::Result<Vec<u8>> {
    #[repr(C)]
    struct Attr {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0u32;
    let mut value = vec![0u8; size as usize];
    let mut attr = Attr {
        map: number(array)?,
        pad: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    bpf(MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// Returns when every program run that was under way has ended, so that none reads what is removed next.
pub(super) fn wait_for_programs() {
    // SAFETY: the call takes two integers and touches no memory of the caller.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // The call is refused where some CPUs are `nohz_full`. Program runs take microseconds, so a pause is enough.
        #[expect(clippy::disallowed_methods, reason = "what it stands for blocks as long")]
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
