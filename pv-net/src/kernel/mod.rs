//! Everything that reads or changes the kernel: netlink, namespaces, sysctls and BPF.

mod apply;
pub mod asking;
pub mod bpf;
pub mod broker;
pub mod cgroup;
pub mod challenge_ack;
pub mod claim;
pub mod errand;
#[cfg(test)]
pub mod fake;
pub mod forwarding;
pub mod grace;
pub mod kill_point;
pub mod link;
pub mod listeners;
pub mod managers;
pub mod netfilter;
pub mod netlink;
pub mod netns;
mod observe;
pub mod own_dir;
pub(crate) mod packet;
pub mod panic_point;
pub mod path_watch;
pub mod privilege;
pub mod sysctl;

pub use apply::{Host, Rehearsal, Repair};

use crate::plan::{Observed, Op};
use std::future::Future;

/// A step or an observation that failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Links, addresses or routes.
    #[error(transparent)]
    Net(#[from] netlink::NetError),
    /// Programs or maps.
    #[error(transparent)]
    Bpf(#[from] bpf::BpfError),
    /// Sysctls.
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
    /// The step is about programs or maps, and the data plane is not loaded.
    #[error("the data plane is not loaded")]
    NotLoaded,
    /// An error that a test has asked for.
    #[error("refused by a test: {0}")]
    Made(String),
}

/// What the plan needs of a kernel: observing it, and carrying out a step.
pub trait Kernel {
    /// Reads the state of the kernel; each of its lists is read once.
    ///
    /// # Errors
    /// When something cannot be read.
    fn observe(&mut self) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Like [`observe`](Self::observe), without containers' map entries and programs, whose reading takes time that
    /// grows with their number. They appear as if there were none.
    ///
    /// # Errors
    /// When something cannot be read.
    fn observe_device(&mut self) -> impl Future<Output = Result<Observed, KernelError>> + Send {
        self.observe()
    }

    /// Carries out one step. Carrying it out twice has the same effect as once.
    ///
    /// # Errors
    /// When the kernel refuses the step.
    fn apply(&mut self, op: &Op) -> impl Future<Output = Result<(), KernelError>> + Send;
}
