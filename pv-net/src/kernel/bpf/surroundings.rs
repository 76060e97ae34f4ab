//! What the programs must know beside containers: the device's addresses, uplinks and published ports.

use super::BpfError;
use super::plane::DataPlane;
use super::table::{PortMapPrefix, Prefix, SourcePrefix};
use pv_net_common::{EndpointKey, FilterSource, Ip, PortMapKey, PortMapTarget, UplinkInfo};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One more or less prefix of published ports.
type Prefixes = BTreeMap<(u32, [u8; 16], u16, u16), (PortMapPrefix, PortMapTarget)>;

fn ordered(prefix: &PortMapPrefix) -> (u32, [u8; 16], u16, u16) {
    let (bits, PortMapKey { addr, proto_be, port_be }) = *prefix;
    (bits, addr.octets(), proto_be, port_be)
}

impl DataPlane {
    /// Makes `addresses` all that the programs take for the device's own, with their kind.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_locals(&mut self, addresses: &BTreeMap<Ip, u32>) -> Result<(), BpfError> {
        for (addr, kind) in addresses {
            self.locals.set(&EndpointKey { addr: *addr }, kind)?;
        }
        for (key, _) in self.locals.entries() {
            if !addresses.contains_key(&key.addr) {
                self.locals.remove(&key)?;
            }
        }
        Ok(())
    }

    /// What the programs take for the device's own addresses, and the broadcast addresses of its networks.
    #[must_use]
    pub fn locals(&self) -> BTreeSet<Ip> {
        self.locals.entries().into_iter().map(|(key, _)| key.addr).collect()
    }

    /// Makes `sources` all that masquerade uses beside the uplinks' usual addresses: prefixes of an LPM trie.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_sources(&mut self, sources: &[(SourcePrefix, Ip)]) -> Result<(), BpfError> {
        for (prefix, source) in sources {
            self.sources.set(*prefix, *source)?;
        }
        let wanted: HashSet<_> = sources.iter().map(|(prefix, _)| *prefix).collect();
        for (prefix, _) in self.sources.entries() {
            if !wanted.contains(&prefix) {
                self.sources.remove(prefix)?;
            }
        }
        Ok(())
    }

    /// Makes `networks` all that the programs take for networks of pools, with the index of their bridge.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_networks(&mut self, networks: &BTreeMap<Prefix<FilterSource>, u32>) -> Result<(), BpfError> {
        // Add before removing: no address of a pool is a stranger's in between.
        for (prefix, bridge) in networks {
            self.networks.set(*prefix, *bridge)?;
        }
        for (prefix, _) in self.networks.entries() {
            if !networks.contains_key(&prefix) {
                self.networks.remove(prefix)?;
            }
        }
        Ok(())
    }

    /// Makes `uplinks` all uplinks and bridges that the programs know, by index.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_uplinks(&mut self, uplinks: &BTreeMap<u32, UplinkInfo>) -> Result<(), BpfError> {
        for (index, info) in uplinks {
            self.uplinks.set(index, info)?;
        }
        for (index, _) in self.uplinks.entries() {
            if !uplinks.contains_key(&index) {
                self.uplinks.remove(&index)?;
            }
        }
        Ok(())
    }

    /// Uplinks and bridges as the programs know them.
    #[must_use]
    pub fn uplinks(&self) -> BTreeMap<u32, UplinkInfo> {
        self.uplinks.entries().into_iter().collect()
    }

    /// Makes `port_map` all published ports: prefixes of an LPM trie. What comes back are those that are
    /// no more.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_port_map(
        &mut self,
        port_map: &[(PortMapPrefix, PortMapTarget)],
    ) -> Result<Vec<(PortMapPrefix, PortMapTarget)>, BpfError> {
        let old: Prefixes = self.port_map.entries().into_iter().map(|e| (ordered(&e.0), e)).collect();
        let new: Prefixes = port_map.iter().map(|e| (ordered(&e.0), *e)).collect();
        for (key, (prefix, target)) in &new {
            if old.get(key).is_none_or(|(_, before)| before != target) {
                self.port_map.set(*prefix, *target)?;
            }
        }
        let mut gone = Vec::new();
        for (key, (prefix, target)) in old {
            match new.get(&key) {
                Some((_, now)) if *now == target => {}
                Some(_) => gone.push((prefix, target)),
                None => {
                    self.port_map.remove(prefix)?;
                    gone.push((prefix, target));
                }
            }
        }
        Ok(gone)
    }

    /// Says whose sockets the socket hooks act on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_netns_cookie(&mut self, cookie: u64) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.netns_cookie = cookie;
        self.config.set(config)
    }
}
