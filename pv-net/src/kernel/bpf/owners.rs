//! Whose the ports of masquerade are. The programs enter owners; what no flow uses any more the daemon takes out.

use super::BpfError;
use super::batch;
use super::load::DataPlane;
use super::table::{map_error, pinned};
use aya::maps::{Array, MapData};
use pv_net_common::flow::FLOW_NEIGHBOUR;
use pv_net_common::nat::{self, OWNER_SLOTS, slot_of};
use pv_net_common::{FlowEntry, FlowKey, NatOwner, names};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The `nat_owners` map.
pub(super) struct Owners {
    map: Array<MapData, NatOwner>,
    fd: OwnedFd,
    /// Without a flow at the last look.
    unused: HashMap<u32, NatOwner>,
    /// The device's own.
    devices: HashSet<u32>,
}

impl Owners {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let name = names::MAP_NAT_OWNERS;
        let map = Array::<MapData, NatOwner>::try_from(pinned(maps, name)?).map_err(map_error("open", name))?;
        let fd = MapData::from_pin(maps.join(name)).map_err(map_error("open", name))?;
        let fd = fd.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|e| BpfError::Map { op: "open", map: name, why: e.to_string() })?;
        Ok(Self { map, fd, unused: HashMap::new(), devices: HashSet::new() })
    }

    /// All that have an owner.
    fn entries(&self) -> Vec<(u32, NatOwner)> {
        let one = |slot| self.map.get(&slot, 0).ok().map(|owner| (slot, owner));
        let all = batch::read(&self.fd).unwrap_or_else(|_| (0..OWNER_SLOTS).filter_map(one).collect());
        all.into_iter().filter(|(_, owner)| *owner != NatOwner::FREE).collect()
    }

    fn set(&mut self, slot: u32, owner: NatOwner) -> Result<(), BpfError> {
        self.map.set(slot, owner, 0).map_err(map_error("write", names::MAP_NAT_OWNERS))
    }

    /// Nobody has any.
    pub(super) fn clear(&mut self) -> Result<(), BpfError> {
        self.unused.clear();
        self.entries().into_iter().try_for_each(|(slot, _)| self.set(slot, NatOwner::FREE))
    }
}

/// The slot of the port that a direction leaves with by masquerade.
fn slot_used(first_port: u16, key: &FlowKey, entry: &FlowEntry) -> Option<u32> {
    let offset = nat::offset_of(first_port, u16::from_be(entry.sport_be))?;
    (entry.flags & FLOW_NEIGHBOUR != 0).then(|| nat::slot(key, offset))
}

impl DataPlane {
    /// The ports of the device in the range, by protocol number: no container gets one, of either family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keep_from_nat(&mut self, ports: HashSet<(u32, u16)>) -> Result<(), BpfError> {
        let first = self.config.get()?.nat_first_port;
        let slots = |(proto, port): &(u32, u16)| {
            let offset = nat::offset_of(first, *port)?;
            Some([true, false].map(|v4| slot_of(v4, *proto, offset)))
        };
        self.owners.devices = ports.iter().filter_map(slots).flatten().collect();
        for slot in self.owners.devices.clone() {
            self.owners.set(slot, NatOwner::DEVICE)?;
        }
        Ok(())
    }

    /// Takes out the owners without a flow, when they had none at the last look either: one that is about to have a flow
    /// keeps its port. `flows` are all, by the key and the entry of their opener.
    pub(super) fn free_ports<'a>(
        &mut self,
        flows: impl Iterator<Item = (&'a FlowKey, &'a FlowEntry)>,
    ) -> Result<(), BpfError> {
        let first = self.config.get()?.nat_first_port;
        let used: HashSet<u32> = flows.filter_map(|(key, entry)| slot_used(first, key, entry)).collect();
        let mut unused = HashMap::new();
        for (slot, owner) in self.owners.entries() {
            let stays = if owner == NatOwner::DEVICE { &self.owners.devices } else { &used };
            if stays.contains(&slot) {
                continue;
            }
            if self.owners.unused.get(&slot) == Some(&owner) {
                self.owners.set(slot, NatOwner::FREE)?;
            } else {
                unused.insert(slot, owner);
            }
        }
        self.owners.unused = unused;
        Ok(())
    }
}
