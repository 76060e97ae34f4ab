//! What can go wrong with the kernel's BPF side.

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
    /// A directory of pins that others may have had a hand in.
    #[error(transparent)]
    Dir(#[from] OwnDirError),
    /// A file operation on a pin or its directory.
    #[error("{op} {path}: {source}")]
    Pin {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The object or a program was refused.
    #[error("load the eBPF programs: {0}")]
    Load(String),
    /// A program could not be attached.
    #[error("attach {program} to {link}: {why}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The link.
        link: String,
        /// The kernel's answer.
        why: String,
    },
    /// A program could not be taken off.
    #[error("detach {program} from {link}: {why}")]
    Detach {
        /// The program.
        program: &'static str,
        /// The link.
        link: String,
        /// The kernel's answer.
        why: String,
    },
    /// A map operation.
    #[error("{op} map {map}: {why}")]
    Map {
        /// What was tried.
        op: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        why: String,
    },
    /// The new programs do not do what they are for.
    #[error("self-test of the eBPF programs: {0}")]
    SelfTest(String),
    /// A pin that cannot be used.
    #[error("pinned link {path}: {why}")]
    Link {
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        why: String,
    },
}

impl BpfError {
    /// What the user can do, where there is something.
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

    /// `error` with all its causes, on one line: aya's messages end where the interesting part begins.
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
