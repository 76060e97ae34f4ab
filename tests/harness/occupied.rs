//! Links on which no further program fits.

use crate::Namespace;
use crate::testrun::{bpf, owned};
use anyhow::{Context, Result, bail};
use std::os::fd::{AsRawFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u64 = 3;
const TCX_INGRESS: u64 = 46;
/// More than the kernel allows on a link: `BPF_MPROG_MAX` is 64.
const MOST: usize = 256;
/// `r0 = TCX_NEXT; exit`.
const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// Attaches as many programs to the ingress of `link` as the kernel allows. They are detached when the result is
/// dropped.
///
/// # Errors
/// When the kernel has no tcx (before 6.6).
pub fn fill(ns: &Namespace, link: &str) -> Result<Vec<OwnedFd>> {
    ns.run(|| {
        let index = u64::from(nix::net::if_::if_nametoindex(link)?);
        let mut held = Vec::new();
        while held.len() < MOST {
            match attach(index) {
                Ok(link) => held.push(link),
                Err(e) if !held.is_empty() && is_full(&e) => return Ok(held),
                Err(e) => return Err(e),
            }
        }
        bail!("{link} takes more than {MOST} programs")
    })
}

/// Attaches one program of its own: the kernel does not attach the same program twice. The link keeps it alive.
fn attach(index: u64) -> Result<OwnedFd> {
    let count = u64::try_from(NEXT.len())?;
    let mut load = [SCHED_CLS | count << 32, NEXT.as_ptr() as u64, c"GPL".as_ptr() as u64];
    let program = owned(bpf(PROG_LOAD, &mut load).context("load")?);
    let program = u64::try_from(program.as_raw_fd())? | index << 32;
    Ok(owned(bpf(LINK_CREATE, &mut [program, TCX_INGRESS]).context("attach")?))
}

fn is_full(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(libc::ERANGE)
}
