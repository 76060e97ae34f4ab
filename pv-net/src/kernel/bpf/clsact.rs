//! Filters of the clsact qdisc: how programs are attached on kernels without tcx (before 6.6).

use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc::qdisc_add_clsact};

/// pv-net's place among the filters of a link.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Puts `program` on `link`, in place of an earlier daemon's, if that left one.
pub(super) fn attach(
    program: &mut SchedClassifier,
    link: &str,
    at: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    // "Already there" is the only failure that does not show again at the attach below.
    if let Err(e) = qdisc_add_clsact(link) {
        tracing::debug!(link, error = %e, "clsact");
    }
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, ..Default::default() });
    program.attach_with_options(link, at, options).or_else(|refused| {
        // A filter has no owner and stays when its daemon goes (EEXIST). It is replaced in one step: no packet runs
        // without a program.
        let Ok(old) = SchedClassifierLink::attached(link, at, PRIORITY, HANDLE, None) else {
            return Err(refused);
        };
        program.attach_to_link(old).map_err(|_| refused)
    })
}
