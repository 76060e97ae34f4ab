//! An end that the user can do something about: what is wrong, the remedy, and the exit code.

use std::fmt;

/// What is wrong, with a remedy.
#[derive(Debug)]
pub struct Fault {
    what: String,
    /// What to do.
    pub help: String,
    /// Exit code, as the daemon's own commands have it: 1 when it failed, 2 for wrong use.
    pub code: u8,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

/// Wrong use.
pub fn misuse(what: impl Into<String>, help: impl Into<String>) -> anyhow::Error {
    Fault { what: what.into(), help: help.into(), code: 2 }.into()
}

/// Right use that failed.
pub fn failure(what: impl Into<String>, help: impl Into<String>) -> anyhow::Error {
    Fault { what: what.into(), help: help.into(), code: 1 }.into()
}
