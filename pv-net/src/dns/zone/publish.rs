//! Adds services to a zone, and finds names that clash.

use super::super::name::{self, LowerName};
use super::super::service::Offered;
use super::{Client, Kind, Zone};
use crate::model::{ContainerName, Offer};
use crate::snapshot::Snapshot;
use std::collections::HashMap;
use std::net::IpAddr;

impl Zone {
    /// Adds the services that containers offer, except those whose name is a container's. Notes all names that clash:
    /// names in DNS have no case, and may be too long or taken.
    pub(super) fn publish(&mut self, snapshot: &Snapshot, offers: Vec<(&ContainerName, &Offer, Vec<u32>)>) {
        let domain = &snapshot.device.domain;
        let mut containers: HashMap<String, &ContainerName> = HashMap::new();
        for container in &*snapshot.containers {
            let name = &container.name;
            let lower = name.as_str().to_ascii_lowercase();
            if lower == "gateway" {
                self.clashes.push(format!("container {name}: that name is the gateway's, here as {lower}.{domain}"));
            } else if let Some(first) = containers.get(&lower) {
                let why =
                    format!("containers {first} and {name}: names have no case, so {lower}.{domain} is only {first}");
                self.clashes.push(why);
            } else {
                containers.insert(lower, name);
            }
        }
        for (container, offer, addresses) in offers {
            let mut clash = |why: &str| {
                self.clashes.push(format!("service {} of container {container} has no name: {why}", offer.name));
            };
            if containers.get(&offer.name).is_some_and(|other| *other != container) {
                clash("it is a container's");
                continue;
            }
            let names = [format!("{}.{domain}", offer.name), format!("_{}._{}.{domain}", offer.name, offer.transport)];
            let target = name::from_text(&format!("{container}.{domain}"));
            let ([Some(name), Some(record)], Some(target)) = (names.map(|name| name::from_text(&name)), target) else {
                clash("it is too long");
                continue;
            };
            let is_own = name == target;
            let offered = Offered { addresses, target, port: offer.port, kind: offer.kind.clone() };
            self.add(Kind::Service, name.clone(), &offered.addresses);
            self.add(Kind::Record, record.clone(), &offered.addresses);
            for (key, kind) in [(name, Kind::Service), (record, Kind::Record)] {
                match self.names.get_mut(&key) {
                    Some(named) if named.kind == kind || is_own => named.offers.push(offered.clone()),
                    _ => {
                        let why = format!(
                            "service {} of container {container}: {} is an alias",
                            offer.name,
                            name::to_text(&key)
                        );
                        self.clashes.push(why);
                    }
                }
            }
        }
    }

    /// The names by which a service of an attached container is found: its own, and that of its SRV record. `None` for one
    /// that is another's.
    #[must_use]
    pub fn names_of(&self, container: &ContainerName, offer: &Offer) -> [Option<String>; 2] {
        let domain = name::to_text(&self.domain);
        let names = [format!("{}.{domain}", offer.name), format!("_{}._{}.{domain}", offer.name, offer.transport)];
        let target = name::from_text(&format!("{container}.{domain}"));
        let is_its = |text: &String| {
            let named = name::from_text(text).and_then(|name| self.names.get(&name));
            let is_it = |o: &Offered| Some(&o.target) == target.as_ref() && o.port == offer.port;
            named.is_some_and(|named| named.offers.iter().any(is_it))
        };
        names.map(|text| Some(text).filter(is_its))
    }

    /// Descriptions of all names that clash.
    #[must_use]
    pub fn clashes(&self) -> &[String] {
        &self.clashes
    }

    /// The services of this name that `client` sees, and whether the name is one for SRV records.
    pub(in crate::dns) fn offers(&self, client: Client, name: &LowerName) -> (bool, impl Iterator<Item = &Offered>) {
        let named = self.names.get(name);
        let all = named.map(|named| named.offers.as_slice()).unwrap_or_default();
        let seen = move |offer: &&Offered| offer.addresses.iter().any(|at| self.seen(client, *at).is_some());
        (named.is_some_and(|named| named.kind == Kind::Record), all.iter().filter(seen))
    }

    /// The addresses of a service's container that `client` sees.
    pub(in crate::dns) fn addresses_of<'a>(
        &'a self,
        client: Client,
        offer: &'a Offered,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        offer.addresses.iter().filter_map(move |at| Some(self.seen(client, *at)?.ip))
    }
}
