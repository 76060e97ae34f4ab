//! System calls that aya does not offer: reading what a pin leads to, and replacing the program of a link of any type.

use std::ffi::CString;
use std::fs::read_link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
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

/// What tells a map or a program from others of its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Identity {
    kind: u32,
    /// The kernel's id.
    pub id: u32,
}

/// The identity of a map or a program: the beginning of what the kernel tells of either.
pub(super) fn identity(object: &OwnedFd) -> io::Result<Identity> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        size: u32,
        info: u64,
    }
    let mut found = Identity::default();
    let size = u32::try_from(size_of::<Identity>()).map_err(io::Error::other)?;
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut Attr { fd: number(object.as_fd())?, size, info: std::ptr::from_mut(&mut found) as u64 },
    )?;
    Ok(found)
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
    value_at(array, 0, size)
}

/// The value of an array map at index `key`. Of a map of programs it is the program's id.
pub(super) fn value_at(array: BorrowedFd<'_>, key: u32, size: u32) -> io::Result<Vec<u8>> {
    #[repr(C)]
    struct Attr {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
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

/// Pins `object` at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJ_PIN, &mut Attr { path: path.as_ptr() as u64, fd: number(object)?, flags: 0 }).map(drop)
}

/// A place on a link, as tcx names it (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tcx {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// Attaches `program` to the link with this index in the calling thread's namespace: at egress behind the programs that
/// are there, at ingress before them. So it sees each frame as it leaves, or as it came.
pub(super) fn attach(program: BorrowedFd<'_>, ifindex: u32, at: Tcx) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` for a tcx link.
    #[repr(C)]
    struct Attr {
        program: u32,
        ifindex: u32,
        kind: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        revision: u64,
    }
    /// `BPF_F_BEFORE`.
    const BEFORE: u32 = 1 << 3;
    let program = number(program)?;
    let flags = if at == Tcx::Ingress { BEFORE } else { 0 };
    bpf(LINK_CREATE, &mut Attr { program, ifindex, kind: at as u32, flags, relative: 0, pad: 0, revision: 0 }).map(made)
}

/// Loads a TC program that writes two numbers into the packet's `cb` and tail-calls the program at `index` of the map
/// `programs`; it drops the packet when there is none.
pub(super) fn load_forwarder(programs: BorrowedFd<'_>, cb: [u32; 2], index: u32) -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const SCHED_CLS: u32 = 3;
    /// Offset of `cb` in `struct __sk_buff`.
    const CB: i16 = 48;
    /// `bpf_tail_call`.
    const TAIL_CALL: u32 = 12;
    /// `TC_ACT_SHOT`.
    const SHOT: u32 = 2;
    #[repr(C)]
    struct Attr {
        kind: u32,
        count: u32,
        code: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
    }
    // `struct bpf_insn`: operation, registers (source in the upper half), offset, number.
    let instruction = |operation: u8, registers: u8, offset: i16, value: u32| {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        u64::from_le_bytes([operation, registers, low, high, a, b, c, d])
    };
    const MOVE: u8 = 0xb4;
    const STORE: u8 = 0x63;
    let code = [
        instruction(MOVE, 2, 0, cb[0]),
        instruction(STORE, 0x21, CB, 0),
        instruction(MOVE, 2, 0, cb[1]),
        instruction(STORE, 0x21, CB + 4, 0),
        // The map's address, in two parts; source register 1 says that the number is a descriptor.
        instruction(0x18, 0x12, 0, number(programs)?),
        0,
        instruction(MOVE, 3, 0, index),
        instruction(0x85, 0, 0, TAIL_CALL),
        instruction(MOVE, 0, 0, SHOT),
        instruction(0x95, 0, 0, 0),
    ];
    let mut attr = Attr {
        kind: SCHED_CLS,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"pv_child\0\0\0\0\0\0\0\0",
    };
    bpf(PROG_LOAD, &mut attr).map(made)
}
