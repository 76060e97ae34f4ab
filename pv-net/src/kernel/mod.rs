//! Everything that reads or changes the kernel: netlink, namespaces, sysctls and BPF.

mod apply;
pub mod bpf;
pub mod cgroup;
pub mod challenge_ack;
#[cfg(test)]
pub mod fake;
pub mod forwarding;
pub mod grace;
pub mod kill_point;
pub mod listeners;
pub mod netfilter;
pub mod netlink;
pub mod netns;
mod observe;
pub mod own_dir;
pub mod sysctl;

pub use apply::Host;

use crate::plan::{Observed, Op};
use std::future::Future;

/// A step or a look that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Of links, addresses and routes.
    #[error(transparent)]
    Net(#[from] netlink::NetError),
    /// Of programs and maps.
    #[error(transparent)]
    Bpf(#[from] bpf::BpfError),
    /// A step about programs or maps, and the data plane is not loaded.
    #[error("the data plane is not loaded")]
    NotLoaded,
    /// What a test has asked for.
    #[error("refused by a test: {0}")]
    Made(String),
}

/// What the plan needs of a kernel: a look at it, and a step.
pub trait Kernel {
    /// What it holds: each list of the kernel is read once.
    ///
    /// # Errors
    /// When something cannot be read.
    fn observe(&mut self) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Carries out one step. Twice is as once.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn apply(&mut self, op: &Op) -> impl Future<Output = Result<(), KernelError>> + Send;
}
