//! What the kernel holds, read back for the plan.

use super::KernelError;
use super::apply::Host;
use super::bpf::Hook;
use crate::plan::Observed;

/// One look: each list of the kernel once.
pub(super) async fn observe(host: &mut Host<'_>) -> Result<Observed, KernelError> {
    let links = host.net.links().await?;
    let mut observed =
        Observed { links: links.into_iter().map(|l| (l.name.clone(), l)).collect(), ..Observed::default() };
    if let Some(plane) = host.plane.as_deref_mut() {
        observed.interfaces = plane.interfaces().into_iter().collect();
        observed.endpoints = plane.endpoints().into_iter().collect();
        observed.hooks = match plane.hook() {
            Hook::Tcx => Some(plane.hooked()?.into_iter().collect()),
            // A filter has no pin: attaching it again replaces it in one step.
            Hook::Clsact => None,
        };
    }
    Ok(observed)
}
