//! Filters of the clsact qdisc: how programs are attached on kernels without tcx (before 6.6).

use super::BpfError;
use super::place::Place;
use super::plane::DataPlane;
use crate::kernel::kill_point;
use crate::kernel::netlink::clsact::{self, OwnFilters, PRIORITY};
use crate::plan::{HookPoint, ProgramState};
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle};
use aya::programs::tc::{qdisc_add_clsact, qdisc_detach_program};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

const HANDLE: TcHandle = TcHandle::new(0, clsact::HANDLE);

/// Attaches `program` to `link`, where pv-net has no filter yet. A filter of an earlier daemon stays and gives the
/// error `EEXIST`; [`replace`] replaces it.
pub(super) fn attach(
    program: &mut SchedClassifier,
    link: &str,
    at: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    kill_point::pass();
    // Apart from "already there", whatever fails here fails again at the attach below, which reports it.
    if let Err(e) = qdisc_add_clsact(link) {
        tracing::debug!(link, error = %e, "clsact");
    }
    kill_point::pass();
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, ..Default::default() });
    program.attach_with_options(link, at, options)
}

/// Attaches `program` to `link` in place of an earlier daemon's, in one step: each packet meets one of the two.
pub(super) fn replace(
    program: &mut SchedClassifier,
    link: &str,
    at: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    kill_point::pass();
    program.attach_to_link(SchedClassifierLink::attached(link, at, PRIORITY, HANDLE, None)?)
}

/// Whether [`attach`] failed because the link has a filter of pv-net already.
pub(super) fn is_there(refused: &ProgramError) -> bool {
    match refused {
        ProgramError::TcError(TcError::NetlinkError(e)) => e.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// Adds the clsact qdisc to an uplink or a bridge. Returns whether it was not there before; `false` for any error too,
/// which the attach that follows reports.
#[must_use]
pub fn add_qdisc(link: &str) -> bool {
    kill_point::pass();
    qdisc_add_clsact(link).is_ok()
}

/// Removes pv-net's filter from an uplink or a bridge; a missing one is fine.
///
/// # Errors
/// When the kernel refuses to delete the filter.
pub fn remove_clsact(link: &str) -> Result<(), BpfError> {
    for place in [Place::FromUplink, Place::FromBridge] {
        kill_point::pass();
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

impl DataPlane {
    fn filter_state(&self, found: Option<u32>, place: Place) -> Result<ProgramState, BpfError> {
        let own = self.programs.id_of(place.program())?;
        Ok(match found {
            Some(id) if id == own => ProgramState::Own,
            Some(id) => ProgramState::Other(id),
            None => ProgramState::Lost,
        })
    }

    /// The state of a container's link that has these filters.
    ///
    /// # Errors
    /// When the ids of pv-net's programs cannot be read.
    pub fn guard_of(&self, filters: OwnFilters) -> Result<ProgramState, BpfError> {
        let inwards = self.filter_state(filters.ingress, Place::FromContainer)?;
        Ok(inwards.and(self.filter_state(filters.egress, Place::ToContainer)?))
    }

    /// The place and state of the program on an uplink or bridge with these filters; `None` without a filter at
    /// pv-net's place. A program that is not pv-net's own, as every one before the take-over, is reported for the place
    /// that fits the link's kind.
    ///
    /// # Errors
    /// When the ids of pv-net's programs cannot be read.
    pub fn hook_of(&self, filters: OwnFilters, is_bridge: bool) -> Result<Option<(HookPoint, ProgramState)>, BpfError> {
        let Some(id) = filters.ingress else { return Ok(None) };
        let places = [(HookPoint::Uplink, Place::FromUplink), (HookPoint::Bridge, Place::FromBridge)];
        for (at, place) in places {
            if !self.is_waiting() && self.programs.id_of(place.program())? == id {
                return Ok(Some((at, ProgramState::Own)));
            }
        }
        Ok(Some((if is_bridge { HookPoint::Bridge } else { HookPoint::Uplink }, ProgramState::Other(id))))
    }
}

/// Whether an error says that there is no such filter, no qdisc, or no link.
fn is_absent(error: &TcError) -> bool {
    let code = match error {
        TcError::IoError(e) if e.kind() == std::io::ErrorKind::NotFound => return true,
        TcError::IoError(e) => e.raw_os_error(),
        TcError::NetlinkError(e) => e.raw_os_error(),
        _ => None,
    };
    // Without a qdisc the error is ENOENT or EINVAL, depending on the kernel.
    matches!(code, Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}
