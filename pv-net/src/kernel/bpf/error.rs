//! Errors of programs, maps and pins.

use crate::kernel::own_dir::OwnDirError;
use std::io;
use std::path::PathBuf;

/// An operation on programs, maps or pins that failed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The pin directory is not on a BPF file system.
    #[error("{path}: not on a BPF file system")]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of pins is not the daemon's own, or others may write to it.
    #[error(transparent)]
    Dir(#[from] OwnDirError),
    /// A file operation on a pin or its directory.
    #[error("{op} {path}: {source}")]
    Pin {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel refused the object or a program.
    #[error("load the eBPF programs: {0}")]
    Load(String),
    /// A program could not be attached.
    #[error("attach {program} to {link}: {why}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The link.
        link: String,
        /// The kernel's error.
        why: String,
    },
    /// A program could not be detached.
    #[error("detach {program} from {link}: {why}")]
    Detach {
        /// The program.
        program: &'static str,
        /// The link.
        link: String,
        /// The kernel's error.
        why: String,
    },
    /// An operation on a map failed.
    #[error("{op} map {map}: {why}")]
    Map {
        /// The operation.
        op: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's error.
        why: String,
    },
    /// The newly loaded programs failed their self-test.
    #[error("self-test of the eBPF programs: {0}")]
    SelfTest(String),
    /// A pinned link cannot be used.
    #[error("pinned link {path}: {why}")]
    Link {
        /// The pin.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl BpfError {
    /// What the user can do about it, if anything.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NotBpffs { .. } => {
                Some("mount -t bpf bpf /sys/fs/bpf, or name a directory on one with --bpffs".to_owned())
            }
            Self::Dir(e) => e.help(),
            Self::SelfTest(_) => Some(
                "the programs that ran before are still in force; please report this with what `pv-net doctor` says"
                    .to_owned(),
            ),
            Self::Load(_) => Some("run `pv-net doctor` to see what this kernel lacks".to_owned()),
            _ => None,
        }
    }

    /// `error` with all its causes on one line: aya's own messages leave out the cause.
    pub(super) fn chain(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(c) = cause {
            let more = c.to_string();
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = c.source();
        }
        text.replace('\n', " ")
    }
}
