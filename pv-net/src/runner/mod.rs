//! The runner: a process of its own that starts and stops declared containers, since the daemon may execute nothing.
//!
//! It keeps all rights of root and has no network socket. Requests come by a Unix socket that only root may use, and name
//! containers: what is executed for them is what their `run.json` says, which the runner reads itself. So a caller cannot
//! make it execute anything else. Its files are in a directory of its own, where a daemon that was taken over cannot write.
//! Its end ends no container, and the next runner asks the runtimes which ones run.

mod auto;
pub mod client;
mod containers;
mod ended;
mod execute;
mod launch;
pub mod launcher;
mod look;
mod marks;
mod module;
mod mounts;
pub mod network;
mod outcome;
mod process;
pub mod protocol;
mod replace;
mod serve;
#[cfg(test)]
mod tests;

pub use execute::HOOK_ERRORS;
pub use replace::Replaced;
pub use serve::{run, start_beside};

/// The subcommand that runs it.
pub const SUBCOMMAND: &str = "runner";
