//! System calls that aya has not: what a pin leads to, and a link's program replaced without a type for each kind of it.

use std::ffi::CString;
use std::fs::read_link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;

/// `attr` is the command's part of `union bpf_attr`.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes no more of `attr` than its size, that is told; what it points to lives as long
    // as the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(done).map_err(io::Error::other) }
}

fn made(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// What is pinned at `path`.
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

/// A link of a program to a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Number of the program.
    pub program: u32,
    /// Index of the device; 0 when it is gone.
    pub ifindex: u32,
}

/// What `fd` links; none when it is no link.
pub(super) fn link_info(fd: &OwnedFd) -> io::Result<Option<LinkInfo>> {
    /// `struct bpf_link_info` up to where tcx and XDP have the device's index.
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
    // The call below answers for maps and programs too, in their own form. A link is what is neither of them: kernels have
    // more than one name for it, and to take one for nothing would take away what it guards.
    let what = read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if what.as_os_str() == "anon_inode:bpf-map" || what.as_os_str() == "anon_inode:bpf-prog" {
        return Ok(None);
    }
    let mut info = Info::default();
    let size = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    bpf(OBJ_GET_INFO_BY_FD, &mut Attr { fd: number(fd.as_fd())?, size, info: std::ptr::from_mut(&mut info) as u64 })?;
    Ok(Some(LinkInfo { program: info.program, ifindex: info.ifindex }))
}

/// The program with this number.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        id: u32,
        next: u32,
        flags: u32,
    }
    bpf(PROG_GET_FD_BY_ID, &mut Attr { id, next: 0, flags: 0 }).map(made)
}

/// Puts `program` behind `link` in place of the one that is there: each packet meets one of the two.
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

/// The first value of an array whose values have `size` bytes, whatever they mean.
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

/// Returns when every program that was running has ended: who still read what is about to go finds it whole.
pub(super) fn wait_for_programs() {
    // SAFETY: the call takes two integers and touches no memory of the caller.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // Refused with `nohz_full` CPUs. Programs run for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
