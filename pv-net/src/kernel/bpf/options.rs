//! Options for opening the data plane, and what was found there.

use std::path::PathBuf;

/// Place and size of the data plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for the pins, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Entries of the flow table; takes effect when that map is made.
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
    /// The way for this kernel: tcx links came with 6.6. `PV_NET_HOOK=clsact` forces clsact, for tests. This is no
    /// risk, since whoever can set the daemon's environment can end it anyway.
    #[must_use]
    pub fn of_kernel() -> Self {
        let is_forced = std::env::var_os("PV_NET_HOOK").is_some_and(|hook| hook == Self::Clsact.label());
        if kernel_has(6, 6) && !is_forced { Self::Tcx } else { Self::Clsact }
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

/// What was adopted from an earlier daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Whether its maps were kept.
    pub maps: bool,
    /// Whether its programs were the same that this daemon would have loaded.
    pub programs: bool,
    /// How many host-side links had the programs after the take-over.
    pub links: usize,
    /// What could not be adopted, and why.
    pub conditions: Vec<String>,
}

pub(super) fn kernel_has(major: u8, minor: u8) -> bool {
    aya::util::KernelVersion::current().is_ok_and(|v| v >= aya::util::KernelVersion::new(major, minor, 0))
}
