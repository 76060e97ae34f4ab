//! Ports of masquerade's range that the device itself uses.

use super::BpfError;
use super::plane::DataPlane;
use pv_net_common::NatOwner;
use pv_net_common::nat::{self, slot_of};
use std::collections::HashSet;

impl DataPlane {
    /// Marks the ports that the device uses, given as protocol number and port: no container gets one, in either
    /// family. Ports that are not listed any more are freed by the sweep.
    ///
    /// # Errors
    /// When the maps `config` or `nat_owners` cannot be read or written.
    pub fn keep_from_nat(&mut self, ports: HashSet<(u32, u16)>) -> Result<(), BpfError> {
        let first = self.config.get()?.nat_first_port;
        let slots = |(proto, port): &(u32, u16)| {
            let offset = nat::offset_of(first, *port)?;
            Some([true, false].map(|v4| slot_of(v4, *proto, offset)))
        };
        let mut devices = self.devices.lock();
        devices.slots = ports.iter().filter_map(slots).flatten().collect();
        devices.looks += 1;
        devices.slots.iter().try_for_each(|slot| self.owners.set(*slot, NatOwner::DEVICE))
    }
}
