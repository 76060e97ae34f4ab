//! Checks what is valid by itself but conflicts with the device.

use super::ConfigError;
use super::checker::{Checker, join};
use super::device::overlap;
use crate::ipam::{Ipam, IpamError, LeaseKey, Request};
use crate::model::{Container, Device, IfName, Interface, Pool, PoolIpam, PoolName, Selector};
use ipnetwork::IpNetwork;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Checks a container against the device: its pools exist, and its requested addresses are in them.
#[must_use]
pub fn check_container(file: &str, container: &Container, device: &Device) -> Vec<ConfigError> {
    let mut c = Checker::new(file);
    for (i, interface) in container.interfaces.iter().enumerate() {
        let path = format!("network.interfaces[{i}]");
        let Some(pool) = device.pools.get(&interface.pool) else {
            no_such_pool(&mut c, &join(&path, "pool"), &interface.pool, device);
            continue;
        };
        if let Some(mac) = interface.mac.filter(|_| pool.shares_mac()) {
            let why = format!("pool {} is an ipvlan: its interfaces have the MAC of their parent", pool.name);
            let help = Some("leave it out, or use a pool of type macvlan".to_owned());
            c.wrong(&join(&path, "mac_address"), Some(&Value::from(mac.to_string())), why, help);
        }
        let key = LeaseKey {
            pool: interface.pool.clone(),
            container: container.name.clone(),
            interface: interface.name.clone(),
        };
        // Each family is checked by itself, without other leases, so that only conflicts with the pool are found.
        for (ipv4, ipv6) in [(interface.ipv4, None), (None, interface.ipv6)] {
            let Some(addr) = ipv4.map(Into::into).or(ipv6.map(std::net::IpAddr::from)) else { continue };
            if pool.ipam == PoolIpam::Dhcp {
                let key = if addr.is_ipv6() { "ipv6_address" } else { "ipv4_address" };
                let why = format!("pool {} leaves addresses to its parent's network (\"ipam\": \"dhcp\")", pool.name);
                let help = "leave it out, and reserve the address at that network's DHCP server, by \"mac_address\"";
                c.wrong(&join(&path, key), Some(&Value::from(addr.to_string())), why, Some(help.to_owned()));
                continue;
            }
            let request = Request { key: &key, ipv4, ipv6, mac: None };
            let why = match Ipam::new().assign(pool, &request) {
                Ok(_) | Err(IpamError::PoolFull { .. }) => continue,
                Err(e) => e.to_string(),
            };
            let key = if addr.is_ipv6() { "ipv6_address" } else { "ipv4_address" };
            let text = addr.to_string();
            let why = why.strip_prefix(&format!("{text}: ")).unwrap_or(&why).to_owned();
            let help = Some("choose another, or leave it out to be given one".to_owned());
            c.wrong(&join(&path, key), Some(&Value::from(text)), why, help);
        }
    }
    for (i, mapping) in container.ports.iter().enumerate() {
        let Some(host) = mapping.host else { continue };
        let of = container.interfaces.iter().filter(|i| mapping.interface.as_ref().is_none_or(|name| i.name == *name));
        let pools: Vec<_> = of.filter_map(|interface| device.pools.get(&interface.pool)).collect();
        let has = |pool: &Pool| match host {
            _ if pool.ipam == PoolIpam::Dhcp => true,
            IpAddr::V4(_) => pool.v4.is_some(),
            IpAddr::V6(_) => pool.v6.is_some(),
        };
        if !pools.is_empty() && !pools.iter().any(|pool| has(pool)) {
            let family = if host.is_ipv4() { "IPv4" } else { "IPv6" };
            let why = format!("the container has no {family}, so the port would lead nowhere");
            let help = Some("leave the address out, or put the container into a pool with that family".to_owned());
            c.wrong(&format!("network.ports[{i}]"), Some(&Value::from(mapping.to_string())), why, help);
        }
    }
    let peers = container.sockets.iter().flat_map(|sockets| sockets.connect.iter().enumerate());
    for (i, peer) in peers {
        if let Selector::Pool(pool) = &peer.to
            && !device.pools.contains_key(pool)
        {
            no_such_pool(&mut c, &format!("network.sockets.connect[{i}].to.pool"), pool, device);
        }
    }
    direct_ports(&mut c, container, device);
    c.errors
}

