//! Running the programs of a live device on frames in memory (`BPF_PROG_TEST_RUN`): much faster than sending.

use crate::Device;
use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (kernel 6.17): the packet has a checksum as if the card had added it up; the run
/// fails with EBADMSG when the program leaves a sum that does not fit the packet.
pub const CHECKSUM_COMPLETE: u32 = 4;

const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// A program that sits on a link of the device.
pub struct Program {
    fd: OwnedFd,
    ifindex: u32,
}

/// `union bpf_attr` of a test run.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

pub(crate) fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the command's part of `union bpf_attr`, and the size says so.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

pub(crate) fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Program {
    /// The program `name` that is attached to `link` by a pinned link.
    ///
    /// # Errors
    /// When the pin does not exist: the kernel has no tcx links, or nothing is attached.
    pub fn of(device: &Device, name: &str, link: &str) -> Result<Self> {
        let pin = device.pin_of(name, link)?;
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let fd = owned(bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0]).with_context(|| pin.display().to_string())?);
        // `struct bpf_link_info`: type, id, program.
        let mut info = [0u32; 64];
        let size = u64::try_from(size_of_val(&info))?;
        bpf(OBJ_GET_INFO_BY_FD, &mut [u64::try_from(fd.as_raw_fd())? | size << 32, info.as_mut_ptr() as u64])?;
        let fd = owned(bpf(PROG_GET_FD_BY_ID, &mut [info[2], 0, 0, 0]).context("the link's program")?);
        let ifindex = device.ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?))?;
        Ok(Self { fd, ifindex })
    }

    /// Runs the program on `frame`, and gives its verdict and the frame afterwards. The caller must be in the device's
    /// namespace.
    ///
    /// # Errors
    /// The errno of `BPF_PROG_TEST_RUN`.
    pub fn run(&self, frame: &[u8], flags: u32) -> io::Result<(u32, Vec<u8>)> {
        let mut out = vec![0u8; 4096];
        // `ifindex` in `struct __sk_buff`.
        let mut context = [0u32; 11];
        context[10] = self.ifindex;
        let mut attr = TestRun {
            prog_fd: self.fd.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ctx_size_in: size_of_val(&context) as u32,
            ctx_in: context.as_ptr() as u64,
            flags,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        out.truncate(attr.data_size_out as usize);
        Ok((attr.retval, out))
    }

    /// Whether this kernel knows `flags`.
    ///
    /// # Errors
    /// When the run fails for another reason than unknown flags.
    pub fn knows(&self, frame: &[u8], flags: u32) -> Result<bool> {
        match self.run(frame, flags) {
            Err(why) if why.raw_os_error() == Some(libc::EINVAL) => {
                ensure!(self.run(frame, 0).is_ok(), "the frame itself is refused");
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}
