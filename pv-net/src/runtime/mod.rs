//! What container runtimes need to know to start a container in its pools, and what they tell of one that starts. Pure.
//!
//! A runtime makes the container's network namespace and then calls a hook, before the container's first program runs.
//! The hook attaches the container by the id of a process in that namespace; if it fails, the runtime does not start the
//! container. When the container stops, its namespace goes, and its interfaces with it: the lease stays, so that the
//! next start gets the same addresses.

pub mod lxc;
pub mod oci;
pub mod order;
pub mod start;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

/// How a runtime calls pv-net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The program, an absolute path: runtimes call hooks without `PATH`.
    pub program: PathBuf,
    /// Flags that name the daemon's directories, where they are not the usual ones.
    pub flags: Vec<String>,
}

/// Something that is in the way in a runtime's configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct InTheWay {
    /// The setting, as its file names it.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub help: &'static str,
}
