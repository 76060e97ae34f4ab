//! Where the programs sit: links of containers, uplinks, and the sockets of the device.

use super::{BpfError, DataPlane, Hook, clsact, pin};
use crate::model::IfName;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{CgroupAttachMode, CgroupSockAddrAttachType, TcAttachType};
use pv_net_common::names;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A program's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Ingress of a container's host-side link.
    FromContainer,
    /// Egress of the same.
    ToContainer,
    /// Ingress of an uplink.
    FromUplink,
    /// Ingress of a pool's bridge.
    FromBridge,
}

impl Place {
    pub(super) const ALL: [Self; 4] = [Self::FromContainer, Self::ToContainer, Self::FromUplink, Self::FromBridge];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::FromContainer => names::PROG_FROM_CONTAINER,
            Self::ToContainer => names::PROG_TO_CONTAINER,
            Self::FromUplink => names::PROG_FROM_UPLINK,
            Self::FromBridge => names::PROG_FROM_BRIDGE,
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::FromContainer | Self::FromUplink | Self::FromBridge => TcAttachType::Ingress,
            Self::ToContainer => TcAttachType::Egress,
        }
    }

    /// Directory of its pins.
    pub(super) fn dir(self, root: &Path) -> PathBuf {
        pin::links_dir(root).join(self.program())
    }
}

/// Where the programs of [`names::PROG_SOCK`] belong.
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
    /// Links that have all programs of a container. None without tcx: a filter goes with its link, and attaching
    /// replaces it.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked(&self) -> Result<Vec<String>, BpfError> {
        let outwards = pin::links(&Place::FromContainer.dir(self.pin_dir()))?;
        let mut inwards = pin::links(&Place::ToContainer.dir(self.pin_dir()))?;
        inwards.retain(|name| outwards.contains(name));
        Ok(inwards)
    }

    /// Uplinks that have the program. None without tcx: the daemon's state has those that have a filter.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked_uplinks(&self) -> Result<Vec<String>, BpfError> {
        pin::links(&Place::FromUplink.dir(self.pin_dir()))
    }

    /// Puts the programs on a container's host-side link; those that are there already stay.
    ///
    /// # Errors
    /// When the kernel refuses, or a link cannot be pinned.
    pub fn attach(&mut self, host_if: &IfName) -> Result<(), BpfError> {
        self.attach_at(Place::ToContainer, host_if)?;
        self.attach_at(Place::FromContainer, host_if)
    }

    /// Removes the pins of `host_if`; the programs go with them, or with the link.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self, host_if: &str) -> Result<(), BpfError> {
        for place in [Place::FromContainer, Place::ToContainer] {
            pin::remove(&pin::of_link(&place.dir(self.pin_dir()), host_if))?;
        }
        Ok(())
    }

    /// Puts the program on an uplink; one that is there already stays.
    ///
    /// # Errors
    /// When the kernel refuses, or the link cannot be pinned.
    pub fn attach_uplink(&mut self, uplink: &IfName) -> Result<(), BpfError> {
        self.attach_at(Place::FromUplink, uplink)
    }

    /// Pools' bridges that have the program. None without tcx, as of uplinks.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked_bridges(&self) -> Result<Vec<String>, BpfError> {
        pin::links(&Place::FromBridge.dir(self.pin_dir()))
    }

    /// Puts the program on a pool's bridge; one that is there already stays.
    ///
    /// # Errors
    /// When the kernel refuses, or the link cannot be pinned.
    pub fn attach_bridge(&mut self, bridge: &IfName) -> Result<(), BpfError> {
        self.attach_at(Place::FromBridge, bridge)
    }

    /// Takes the program off a bridge.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_bridge(&mut self, bridge: &str) -> Result<(), BpfError> {
        pin::remove(&pin::of_link(&Place::FromBridge.dir(self.pin_dir()), bridge))
    }

    /// Takes the program off an uplink.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_uplink(&mut self, uplink: &str) -> Result<(), BpfError> {
        pin::remove(&pin::of_link(&Place::FromUplink.dir(self.pin_dir()), uplink))
    }

    fn attach_at(&mut self, place: Place, link_name: &IfName) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Attach { program: place.program(), link: link_name.to_string(), why };
        let pin = pin::of_link(&place.dir(self.pin_dir()), link_name.as_str());
        let hook = self.hook();
        let program = self.programs.entry(place.program())?;
        let id = match hook {
            Hook::Tcx if pin.exists() => return Ok(()),
            Hook::Tcx => {
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(link_name.as_str(), place.attach_type(), options)
            }
            Hook::Clsact => clsact::attach(program, link_name.as_str(), place.attach_type()),
        };
        let id = id.map_err(|e| failed(BpfError::chain(&e)))?;
        let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
        match hook {
            Hook::Tcx => {
                let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
                link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
            }
            // A filter belongs to its link; dropping the handle would remove it.
            Hook::Clsact => std::mem::forget(link),
        }
        Ok(())
    }

    /// Puts the new programs behind the pinned links; names of the links that have them now, and what went wrong.
    pub(super) fn adopt_links(&mut self) -> Result<(Vec<String>, Vec<String>), BpfError> {
        let (mut adopted, mut conditions) = (Vec::new(), Vec::new());
        for place in Place::ALL {
            let dir = place.dir(self.pin_dir());
            for name in pin::links(&dir)? {
                let path = pin::of_link(&dir, &name);
                match self.replace_program(place, &path) {
                    Ok(()) if place == Place::FromContainer => adopted.push(name),
                    Ok(()) => {}
                    Err(e) => {
                        // The link's device is gone, or it is no link: the daemon attaches anew what should be attached.
                        pin::remove(&path)?;
                        conditions.push(format!("{e}; pin removed"));
                    }
                }
            }
        }
        Ok((adopted, conditions))
    }

    /// `BPF_LINK_UPDATE`: no packet runs without a program. The kernel leaves a link alone that has this program already,
    /// and says when its device is gone.
    fn replace_program(&mut self, place: Place, path: &Path) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Link { path: path.to_owned(), why };
        let pinned = PinnedLink::from_pin(path).map_err(|e| failed(BpfError::chain(&e)))?;
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(|e| failed(BpfError::chain(&e)))?;
        let program = self.programs.entry(place.program())?;
        let id = program.attach_to_link(link).map_err(|e| failed(BpfError::chain(&e)))?;
        // Dropping the handle closes it; the pin keeps the link.
        drop(program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?);
        Ok(())
    }

    /// Puts the socket hooks on `cgroup`. Those of an earlier daemon go when the new ones are there: a connection
    /// that meets both is led by the first and left alone by the second.
    ///
    /// # Errors
    /// When the kernel refuses one, or `cgroup` is none.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), BpfError> {
        let attach_error =
            |program: &'static str, why: String| BpfError::Attach { program, link: cgroup.display().to_string(), why };
        let file = File::open(cgroup).map_err(|e| attach_error(names::PROG_SOCK[0], e.to_string()))?;
        for (name, at) in names::PROG_SOCK.into_iter().zip(SOCKET_HOOKS) {
            let failed = |why: String| attach_error(name, why);
            let mut program = self.programs.socket_hook(name, at)?;
            let id = program.attach(&file, CgroupAttachMode::Single).map_err(|e| failed(BpfError::chain(&e)))?;
            let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
            let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
            let pin = pin::sockets_dir(&self.pin_dir).join(name);
            pin::remove(&pin)?;
            link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
        }
        Ok(())
    }
}
