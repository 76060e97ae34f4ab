//! What goes wrong with runtimes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a runtime has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The program is not there.
    #[error("{}: {source}", program.display())]
    Program {
        /// The runtime's program.
        program: PathBuf,
        /// Why it cannot be executed.
        source: io::Error,
    },
    /// It has ended with an error.
    #[error("{}: {said}", program.display())]
    Refused {
        /// The runtime's program.
        program: PathBuf,
        /// What it has said.
        said: String,
    },
    /// It takes too long.
    #[error("{}: not done within {} s", program.display(), within.as_secs())]
    Slow {
        /// The runtime's program.
        program: PathBuf,
        /// The time that it had.
        within: Duration,
    },
    /// The container runs already.
    #[error("it is running already, as process {0}")]
    Running(u32),
    /// The container does not run.
    #[error("it is not running")]
    NotRunning,
    /// The container is being started or stopped by somebody else.
    #[error("it is just being started or stopped")]
    Changing,
    /// There is no way to run another program in it.
    #[error("a WebAssembly container has no programs beside its module")]
    NoPrograms,
    /// A command in the container has taken too long, and is killed.
    #[error("the command was not done within {} s, and is killed", within.as_secs())]
    Late {
        /// The time that it had.
        within: Duration,
    },
    /// A command in the container was given up by whoever has asked for it, and is killed.
    #[error("the command is killed, as nobody waits for it any more")]
    GivenUp,
    /// Nobody takes what a command in the container says, so it is killed.
    #[error("the command's output: {0}")]
    Output(io::Error),
    /// The container has ended right after its start.
    #[error("it has ended at once")]
    AtOnce,
    /// The container is there after all that should have ended it.
    #[error("process {0} goes on after it was killed")]
    Survives(u32),
    /// The answer is not what this runtime answers.
    #[error("{}: not understood: {answer:?}", program.display())]
    Answer {
        /// The runtime's program.
        program: PathBuf,
        /// What it has answered.
        answer: String,
    },
    /// The kernel does not say whether a process has ended.
    #[error("process {pid}: {source}")]
    Process {
        /// The process.
        pid: u32,
        /// The kernel's error.
        source: io::Error,
    },
}
