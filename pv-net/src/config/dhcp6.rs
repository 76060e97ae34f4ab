//! DHCPv6 of a pool.

use super::checker::{Checker, join};
use super::{leases, net, raw};
use crate::model::{PoolDhcp6, Subnet6};
use std::net::Ipv6Addr;

/// With everything else that a reply has, so many fit into a packet of the smallest MTU.
const MOST_SERVERS: usize = 8;

/// The settings. Without a range, only containers get addresses.
pub(super) fn dhcp6(c: &mut Checker, path: &str, raw: &raw::Pool, subnet: Option<&Subnet6>) -> Option<PoolDhcp6> {
    let dhcp = c.section(path, &raw.dhcp6)?;
    let value = raw.dhcp6.as_ref().map(|f| &f.value);
    leases::on_bridge(c, path, raw, "DHCPv6 server");
    if raw.subnet6.is_none() {
        let help = Some("give the pool a \"subnet6\", or leave \"dhcp6\" out".to_owned());
        c.wrong(path, value, "the pool has no IPv6 addresses that could be leased", help);
    }
    let lease_secs = leases::lease_time(c, &join(path, "lease_time"), &dhcp.lease_time);
    let at = join(path, "ntp");
    let list = c.plain(&at, &dhcp.ntp).map(Vec::as_slice).unwrap_or_default();
    if list.len() > MOST_SERVERS {
        let why = format!("a reply has room for {MOST_SERVERS} servers, these are {}", list.len());
        c.wrong(&at, None, why, None);
    }
    let each = |(i, field): (usize, &super::field::Field<String>)| {
        c.text_with(&format!("{at}[{i}]"), &Some(field.clone()), net::ipv6)
    };
    let ntp = list.iter().enumerate().filter_map(each).collect();
    let unfit = |first, last| subnet.and_then(|subnet| unfit(first, last, subnet));
    // Without a network that is right there is nothing that a range could be in.
    let range = leases::range(c, &join(path, "range"), &dhcp.range, net::ipv6, unfit).filter(|_| subnet.is_some());
    let size = range.map_or(0, |(first, last)| (u128::from(last) - u128::from(first)).saturating_add(1));
    let at = join(path, "leases_per_port");
    let leases_per_port = leases::per_port(c, &at, &dhcp.leases_per_port, dhcp.range.is_some(), size);
    Some(PoolDhcp6 { range, leases_per_port, lease_secs, ntp })
}

/// Why a range does not fit the pool's network.
fn unfit(first: Ipv6Addr, last: Ipv6Addr, subnet: &Subnet6) -> Option<String> {
    Some(if !subnet.net.contains(first) || !subnet.net.contains(last) {
        format!("is not inside the subnet {}", subnet.net)
    } else if (first..=last).contains(&subnet.gateway) {
        format!("holds the gateway {}", subnet.gateway)
    } else if first == subnet.net.network() {
        format!("holds the subnet-router anycast address of {}", subnet.net)
    } else {
        return None;
    })
}