fn no_such_pool(c: &mut Checker, path: &str, pool: &PoolName, device: &Device) {
    let names: Vec<&str> = device.pools.keys().map(PoolName::as_str).collect();
    let help = if names.is_empty() {
        "the device has no pools: declare them in device.json under network.pools".to_owned()
    } else {
        format!("the pools are {}", names.join(", "))
    };
    c.wrong(path, Some(&Value::from(pool.as_str())), "no such pool", Some(help));
}

/// Checks prefix lengths that stand behind the IPv4 addresses of a container's interfaces, by the interfaces' places:
/// each must be that of the pool, since pv-net gives the address no other.
#[must_use]
pub fn check_prefix_lengths(
    file: &str,
    lengths: &BTreeMap<usize, u8>,
    container: &Container,
    device: &Device,
) -> Vec<ConfigError> {
    let mut c = Checker::new(file);
    for (i, bits) in lengths {
        let Some(interface) = container.interfaces.get(*i) else { continue };
        let subnet = device.pools.get(&interface.pool).and_then(|pool| pool.v4.as_ref());
        let (Some(address), Some(subnet)) = (interface.ipv4, subnet) else { continue };
        if *bits != subnet.net.prefix() {
            let path = format!("network.interfaces[{i}].ipv4_address");
            let why = format!("the subnet of pool {} is {}", interface.pool, subnet.net);
            let help = format!("write {address}/{}, or {address} alone", subnet.net.prefix());
            c.wrong(&path, Some(&Value::from(format!("{address}/{bits}"))), why, Some(help));
        }
    }
    c.errors
}

/// Checks published ports that lead to a macvlan or ipvlan interface: the outside reaches its own address, so nothing can be
/// translated.
fn direct_ports(c: &mut Checker, container: &Container, device: &Device) {
    for (i, mapping) in container.ports.iter().enumerate() {
        let leads_to = |interface: &&Interface| match &mapping.interface {
            Some(name) => interface.name == *name,
            None => interface.default_route == Some(true) || container.interfaces.len() == 1,
        };
        let interface = container.interfaces.iter().find(leads_to).or(container.interfaces.first());
        let Some(pool) = interface.and_then(|interface| device.pools.get(&interface.pool)) else { continue };
        if pool.parent().is_none() {
            continue;
        }
        let kind = pool.type_name();
        let path = format!("network.ports[{i}]");
        let value = Value::from(mapping.to_string());
        if *mapping.host_ports.start() != mapping.container_port {
            let why = format!("pool {} is of type {kind}: the outside reaches the container's own address", pool.name);
            let help = Some("publish the port that the container listens on, with no other in front".to_owned());
            c.wrong(&path, Some(&value), why, help);
        }
        if mapping.host.is_some() {
            let why =
                format!("pool {} is of type {kind}: its ports are published on no address of the device", pool.name);
            c.wrong(&path, Some(&value), why, Some("leave the address out".to_owned()));
        }
    }
}

/// Checks that no pool overlaps the network of an uplink.
#[must_use]
pub fn check_uplinks(file: &str, device: &Device, uplinks: &[(IfName, IpNetwork)]) -> Vec<ConfigError> {
    let mut c = Checker::new(file);
    for pool in device.pools.values() {
        for net in pool.own_networks() {
            if let Some((uplink, other)) = uplinks.iter().find(|(_, other)| overlap(net, *other)) {
                let key = if net.is_ipv6() { "subnet6" } else { "subnet" };
                let path = join(&join("network.pools", pool.name.as_str()), key);
                let why = format!("overlaps {} of uplink {uplink}", network_of(*other));
                c.wrong(&path, Some(&Value::from(net.to_string())), why, Some("choose another subnet".to_owned()));
            }
        }
    }
    c.errors
}

fn network_of(net: IpNetwork) -> String {
    format!("{}/{}", net.network(), net.prefix())
}
