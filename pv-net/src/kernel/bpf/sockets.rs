//! The socket hooks on the device's cgroup.

use super::links::{self, Pinned};
use super::plane::DataPlane;
use super::{BpfError, pin};
use crate::kernel::kill_point;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddrAttachType};
use pv_net_common::names;
use std::fs::File;
use std::path::Path;

/// The attach types of the programs in [`names::PROG_SOCK`].
const SOCKET_HOOKS: [CgroupSockAddrAttachType; names::PROG_SOCK.len()] = [
    CgroupSockAddrAttachType::Bind4,
    CgroupSockAddrAttachType::Bind6,
    CgroupSockAddrAttachType::Connect4,
    CgroupSockAddrAttachType::Connect6,
    CgroupSockAddrAttachType::UDPSendMsg4,
    CgroupSockAddrAttachType::UDPSendMsg6,
    CgroupSockAddrAttachType::UDPRecvMsg4,
    CgroupSockAddrAttachType::UDPRecvMsg6,
    CgroupSockAddrAttachType::GetPeerName4,
    CgroupSockAddrAttachType::GetPeerName6,
];

impl DataPlane {
    /// The first socket hook that is not attached any more, or whose pin has another program than pv-net's.
    ///
    /// # Errors
    /// When a pin cannot be read.
    pub fn lost_socket_hook(&self) -> Result<Option<&'static str>, BpfError> {
        for name in names::PROG_SOCK {
            let is_own = match links::open(pin::sockets_dir(&self.pin_dir).join(name))? {
                Pinned::Link(link) => self.programs.is_socket_hook(name, link.program),
                Pinned::Stale(_) => false,
            };
            if !is_own {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Attaches the socket hooks to `cgroup`. Those of an earlier daemon are removed after the new ones are attached.
    /// While both are there, the first translates a connection and the second sees no published port any more.
    ///
    /// # Errors
    /// When the kernel refuses a hook, or `cgroup` is no cgroup.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), BpfError> {
        let attach_error =
            |program: &'static str, why: String| BpfError::Attach { program, link: cgroup.display().to_string(), why };
        let file = File::open(cgroup).map_err(|e| attach_error(names::PROG_SOCK[0], e.to_string()))?;
        for (name, at) in names::PROG_SOCK.into_iter().zip(SOCKET_HOOKS) {
            let failed = |why: String| attach_error(name, why);
            let mut program = self.programs.socket_hook(name, at)?;
            kill_point::pass();
            let id = program.attach(&file, CgroupAttachMode::Single).map_err(|e| failed(BpfError::chain(&e)))?;
            let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
            let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
            let pin = pin::sockets_dir(&self.pin_dir).join(name);
            pin::remove(&pin)?;
            kill_point::pass();
            link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
        }
        Ok(())
    }
}
