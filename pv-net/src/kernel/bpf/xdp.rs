//! The uplinks' filter: an XDP program and its links.

use super::hooks::check_name;
use super::plane::DataPlane;
use super::{BpfError, links, pin};
use crate::kernel::kill_point;
use crate::model::{IfName, XdpMode};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpMode as AyaMode;
use aya::programs::{ProgramError, Xdp};
use pv_net_common::names;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

impl DataPlane {
    /// Attaches the filter to an uplink. If it is there already it stays; another program behind its pin is replaced.
    ///
    /// # Errors
    /// When the driver does not support the mode, another XDP program is attached, or the link cannot be pinned.
    pub(super) fn attach_filter(&mut self, uplink: &IfName, index: u32, mode: XdpMode) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Attach {
            program: names::PROG_XDP_UPLINK,
            link: uplink.to_string(),
            why: format!("{} XDP: {why}", mode.label()),
        };
        check_name(uplink, index).map_err(failed)?;
        let pin = pin::of_link(&pin::filter_dir(&self.pin_dir, mode), index);
        let mut program = self.programs.xdp()?;
        if pin.exists() {
            let id = program.info().map_err(|e| failed(BpfError::chain(&e)))?.id();
            let fd = program.fd().map_err(|e| failed(BpfError::chain(&e)))?;
            if links::renew(pin.clone(), index, id, fd.as_fd())? {
                return Ok(());
            }
        }
        kill_point::pass();
        let id = attach(&mut program, uplink, mode).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
        check_name(uplink, index).map_err(failed)?;
        kill_point::pass();
        link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
        Ok(())
    }
}

/// Attaches the program. When a link of pv-net was removed just before, this retries for a while, since the kernel
/// releases it later.
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
        #[expect(
            clippy::disallowed_methods,
            reason = "some milliseconds, and what calls it blocks in the kernel for as long anyway"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}
