//! Adds the names that clients of DHCP gave themselves.

use super::super::name::{self, LowerName};
use super::{Address, Host, Kind, Zone};
use crate::ipam::{ClientId, is_one_machine};
use crate::model::{Mac, PoolName};
use std::collections::HashMap;
use std::net::IpAddr;

/// An address of a client of DHCP or DHCPv6 that gave itself a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedClient {
    /// The pool.
    pub pool: PoolName,
    /// The name, a label in lower case.
    pub hostname: String,
    /// The address.
    pub address: IpAddr,
    /// The client.
    pub client: ClientId,
    /// Its MAC, where that is known.
    pub mac: Option<Mac>,
}

impl NamedClient {
    fn is_one_machine(&self, other: &Self) -> bool {
        is_one_machine((&self.client, self.mac), (&other.client, other.mac))
    }
}

impl Zone {
    /// The same with names that clients of DHCP gave themselves, in the device's domain. A name that is a container's stays
    /// that one's. The lease book has given a name to one machine alone; were it two nevertheless, the first of `clients`
    /// would have it, in both families.
    #[must_use]
    pub fn with_clients(mut self, domain: &str, clients: &[NamedClient]) -> Self {
        let mut holders: HashMap<LowerName, &NamedClient> = HashMap::new();
        for client in clients {
            let NamedClient { pool, hostname, address, .. } = client;
            let number = (0..).zip(&self.pools).find(|(_, known)| known.name == *pool).map(|(number, _)| number);
            let Some(number) = number.filter(|_| !self.by_address.contains_key(address)) else { continue };
            let is_free = |name: &LowerName| match holders.get(name) {
                Some(holder) => holder.is_one_machine(client),
                None => !self.names.contains_key(name) && *name != self.gateway,
            };
            let [name, in_pool] = [format!("{hostname}.{domain}"), format!("{hostname}.{pool}.{domain}")];
            let name = name::from_text(&name).filter(is_free);
            if name.as_ref().is_some_and(|name| self.reserved.contains(name)) {
                continue;
            }
            let in_pool = name::from_text(&in_pool).filter(|name| is_free(name) && !self.reserved.contains(name));
            let (at, host) = (self.addresses.len() as u32, self.hosts.len() as u32);
            // By its address it is found under the name that leads to it.
            let own = name.clone().or(in_pool.clone());
            self.addresses.push(Address { ip: *address, pool: number, host });
            self.by_address.insert(*address, at);
            self.hosts.push(Host { name: own, identity: 0, own: vec![(number, *address)] });
            for name in name.into_iter().chain(in_pool) {
                holders.insert(name.clone(), client);
                self.add(Kind::Client, name, &[at]);
            }
        }
        self
    }
}
