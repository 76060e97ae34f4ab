//! How the data plane is opened, and what was found there.

use std::path::PathBuf;

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for the pins, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Entries of the flow table; takes effect when the map is made.
    pub flow_entries: u32,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A tcx link (kernel 6.6), pinned.
    Tcx,
    /// A filter on a clsact qdisc.
    Clsact,
}

impl Hook {
    /// How it is done on this kernel: tcx links came with 6.6.
    pub(super) fn of_kernel() -> Self {
        if kernel_has(6, 6) { Self::Tcx } else { Self::Clsact }
    }

    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What an earlier daemon had left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Whether the maps were there.
    pub maps: bool,
    /// Whether the programs were, and the same that this daemon would have loaded.
    pub programs: bool,
    /// Host-side links that have these programs since the take-over.
    pub links: Vec<String>,
    /// What could not be adopted, and why.
    pub conditions: Vec<String>,
}

pub(super) fn kernel_has(major: u8, minor: u8) -> bool {
    aya::util::KernelVersion::current().is_ok_and(|v| v >= aya::util::KernelVersion::new(major, minor, 0))
}
