//! Services that containers offer.

use crate::dns::Zone;
use crate::model::{ContainerName, Offer};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;
use std::net::IpAddr;

/// A service that a container offers on a port, by its `services.json`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// The container.
    pub container: String,
    /// What is spoken, such as `http`.
    pub r#type: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// The container's port.
    pub port: u16,
    /// The container's addresses; none while it is not attached.
    pub addresses: Vec<IpAddr>,
    /// The name in DNS that has these addresses; none while the container is not attached, or when the name is another's.
    pub dns_name: Option<String>,
    /// The name in DNS of its SRV record; none while the container is not attached, or when the name is another's.
    pub srv_name: Option<String>,
}

/// All services.
#[must_use]
pub fn services(snapshot: &Snapshot, zone: &Zone) -> Vec<ServiceView> {
    let view = |container: &ContainerName, offer: &Offer| {
        let attached = snapshot.container(container).and_then(|container| container.attached());
        let attachments = attached.iter().flat_map(|attached| &attached.record.attachments);
        let addresses = attachments.flat_map(|a| a.ipv4.map(IpAddr::from).into_iter().chain(a.ipv6.map(IpAddr::from)));
        let [dns_name, srv_name] = zone.names_of(container, offer);
        ServiceView {
            name: offer.name.clone(),
            container: container.to_string(),
            r#type: offer.kind.clone(),
            proto: offer.transport.to_string(),
            port: offer.port,
            addresses: addresses.collect(),
            dns_name,
            srv_name,
        }
    };
    let offers = snapshot.offers.iter().flat_map(|(container, offers)| offers.iter().map(move |o| (container, o)));
    offers.map(|(container, offer)| view(container, offer)).collect()
}
