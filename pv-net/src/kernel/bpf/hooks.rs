//! Where the programs sit: links of containers, uplinks, and the sockets of the device.

use super::options::Hook;
use super::place::Place;
use super::plane::DataPlane;
use super::{BpfError, clsact, pin};
use crate::model::IfName;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{CgroupAttachMode, CgroupSockAddrAttachType};
use pv_net_common::names;
use std::fs::File;
use std::path::{Path, PathBuf};

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
    /// Where links of a program's place are pinned.
    pub(super) fn pins(&self, place: Place) -> PathBuf {
        pin::place_dir(self.pin_dir(), place)
    }

    /// Links that have all programs of a container. None without tcx: a filter goes with its link, and attaching
    /// replaces it.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked(&self) -> Result<Vec<String>, BpfError> {
        let outwards = pin::links(&self.pins(Place::FromContainer))?;
        let mut inwards = pin::links(&self.pins(Place::ToContainer))?;
        inwards.retain(|name| outwards.contains(name));
        Ok(inwards)
    }

    /// Uplinks that have the program. None without tcx: the daemon's state has those that have a filter.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked_uplinks(&self) -> Result<Vec<String>, BpfError> {
        pin::links(&self.pins(Place::FromUplink))
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
            pin::remove(&pin::of_link(&self.pins(place), host_if))?;
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
        pin::links(&self.pins(Place::FromBridge))
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
        pin::remove(&pin::of_link(&self.pins(Place::FromBridge), bridge))
    }

    /// Takes the program off an uplink.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_uplink(&mut self, uplink: &str) -> Result<(), BpfError> {
        pin::remove(&pin::of_link(&self.pins(Place::FromUplink), uplink))
    }

    fn attach_at(&mut self, place: Place, link_name: &IfName) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Attach { program: place.program(), link: link_name.to_string(), why };
        let pin = pin::of_link(&self.pins(place), link_name.as_str());
        let hook = self.hook();
        let program = self.programs.entry(place.program())?;
        crate::kernel::kill_point::pass();
        let id = match hook {
            Hook::Tcx if pin.exists() => return Ok(()),
            Hook::Tcx => {
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(link_name.as_str(), place.attach_type(), options)
            }
            Hook::Clsact => match clsact::attach(program, link_name.as_str(), place.attach_type()) {
                Err(e) if clsact::is_there(&e) => match &mut self.takeover {
                    // The filter of an earlier daemon guards the link until all that the new program goes by is written.
                    Some(takeover) => {
                        takeover.filters.push((place, link_name.clone()));
                        return Ok(());
                    }
                    None => clsact::replace(program, link_name.as_str(), place.attach_type()),
                },
                done => done,
            },
        };
        let id = id.map_err(|e| failed(BpfError::chain(&e)))?;
        let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
        match hook {
            Hook::Tcx => {
                let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
                crate::kernel::kill_point::pass();
                link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
            }
            // A filter belongs to its link; dropping the handle would remove it.
            Hook::Clsact => std::mem::forget(link),
        }
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
