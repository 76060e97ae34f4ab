//! Work that is done beside the controller, and its results: names of processes that have a port, and changes of
//! containers' interfaces in their namespaces. A namespace that hangs holds up its own container only.

use super::Daemon;
use crate::kernel::errand::{Brought, Change, Errand};
use crate::kernel::listeners::Listener;
use crate::model::IfName;
use std::collections::BTreeSet;

/// Errands that wait to be started, and what running ones work on.
#[derive(Clone, Default)]
pub(super) struct Errands {
    waiting: Vec<Errand>,
    /// Host-side links whose other end is being given an MTU now.
    fitting: BTreeSet<IfName>,
}

const fn fitted(errand: &Errand) -> Option<&IfName> {
    match errand {
        Errand::Inside { attachment, change: Change::Mtu(_), .. } => Some(&attachment.host_if),
        _ => None,
    }
}

impl Errands {
    /// Adds an errand.
    pub(super) fn add(&mut self, errand: Errand) {
        self.waiting.push(errand);
    }

    /// Drops changes of MTUs that have not been started; the right MTUs are determined again.
    pub(super) fn forget_fits(&mut self) {
        self.waiting.retain(|errand| fitted(errand).is_none());
    }

    /// Whether the other end of `host_if` is being given an MTU now.
    pub(super) fn is_fitting(&self, host_if: &IfName) -> bool {
        self.fitting.contains(host_if)
    }

    /// Notes that the change of the MTU has ended, with success or not.
    pub(super) fn is_fitted(&mut self, host_if: &IfName) {
        self.fitting.remove(host_if);
    }
}

impl Daemon {
    /// The errands that are to be started now.
    pub(super) fn take_errands(&mut self) -> Vec<Errand> {
        let begun = std::mem::take(&mut self.errands.waiting);
        self.errands.fitting.extend(begun.iter().filter_map(fitted).cloned());
        begun
    }

    /// Handles an errand's result.
    pub(super) async fn errand_ended(&mut self, brought: Brought) {
        match brought {
            Brought::Owner(socket, owner) => self.note_owner(&socket, owner),
            Brought::Changed(attachment, Change::Mtu(bytes), done) => self.end_fit(attachment, bytes, done).await,
            Brought::Changed(attachment, Change::Segments(_), Err(e)) => {
                tracing::debug!(container = %attachment.container, error = %e, "segment size inside");
            }
            Brought::Netns(reference, netns) => self.arrange_in(&reference, netns).await,
            Brought::Changed(_, Change::Segments(_), Ok(())) | Brought::Terms(..) | Brought::GivenBack => {}
        }
    }

    fn note_owner(&mut self, socket: &Listener, owner: Option<String>) {
        for holder in self.port_holders.iter_mut().filter(|holder| holder.socket == *socket) {
            holder.owner.clone_from(&owner);
        }
    }
}
