//! Ports of masquerade that the device has itself.

use super::BpfError;
use super::plane::DataPlane;
use pv_net_common::NatOwner;
use pv_net_common::nat::{self, slot_of};
use std::collections::HashSet;

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
        let mut devices = self.devices.lock();
        devices.slots = ports.iter().filter_map(slots).flatten().collect();
        devices.looks += 1;
        devices.slots.iter().try_for_each(|slot| self.owners.set(*slot, NatOwner::DEVICE))
    }
}
