//! Filters of the clsact qdisc: how programs are attached on kernels without tcx (before 6.6).

use super::BpfError;
use super::place::Place;
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle};
use aya::programs::tc::{qdisc_add_clsact, qdisc_detach_program};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

/// pv-net's place among the filters of a link: "pv". Who else has a filter here lets the kernel number it, from 1.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7076);

/// Puts `program` on `link`, where pv-net has no filter yet. One that an earlier daemon left stays, and is an error that
/// says "it exists": who may replace it does so by [`replace`].
pub(super) fn attach(
    program: &mut SchedClassifier,
    link: &str,
    at: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    // What fails here but for "already there" shows again at the attach below.
    if let Err(e) = qdisc_add_clsact(link) {
        tracing::debug!(link, error = %e, "clsact");
    }
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, ..Default::default() });
    program.attach_with_options(link, at, options)
}

/// Puts `program` on `link` in place of an earlier daemon's, in one step: each packet meets one of the two.
pub(super) fn replace(
    program: &mut SchedClassifier,
    link: &str,
    at: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    program.attach_to_link(SchedClassifierLink::attached(link, at, PRIORITY, HANDLE, None)?)
}

/// Whether a link has a filter of pv-net's already, by what [`attach`] was refused with.
pub(super) fn is_there(refused: &ProgramError) -> bool {
    match refused {
        ProgramError::TcError(TcError::NetlinkError(e)) => e.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// Adds the clsact qdisc to an uplink or a bridge; whether it was not there before. It is looked for only by adding it:
/// the attach that follows tells what else is wrong.
#[must_use]
pub fn add_qdisc(link: &str) -> bool {
    qdisc_add_clsact(link).is_ok()
}

/// Takes the filter off an uplink or a bridge; one that is not there is fine.
///
/// # Errors
/// The kernel's.
pub fn remove_clsact(link: &str) -> Result<(), BpfError> {
    for place in [Place::FromUplink, Place::FromBridge] {
        match qdisc_detach_program(link, place.attach_type(), place.program()) {
            Err(e) if !is_absent(&e) => {
                let (program, link) = (place.program(), link.to_owned());
                return Err(BpfError::Detach { program, link, why: BpfError::chain(&e) });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether an error says that there is no such filter, no qdisc, or no link.
fn is_absent(error: &TcError) -> bool {
    let code = match error {
        TcError::IoError(e) if e.kind() == std::io::ErrorKind::NotFound => return true,
        TcError::IoError(e) => e.raw_os_error(),
        TcError::NetlinkError(e) => e.raw_os_error(),
        _ => None,
    };
    // Without a qdisc: ENOENT or EINVAL, by kernel.
    matches!(code, Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}
