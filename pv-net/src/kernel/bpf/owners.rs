//! Whose the ports of masquerade are. The programs enter owners; what no flow uses any more the daemon takes out.

use super::BpfError;
use super::batch;
use super::table::{map_error, pinned};
use aya::maps::{Array, MapData};
use pv_net_common::flow::FLOW_NEIGHBOUR;
use pv_net_common::nat::{self, OWNER_SLOTS};
use pv_net_common::{FlowEntry, FlowKey, NatOwner, names};
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The `nat_owners` map.
pub(super) struct Owners {
    map: Array<MapData, NatOwner>,
    fd: OwnedFd,
}

/// The slots of the device's own ports, that the sweep leaves alone. They are written with the lock held: none is freed
/// that was just given to the device.
#[derive(Clone, Default)]
pub(super) struct Devices(Arc<Mutex<DeviceSlots>>);

/// What was found at the last look at the device's sockets.
#[derive(Default)]
pub(super) struct DeviceSlots {
    pub slots: HashSet<u32>,
    /// How often they were looked at.
    pub looks: u64,
}

impl Devices {
    /// Whoever panicked with the lock left a list of slots all the same.
    pub(super) fn lock(&self) -> MutexGuard<'_, DeviceSlots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owners {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let name = names::MAP_NAT_OWNERS;
        let map = Array::<MapData, NatOwner>::try_from(pinned(maps, name)?).map_err(map_error("open", name))?;
        let fd = MapData::from_pin(maps.join(name)).map_err(map_error("open", name))?;
        let fd = fd.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|e| BpfError::Map { op: "open", map: name, why: e.to_string() })?;
        Ok(Self { map, fd })
    }

    /// All that have an owner.
    pub(super) fn entries(&self) -> Vec<(u32, NatOwner)> {
        let one = |slot| self.map.get(&slot, 0).ok().map(|owner| (slot, owner));
        let all = batch::read(&self.fd).unwrap_or_else(|_| (0..OWNER_SLOTS).filter_map(one).collect());
        all.into_iter().filter(|(_, owner)| *owner != NatOwner::FREE).collect()
    }

    pub(super) fn set(&mut self, slot: u32, owner: NatOwner) -> Result<(), BpfError> {
        self.map.set(slot, owner, 0).map_err(map_error("write", names::MAP_NAT_OWNERS))
    }

    /// Nobody has any.
    pub(super) fn clear(&mut self) -> Result<(), BpfError> {
        self.entries().into_iter().try_for_each(|(slot, _)| self.set(slot, NatOwner::FREE))
    }
}

/// The slot of the port that a direction leaves with by masquerade.
pub(super) fn slot_used(first_port: u16, key: &FlowKey, entry: &FlowEntry) -> Option<u32> {
    let offset = nat::offset_of(first_port, u16::from_be(entry.sport_be))?;
    (entry.flags & FLOW_NEIGHBOUR != 0).then(|| nat::slot(key, offset))
}
