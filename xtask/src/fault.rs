//! Wrong usage has an exit code of its own, as in the daemon's commands.

use std::fmt;

/// What is wrong, and below it the help.
#[derive(Debug)]
pub struct Misuse(String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// An error with exit code 2.
pub fn misuse(what: impl fmt::Display, help: impl fmt::Display) -> anyhow::Error {
    Misuse(format!("{what}\nhelp: {help}")).into()
}
