//! An error that the user can do something about: its text, a remedy, and the exit code.

use std::fmt;

/// An error with a remedy.
#[derive(Debug)]
pub struct Fault {
    what: String,
    /// The remedy.
    pub help: String,
    /// Exit code, as of pv-net's own commands: 1 for a failure, 2 for wrong use.
    pub code: u8,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

/// An error about wrong use.
pub fn misuse(what: impl Into<String>, help: impl Into<String>) -> anyhow::Error {
    Fault { what: what.into(), help: help.into(), code: 2 }.into()
}

/// An error about a failure in spite of right use.
pub fn failure(what: impl Into<String>, help: impl Into<String>) -> anyhow::Error {
    Fault { what: what.into(), help: help.into(), code: 1 }.into()
}
