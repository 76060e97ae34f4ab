//! XDP on the uplinks: the program and its links.

use super::filter::FilterSources;
use super::plane::DataPlane;
use super::{BpfError, pin};
use crate::model::{IfName, XdpMode};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpMode as AyaMode;
use aya::programs::{ProgramError, Xdp};
use pv_net_common::{FilterRate, names};
use std::time::{Duration, Instant};

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
        pin::filtered_uplinks(&self.pin_dir)
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
        let pin = pin::of_link(&pin::filter_dir(&self.pin_dir, mode), uplink.as_str());
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
        pin::remove(&pin::of_link(&pin::filter_dir(&self.pin_dir, mode), uplink))
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
