//! The owners of masquerade's ports. The programs enter owners; the daemon removes those whose ports no flow uses any
//! more.

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

/// The slots of the device's own ports, which the sweep does not free. They are written under the lock, so that the
/// sweep cannot free a port that was just given to the device.
#[derive(Clone, Default)]
pub(super) struct Devices(Arc<Mutex<DeviceSlots>>);

/// The result of the last look at the device's sockets.
#[derive(Default)]
pub(super) struct DeviceSlots {
    pub slots: HashSet<u32>,
    /// How many looks there were.
    pub looks: u64,
}

impl Devices {
    /// A thread that panicked with the lock has left a valid list of slots.
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

    /// All slots that have an owner.
    pub(super) fn entries(&self) -> Vec<(u32, NatOwner)> {
        let one = |slot| self.map.get(&slot, 0).ok().map(|owner| (slot, owner));
        let all = batch::read(&self.fd).unwrap_or_else(|_| (0..OWNER_SLOTS).filter_map(one).collect());
        all.into_iter().filter(|(_, owner)| *owner != NatOwner::FREE).collect()
    }

    pub(super) fn set(&mut self, slot: u32, owner: NatOwner) -> Result<(), BpfError> {
        self.map.set(slot, owner, 0).map_err(map_error("write", names::MAP_NAT_OWNERS))
    }

    /// Frees all slots.
    pub(super) fn clear(&mut self) -> Result<(), BpfError> {
        self.entries().into_iter().try_for_each(|(slot, _)| self.set(slot, NatOwner::FREE))
    }
}

/// The slot of the port that this direction of a flow leaves with by masquerade; `None` without masquerade.
pub(super) fn slot_used(first_port: u16, key: &FlowKey, entry: &FlowEntry) -> Option<u32> {
    let offset = nat::offset_of(first_port, u16::from_be(entry.sport_be))?;
    (entry.flags & FLOW_NEIGHBOUR != 0).then(|| nat::slot(key, offset))
}
