//! The runner: a process of its own that starts and stops declared containers, since the daemon may execute nothing.
//!
//! It keeps all rights of root and has no network socket. Requests come by a Unix socket that only root may use, and name
//! containers: what is executed for them is what their `run.json` says, which the runner reads itself. So a caller cannot
//! make it execute anything else. Commands that a person wants to have executed in a container do not come here: `pv-net
//! containers exec` calls the runtime itself. Its files are in a directory of its own, where a daemon that was taken over cannot write.
//! Its end ends no container, and the next runner asks the runtimes which ones run.

mod auto;
mod check;
pub mod client;
mod containers;
mod direct;
mod ended;
mod execute;
mod family;
mod inside;
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

pub use direct::Direct;
pub use execute::HOOK_ERRORS;
pub use replace::Replaced;
pub use serve::{run, start_beside};

/// Only root may read what runtimes write to the runner's directory.
const DIR_MODE: u32 = 0o700;
/// The subcommand that runs it.
pub const SUBCOMMAND: &str = "runner";
