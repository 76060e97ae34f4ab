//! Programs that run inside a container: what is told of them, and who takes what they say.

use super::CommandLine;
use std::io;
use std::path::PathBuf;

/// A runtime's program that runs another one inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The runtime's program.
    pub line: CommandLine,
    /// The container's first process.
    pub first: u32,
    /// The file to which the runtime writes the id of the process inside, if it does. It is removed afterwards.
    pub pid_file: Option<PathBuf>,
}

/// Where a program has said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// On its standard output.
    Output,
    /// On its standard error.
    Errors,
}

/// Takes what a program says, while it runs.
pub trait Take {
    /// Takes some bytes.
    ///
    /// # Errors
    /// When nobody is there for whom they are. The program is killed then.
    fn take(&mut self, from: Stream, bytes: &[u8]) -> io::Result<()>;
}

/// Keeps the first bytes of what a program says, and drops all others: a container may say any amount.
#[derive(Clone, Debug)]
pub struct Kept {
    most: usize,
    bytes: Vec<u8>,
}

impl Kept {
    /// Keeps at most this many bytes.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { most, bytes: Vec::new() }
    }

    /// What is kept. What is no UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Take for Kept {
    fn take(&mut self, _from: Stream, bytes: &[u8]) -> io::Result<()> {
        let left = self.most.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(bytes.get(..left).unwrap_or(bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_is_asked_for() {
        let mut kept = Kept::new(5);
        for (from, bytes) in [(Stream::Output, &b"one"[..]), (Stream::Errors, b""), (Stream::Errors, b"\xfftwo")] {
            kept.take(from, bytes).expect("taken");
        }
        assert_eq!(kept.text(), "one\u{fffd}t");
        kept.take(Stream::Output, b"more").expect("taken");
        assert_eq!(kept.text(), "one\u{fffd}t");
    }
}
