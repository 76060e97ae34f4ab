//! The maps that describe what is around the containers: the device's addresses, uplinks, published ports, the uplinks'
//! filter.

use super::BpfError;
use super::plane::DataPlane;
use crate::plan::{Entry, Tables};
use pv_net_common::{EndpointKey, FilterRate};

impl DataPlane {
    /// The contents of these maps.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn tables(&self) -> Result<Tables, BpfError> {
        Ok(Tables {
            locals: self.locals.entries().into_iter().map(|(key, kind)| (key.addr, kind)).collect(),
            networks: self.networks.entries().into_iter().collect(),
            sources: self.sources.entries().into_iter().collect(),
            uplinks: self.uplinks.entries().into_iter().collect(),
            ports: self.port_map.entries().into_iter().collect(),
            dropped: self.filter.sources.entries().into_iter().collect(),
            rate: self.filter.rate.get()?,
        })
    }

    /// Writes an entry, replacing one with the same key.
    ///
    /// # Errors
    /// When the kernel refuses to write the map, for example because it is full.
    pub fn set_entry(&mut self, entry: &Entry) -> Result<(), BpfError> {
        match *entry {
            Entry::Local { addr, kind } => self.locals.set(&EndpointKey { addr }, &kind),
            Entry::Network { prefix, bridge } => self.networks.set(prefix, bridge),
            Entry::Source { prefix, addr } => self.sources.set(prefix, addr),
            Entry::Uplink { index, info } => self.uplinks.set(&index, &info),
            Entry::Port { prefix, target } => self.port_map.set(prefix, target),
            Entry::Dropped { prefix, reason } => self.filter.sources.set(prefix, reason),
            Entry::Rate(rate) => self.filter.rate.set(rate),
        }
    }

    /// Removes the entry that has the key of `entry`; a missing one is fine.
    ///
    /// # Errors
    /// When the kernel refuses to remove it.
    pub fn remove_entry(&mut self, entry: &Entry) -> Result<(), BpfError> {
        match *entry {
            Entry::Local { addr, .. } => self.locals.remove(&EndpointKey { addr }).map(drop),
            Entry::Network { prefix, .. } => self.networks.remove(prefix),
            Entry::Source { prefix, .. } => self.sources.remove(prefix),
            Entry::Uplink { index, .. } => self.uplinks.remove(&index).map(drop),
            Entry::Port { prefix, .. } => self.port_map.remove(prefix),
            Entry::Dropped { prefix, .. } => self.filter.sources.remove(prefix),
            Entry::Rate(_) => self.filter.rate.set(FilterRate::default()),
        }
    }

    /// The first port of masquerade's range.
    ///
    /// # Errors
    /// When the map `config` cannot be read.
    pub fn nat_first_port(&self) -> Result<u16, BpfError> {
        Ok(self.config.get()?.nat_first_port)
    }

    /// Sets the cookie of the network namespace in whose sockets the socket hooks act.
    ///
    /// # Errors
    /// When the map `config` cannot be read or written.
    pub fn set_netns_cookie(&mut self, cookie: u64) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.netns_cookie = cookie;
        self.config.set(config)
    }
}
