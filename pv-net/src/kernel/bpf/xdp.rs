//! XDP on the uplinks: the program, its links, and the maps that say what it drops.
//!
//! A link's mode is the folder of its pin: the kernel does not say it of a link.

use super::table::{Access, Single, map_error, pinned};
use super::{BpfError, DataPlane, pin};
use crate::model::{IfName, XdpMode};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use aya::programs::{ProgramError, Xdp};
use pv_net_common::{FilterRate, FilterSource, names};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is dropped: prefix length in bits, source, and the number of the reason it is counted under.
pub type FilterSources = BTreeMap<(u32, FilterSource), u32>;

/// The maps.
pub(super) struct Filter {
    sources: LpmTrie<MapData, FilterSource, u32>,
    rate: Single<FilterRate>,
}

impl Filter {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let sources = pinned(maps, names::MAP_FILTER_SOURCES)?;
        Ok(Self {
            sources: LpmTrie::try_from(sources).map_err(map_error("open", names::MAP_FILTER_SOURCES))?,
            rate: Single::open(maps, names::MAP_FILTER_RATE, Access::Write)?,
        })
    }

    fn set(&mut self, sources: &FilterSources, rate: FilterRate) -> Result<(), BpfError> {
        let name = names::MAP_FILTER_SOURCES;
        let before: FilterSources =
            self.sources.iter().filter_map(Result::ok).map(|(k, v)| ((k.prefix_len(), k.data()), v)).collect();
        // Add before removing: a source that a new prefix holds instead is never let in between.
        for ((bits, source), reason) in sources.iter().filter(|(k, v)| before.get(*k) != Some(*v)) {
            self.sources.insert(&Key::new(*bits, *source), reason, 0).map_err(map_error("write", name))?;
        }
        for (bits, source) in before.keys().filter(|k| !sources.contains_key(*k)) {
            match self.sources.remove(&Key::new(*bits, *source)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(map_error("remove from", name)(e)),
            }
        }
        if self.rate.get()? != rate {
            self.rate.set(rate)?;
        }
        Ok(())
    }
}

/// Where links of `mode` are pinned.
fn dir(root: &Path, mode: XdpMode) -> PathBuf {
    let name = match mode {
        XdpMode::Native => "xdp_native",
        XdpMode::Generic => "xdp_generic",
    };
    pin::links_dir(root).join(name)
}

/// Every folder of pins.
pub(super) fn dirs(root: &Path) -> [PathBuf; 2] {
    XdpMode::ALL.map(|mode| dir(root, mode))
}

/// Uplinks that have the filter, and how it runs there.
pub(super) fn filtered_uplinks(root: &Path) -> Result<Vec<(String, XdpMode)>, BpfError> {
    let mut all = Vec::new();
    for mode in XdpMode::ALL {
        all.extend(pin::links(&dir(root, mode))?.into_iter().map(|name| (name, mode)));
    }
    Ok(all)
}

impl DataPlane {
    /// Says what the uplinks' filter drops; in force at once.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_filter(&mut self, sources: &FilterSources, rate: FilterRate) -> Result<(), BpfError> {
        self.filter.set(sources, rate)
    }

    /// Uplinks that have the filter, and how it runs there.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn filtered_uplinks(&self) -> Result<Vec<(String, XdpMode)>, BpfError> {
        filtered_uplinks(&self.pin_dir)
    }

    /// Puts the filter on an uplink that has none.
    ///
    /// # Errors
    /// When the driver cannot, another program is there, or the link cannot be pinned.
    pub fn attach_filter(&mut self, uplink: &IfName, mode: XdpMode) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Attach {
            program: names::PROG_XDP_UPLINK,
            link: uplink.to_string(),
            why: format!("{} XDP: {why}", mode.label()),
        };
        let pin = pin::of_link(&dir(&self.pin_dir, mode), uplink.as_str());
        let mut program = self.programs.xdp()?;
        let id = attach(&mut program, uplink, mode).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
        link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
        Ok(())
    }

    /// Takes the filter off an uplink.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_filter(&mut self, uplink: &str, mode: XdpMode) -> Result<(), BpfError> {
        pin::remove(&pin::of_link(&dir(&self.pin_dir, mode), uplink))
    }

    /// Puts the new program behind the links that an earlier daemon pinned; what could not be adopted.
    pub(super) fn adopt_filters(&mut self) -> Result<Vec<String>, BpfError> {
        let mut conditions = Vec::new();
        for (name, mode) in self.filtered_uplinks()? {
            let path = pin::of_link(&dir(&self.pin_dir, mode), &name);
            if let Err(e) = self.replace_filter(&path) {
                // The uplink is gone, or it is no link: it is attached anew where it should be.
                pin::remove(&path)?;
                conditions.push(format!("{e}; pin removed"));
            }
        }
        Ok(conditions)
    }

    /// `BPF_LINK_UPDATE`: no packet passes unfiltered.
    fn replace_filter(&mut self, path: &Path) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Link { path: path.to_owned(), why };
        let pinned = PinnedLink::from_pin(path).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = XdpLink::try_from(FdLink::from(pinned)).map_err(|e| failed(BpfError::chain(&e)))?;
        let mut program = self.programs.xdp()?;
        let id = program.attach_to_link(link).map_err(|e| failed(BpfError::chain(&e)))?;
        // Dropping the handle closes it; the pin keeps the link.
        drop(program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?);
        Ok(())
    }
}

/// Attaches, and waits a little for a link of ours that was removed just before: the kernel lets go of it later.
fn attach(program: &mut Xdp, uplink: &IfName, mode: XdpMode) -> Result<aya::programs::xdp::XdpLinkId, ProgramError> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let kind = match mode {
        XdpMode::Native => AyaMode::Driver,
        XdpMode::Generic => AyaMode::Skb,
    };
    let start = Instant::now();
    loop {
        let done = program.attach(uplink.as_str(), kind);
        let busy = match &done {
            Err(ProgramError::SyscallError(e)) => {
                matches!(e.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
            }
            _ => false,
        };
        if !busy || start.elapsed() > PATIENCE {
            return done;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
