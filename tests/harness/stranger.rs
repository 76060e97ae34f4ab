//! What another program with root's rights may do to pv-net's programs: replace them, or detach them.

use crate::Namespace;
use crate::testrun::{bpf, owned};
use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PROG_LOAD: libc::c_int = 5;
const OBJ_GET: libc::c_int = 7;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// The type of a program.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// At the ingress or egress of a link (`BPF_PROG_TYPE_SCHED_CLS`).
    Classifier,
    /// Before the stack (`BPF_PROG_TYPE_XDP`).
    Xdp,
}

/// Loads a program that passes every packet, named `name`.
///
/// # Errors
/// When the kernel does not load it.
pub fn pass_all(kind: Kind, name: &str) -> Result<OwnedFd> {
    let verdict = match kind {
        Kind::Classifier => 0,
        Kind::Xdp => 2,
    };
    // `r0 = verdict; exit`
    load(kind, name, &[0xb7 | verdict << 32, 0x95])
}

/// Loads a classifier that gives IPv4 packets of `from` the source `to`, and the right checksum.
///
/// # Errors
/// When the kernel does not load it.
pub fn rewrite_source(from: Ipv4Addr, to: Ipv4Addr) -> Result<OwnedFd> {
    const SUM: u64 = 14 + 10;
    const SOURCE: u64 = 14 + 12;
    let [from, to] = [from, to].map(|address| u64::from(u32::from_ne_bytes(address.octets())));
    // Code, registers (the source in the upper half), offset, and a constant in the upper 32 bits.
    let with = |code: u64, registers: u64, constant: u64| code | registers << 8 | constant << 32;
    let minus_four = u64::from(u32::MAX - 3);
    let instructions = [
        with(0xbf, 0x16, 0),                 // r6 = r1
        with(0x62, 0x0a, to) | 0xfffc << 16, // *(u32 *)(r10 - 4) = to
        with(0xbf, 0x61, 0),                 // r1 = r6
        with(0xb7, 0x02, SUM),               // r2 = SUM
        with(0xb4, 0x03, from),              // w3 = from
        with(0xb4, 0x04, to),                // w4 = to
        with(0xb7, 0x05, 4),                 // r5 = 4
        with(0x85, 0, 10),                   // bpf_l3_csum_replace
        with(0xbf, 0x61, 0),                 // r1 = r6
        with(0xb7, 0x02, SOURCE),            // r2 = SOURCE
        with(0xbf, 0xa3, 0),                 // r3 = r10
        with(0x07, 0x03, minus_four),        // r3 -= 4
        with(0xb7, 0x04, 4),                 // r4 = 4
        with(0xb7, 0x05, 0),                 // r5 = 0
        with(0x85, 0, 9),                    // bpf_skb_store_bytes
        with(0xb7, 0, 0),                    // r0 = 0
        0x95,                                // exit
    ];
    load(Kind::Classifier, "rewrite_source", &instructions)
}

/// Drops what leaves by `link` with this mark, behind the programs that are there. Ends when the result is dropped.
///
/// # Errors
/// When the kernel has no tcx (before 6.6).
pub fn drop_marked(ns: &Namespace, link: &str, mark: u32) -> Result<OwnedFd> {
    const TCX_EGRESS: u64 = 47;
    let instructions = [
        0x61 | 0x10 << 8 | 8 << 16,             // r0 = skb->mark
        0x15 | 2 << 16 | u64::from(mark) << 32, // if r0 == mark goto drop
        0xffff_ffff_0000_00b7,                  // r0 = TCX_NEXT
        0x95,                                   // exit
        0xb7 | 2 << 32,                         // drop: r0 = TCX_DROP
        0x95,                                   // exit
    ];
    let program = load(Kind::Classifier, "drop_marked", &instructions)?;
    ns.run(|| {
        let index = u64::from(nix::net::if_::if_nametoindex(link)?);
        let program = u64::try_from(program.as_raw_fd())? | index << 32;
        Ok(owned(bpf(LINK_CREATE, &mut [program, TCX_EGRESS]).context("attach")?))
    })
}

fn load(kind: Kind, name: &str, instructions: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    let (number, attach_type) = match kind {
        Kind::Classifier => (3, 0),
        // `BPF_XDP`
        Kind::Xdp => (6, 37),
    };
    let license = c"GPL";
    let mut attr = Attr {
        kind: number,
        count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type,
        ..Attr::default()
    };
    let kept = name.len().min(15);
    attr.name[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    Ok(owned(bpf(PROG_LOAD, &mut attr).context("load a program")?))
}

fn pinned(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    Ok(owned(bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0]).with_context(|| pin.display().to_string())?))
}

/// Replaces the program behind a pinned link by one of the same name that passes every packet.
///
/// # Errors
/// When the new program cannot be loaded, or the link not be updated.
pub fn swap(pin: &Path, kind: Kind, name: &str) -> Result<()> {
    let (link, program) = (pinned(pin)?, pass_all(kind, name)?);
    let mut attr = [u32::try_from(link.as_raw_fd())?, u32::try_from(program.as_raw_fd())?, 0, 0];
    let done = bpf(LINK_UPDATE, &mut attr).context("BPF_LINK_UPDATE")?;
    ensure!(done == 0, "{done}");
    Ok(())
}

/// Detaches the program of a pinned link from its device; the pin stays.
///
/// # Errors
/// When the link cannot be opened or detached.
pub fn detach(pin: &Path) -> Result<()> {
    let link = pinned(pin)?;
    bpf(LINK_DETACH, &mut [u32::try_from(link.as_raw_fd())?]).context("BPF_LINK_DETACH").map(drop)
}

/// Pins a program.
///
/// # Errors
/// When the pin cannot be made.
pub fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    const OBJ_PIN: libc::c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJ_PIN, &mut [path.as_ptr() as u64, u64::try_from(program.as_raw_fd())?]).context("BPF_OBJ_PIN").map(drop)
}
