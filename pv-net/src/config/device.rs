//! Checks `device.json`.

use super::checker::{Checker, join};
use super::dhcp::dhcp;
use super::dhcp6::dhcp6;
use super::dns::{ca_file, dns, on_device};
use super::field::Field;
use super::{ConfigError, net, policy, ra, raw, timeouts, uplink_filter};
use crate::model::{
    Device, IfName, IpvlanMode, MacvlanMode, PairKind, Pool, PoolIpam, PoolKind, PoolName, Subnet4, Subnet6,
};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use pv_net_common::flow::{DEFAULT_FLOWS, DEFAULT_SHARE};
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const DEFAULT_DOMAIN: &str = "pv.local";
const FLOW_TABLE: std::ops::RangeInclusive<u32> = 1024..=1_048_576;
/// Least MTU of IPv6 links, bytes (RFC 8200 section 5).
const MIN_MTU_IPV6: u32 = 1280;
/// Least MTU of IPv4 links, bytes (RFC 791).
const MIN_MTU: u32 = 68;
const MAX_MTU: u32 = 65_535;

/// Parses and checks a `device.json`. `file` is its name for errors.
///
/// # Errors
/// Every error of the file.
pub fn parse_device(file: &str, text: &str) -> Result<Device, Vec<ConfigError>> {
    let mut c = Checker::new(file);
    let device = c.file::<raw::Device>(text).map(|raw| check(&mut c, &raw));
    match device {
        Some(device) if c.errors.is_empty() => Ok(device),
        _ => Err(c.errors),
    }
}

fn check(c: &mut Checker, raw: &raw::Device) -> Device {
    let mut device = Device { domain: DEFAULT_DOMAIN.to_owned(), flow_table: DEFAULT_FLOWS, ..Device::default() };
    if let Some(list) = c.plain("ingress", &raw.ingress) {
        ingress(c, list);
        if !list.is_empty() {
            device.inactive.push("ingress".to_owned());
        }
    }
    let Some(network) = c.section("network", &raw.network) else { return device };
    if let Some(raw::Backend::Cni) = c.plain("network.backend", &network.backend) {
        device.inactive.push("network.backend".to_owned());
    }
    c.plain("network.cni_path", &network.cni_path);
    if let Some(domain) = c.text_with("network.domain", &network.domain, domain) {
        device.domain = domain;
    }
    device.dns_on_device = on_device(c, network);
    device.dns_ca_file = ca_file(c, network);
    device.uplinks = uplinks(c, network);
    if let Some(entries) = c.plain("network.flow_table", &network.flow_table) {
        device.flow_table = *entries;
        if !FLOW_TABLE.contains(entries) {
            let why = format!("the flow table has {} to {} entries", FLOW_TABLE.start(), FLOW_TABLE.end());
            c.wrong("network.flow_table", Some(&Value::from(*entries)), why, None);
        }
    }
    device.flow_timeouts = timeouts::check(c, "network.flow_timeouts", &network.flow_timeouts);
    device.uplink_filter = uplink_filter::check(c, "network.uplink_filter", &network.uplink_filter);
    if let Some(pools) = c.plain("network.pools", &network.pools) {
        for (name, field) in pools {
            let path = join("network.pools", name);
            match name.parse::<PoolName>() {
                Ok(name) => {
                    if let Some(mut pool) = pool(c, &path, &name, field, &mut device.inactive) {
                        pool.max_flows = max_flows(c, &join(&path, "max_flows"), pool.max_flows, device.flow_table);
                        device.pools.insert(name, pool);
                    }
                }
                Err(e) => c.wrong(&path, None, e.to_string(), None),
            }
        }
    }
    conflicts(c, &device);
    if let Some(policies) = c.plain("network.policies", &network.policies) {
        let declared = network.pools.as_ref().and_then(|p| p.parsed.as_ref().ok()).cloned().unwrap_or_default();
        device.policies = policy::rules(c, policies, &declared, &device.pools);
    }
    device
}

/// Checks a domain name (RFC 1035 section 2.3.1); RFC 1123 allows digits at the beginning of labels.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.len() > 253 {
        return Err("a domain has at most 253 characters".to_owned());
    }
    match text.split('.').find(|l| !label(l)) {
        None => Ok(text.to_ascii_lowercase()),
        Some(bad) => Err(format!("{bad:?} is not a label: 1 to 63 letters, digits and dashes, a dash not at its ends")),
    }
}

fn uplinks(c: &mut Checker, network: &raw::Network) -> Vec<IfName> {
    let mut names: Vec<IfName> = Vec::new();
    let list = c.plain("network.uplinks", &network.uplinks).cloned().unwrap_or_default();
    for (i, field) in list.into_iter().enumerate() {
        let path = format!("network.uplinks[{i}]");
        if let Some(name) = c.text::<IfName>(&path, &Some(field)) {
            if names.contains(&name) {
                c.wrong(&path, Some(&Value::from(name.as_str())), "stands twice in the list", None);
            }
            names.push(name);
        }
    }
    names
}

fn pool(
    c: &mut Checker,
    path: &str,
    name: &PoolName,
    field: &Field<raw::Pool>,
    inactive: &mut Vec<String>,
) -> Option<Pool> {
    let field = Some(field.clone());
    let raw = c.section(path, &field)?;
    let before = c.errors.len();
    let v4 = c.text_with(&join(path, "subnet"), &raw.subnet, net::subnet4);
    let v6 = c.text_with(&join(path, "subnet6"), &raw.subnet6, net::subnet6);
    let asks = raw.ipam.as_ref().is_some_and(|ipam| matches!(ipam.parsed, Ok(PoolIpam::Dhcp)));
    if raw.subnet.is_none() && raw.subnet6.is_none() && !asks {
        let help = Some("give it \"subnet\", \"subnet6\" or both".to_owned());
        c.wrong(path, None, "the pool has no addresses", help);
    }
    let gateway4 = gateway(c, path, "gateway", &raw.gateway, v4, raw.subnet.is_some(), net::ipv4, gateway4);
    let gateway6 = gateway(c, path, "gateway6", &raw.gateway6, v6, raw.subnet6.is_some(), net::ipv6, gateway6);
    let v4 = v4.zip(gateway4).map(|(net, gateway)| Subnet4 { net, gateway, dhcp_range: None });
    let v6 = v6.zip(gateway6).map(|(net, gateway)| Subnet6 { net, gateway });
    let (dhcp, dhcp_range) = dhcp(c, &join(path, "dhcp"), raw, v4.as_ref());
    let v4 = v4.map(|s| Subnet4 { dhcp_range, ..s });
    let dhcp6 = dhcp6(c, &join(path, "dhcp6"), raw, v6.as_ref());
    let kind = kind(c, path, name, raw);
    let ipam = c.plain(&join(path, "ipam"), &raw.ipam).copied().unwrap_or_default();
    if ipam == PoolIpam::Dhcp {
        by_network(c, path, raw);
    }
    let link = link(c, path, raw);
    let dns = dns(c, &join(path, "dns"), raw);
    let ra = ra::check(c, &join(path, "ra"), raw, v6.as_ref());
    let mtu = mtu(c, &join(path, "mtu"), raw);
    let nat = c.plain(&join(path, "nat"), &raw.nat).copied().unwrap_or(false);
    let big_tcp = c.plain(&join(path, "big_tcp"), &raw.big_tcp).copied().unwrap_or(!nat);
    let isolated = c.plain(&join(path, "isolated"), &raw.isolated).copied().unwrap_or(true);
    let annotations = c.plain(&join(path, "annotations"), &raw.annotations).copied().unwrap_or(false);
    let host_access = c.plain(&join(path, "host_access"), &raw.host_access).copied().unwrap_or_default();
    let max_flows = c.plain(&join(path, "max_flows"), &raw.max_flows).copied();
    let is_bridge = matches!(kind, Some(PoolKind::Bridge { .. }) | None);
    let no_dns = dns.is_some() && raw.dns.is_some() && !is_bridge;
    let no_limit = !is_bridge && max_flows.is_some();
    let max_flows = max_flows.unwrap_or_default();
    let unused = [(no_dns, "dns"), (no_limit, "max_flows"), (!is_bridge && nat, "nat")];
    for (used, key) in unused {
        if used {
            inactive.push(join(path, key));
        }
    }
    let kind = kind?;
    (c.errors.len() == before).then(|| Pool {
        name: name.clone(),
        kind,
        ipam,
        v4,
        v6,
        nat,
        link,
        mtu,
        big_tcp,
        isolated,
        annotations,
        host_access,
        max_flows,
        dns: dns.filter(|_| is_bridge).map(Arc::new),
        ra: ra.map(Arc::new),
        dhcp: dhcp.filter(|_| is_bridge).map(Arc::new),
        dhcp6: dhcp6.map(Arc::new),
    })
}

/// `given`, or the default share of the flow table. A flow takes two entries.
fn max_flows(c: &mut Checker, path: &str, given: u32, flow_table: u32) -> u32 {
    if given > flow_table / 2 {
        let why = format!("the flow table of {flow_table} entries has room for {} flows", flow_table / 2);
        let help = Some("raise \"network.flow_table\", two entries for each flow".to_owned());
        c.wrong(path, Some(&Value::from(given)), why, help);
    }
    if given == 0 { flow_table / DEFAULT_SHARE / 2 } else { given }
}

/// The gateway at `key`, or the first address of `net`.
#[expect(clippy::too_many_arguments, reason = "one call a family, and they differ in every one of these")]
fn gateway<N: Copy, A: Copy>(
    c: &mut Checker,
    path: &str,
    key: &str,
    field: &Option<Field<String>>,
    net: Option<N>,
    has_subnet: bool,
    parse: fn(&str) -> Result<A, String>,
    check: fn(N, Option<A>) -> Result<A, String>,
) -> Option<A> {
    let path = join(path, key);
    let given = match field {
        Some(_) => Some(c.text_with(&path, field, parse)?),
        None => None,
    };
    let value = field.as_ref().map(|f| &f.value);
    let Some(net) = net else {
        if !has_subnet && let Some(value) = value {
            c.wrong(&path, Some(value), format!("there is no sub{} that it is the gateway of", subnet_key(key)), None);
        }
        return None;
    };
    match check(net, given) {
        Ok(addr) => Some(addr),
        Err(why) => {
            c.wrong(&path, value, why, None);
            None
        }
    }
}

fn subnet_key(key: &str) -> &'static str {
    if key == "gateway6" { "net6" } else { "net" }
}

fn gateway4(net: Ipv4Network, given: Option<Ipv4Addr>) -> Result<Ipv4Addr, String> {
    let addr = given.unwrap_or_else(|| Ipv4Addr::from(u32::from(net.network()) + 1));
    if !net.contains(addr) {
        Err(format!("is outside the subnet {net}"))
    } else if addr == net.network() {
        Err(format!("is the network address of {net}"))
    } else if addr == net.broadcast() {
        Err(format!("is the broadcast address of {net}"))
    } else {
        Ok(addr)
    }
}

fn gateway6(net: Ipv6Network, given: Option<Ipv6Addr>) -> Result<Ipv6Addr, String> {
    let addr = given.unwrap_or_else(|| Ipv6Addr::from(u128::from(net.network()) + 1));
    if !net.contains(addr) {
        Err(format!("is outside the subnet {net}"))
    } else if addr == net.network() {
        Err(format!("is the subnet-router anycast address of {net}"))
    } else {
        Ok(addr)
    }
}

fn kind(c: &mut Checker, path: &str, name: &PoolName, raw: &raw::Pool) -> Option<PoolKind> {
    let kind = c.plain(&join(path, "type"), &raw.r#type).copied();
    let kind = if raw.r#type.is_some() { kind? } else { raw::PoolType::Bridge };
    if kind == raw::PoolType::Bridge {
        for (key, field) in [("parent", &raw.parent), ("mode", &raw.mode)] {
            if let Some(field) = field {
                c.wrong(&join(path, key), Some(&field.value), "a pool of type bridge has none", None);
            }
        }
        let bridge = join(path, "bridge");
        return match &raw.bridge {
            Some(_) => c.text::<IfName>(&bridge, &raw.bridge),
            None => match format!("pv-{name}").parse::<IfName>() {
                Ok(name) => Some(name),
                Err(e) => {
                    let help = Some("name the bridge with \"bridge\"".to_owned());
                    c.wrong(&bridge, None, format!("\"pv-{name}\" cannot be its bridge's name: {e}"), help);
                    None
                }
            },
        }
        .map(|bridge| PoolKind::Bridge { bridge });
    }
    for (key, value) in
        [("bridge", raw.bridge.as_ref().map(|f| &f.value)), ("link", raw.link.as_ref().map(|f| &f.value))]
    {
        if let Some(value) = value {
            c.wrong(&join(path, key), Some(value), "only a pool of type bridge has one", None);
        }
    }
    if raw.parent.is_none() {
        let help = Some("name the link that its interfaces sit on with \"parent\"".to_owned());
        c.wrong(path, None, "the pool has no parent", help);
    }
    let parent = c.text::<IfName>(&join(path, "parent"), &raw.parent);
    let mode = join(path, "mode");
    if kind == raw::PoolType::Macvlan {
        let mode = match &raw.mode {
            Some(_) => c.text_with(&mode, &raw.mode, macvlan_mode)?,
            None => MacvlanMode::Bridge,
        };
        Some(PoolKind::Macvlan { parent: parent?, mode })
    } else {
        let mode = match &raw.mode {
            Some(_) => c.text_with(&mode, &raw.mode, ipvlan_mode)?,
            None => IpvlanMode::L2,
        };
        Some(PoolKind::Ipvlan { parent: parent?, mode })
    }
}

/// Notes what a pool cannot have whose addresses the parent's network chooses.
fn by_network(c: &mut Checker, path: &str, raw: &raw::Pool) {
    let value = raw.ipam.as_ref().map(|ipam| &ipam.value);
    let kind = raw.r#type.as_ref().and_then(|kind| kind.parsed.as_ref().ok());
    let why = match kind {
        Some(raw::PoolType::Macvlan) => None,
        Some(raw::PoolType::Ipvlan) => Some(
            "only a pool of type macvlan can leave addresses to its parent's network: ipvlan interfaces have the device's \
             MAC, by which a DHCP server would take them for the device",
        ),
        Some(raw::PoolType::Bridge) | None => {
            Some("only a pool of type macvlan can leave addresses to its parent's network")
        }
    };
    if let Some(why) = why {
        let help = Some("leave it out, and give the pool a \"subnet\"".to_owned());
        c.wrong(&join(path, "ipam"), value, why, help);
    }
    let keys =
        [("subnet", &raw.subnet), ("subnet6", &raw.subnet6), ("gateway", &raw.gateway), ("gateway6", &raw.gateway6)];
    for (key, field) in keys {
        if let Some(field) = field {
            let help = Some("leave it out, or leave out \"ipam\" and choose the addresses here".to_owned());
            c.wrong(&join(path, key), Some(&field.value), "the parent's network says this (\"ipam\": \"dhcp\")", help);
        }
    }
}

fn link(c: &mut Checker, path: &str, raw: &raw::Pool) -> PairKind {
    match c.plain(&join(path, "link"), &raw.link).copied().unwrap_or_default() {
        // Netkit was not measured to be better.
        raw::LinkChoice::Auto | raw::LinkChoice::Veth => PairKind::Veth,
        raw::LinkChoice::Netkit => PairKind::Netkit,
    }
}

fn macvlan_mode(text: &str) -> Result<MacvlanMode, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "the modes of macvlan are bridge, private, vepa, passthru".to_owned())
}

fn ipvlan_mode(text: &str) -> Result<IpvlanMode, String> {
    serde_json::from_value(text.into()).map_err(|_| "the modes of ipvlan are l2, l3, l3s".to_owned())
}

fn mtu(c: &mut Checker, path: &str, raw: &raw::Pool) -> Option<u32> {
    let mtu = *c.plain(path, &raw.mtu)?;
    let least = if raw.subnet6.is_some() { MIN_MTU_IPV6 } else { MIN_MTU };
    if !(least..=MAX_MTU).contains(&mtu) {
        let why = format!("the MTU of this pool is {least} to {MAX_MTU} bytes");
        c.wrong(path, Some(&Value::from(mtu)), why, None);
        return None;
    }
    Some(mtu)
}

/// Adds errors for what two pools must not share.
fn conflicts(c: &mut Checker, device: &Device) {
    let pools: Vec<&Pool> = device.pools.values().collect();
    for (i, a) in pools.iter().enumerate() {
        for b in &pools[i + 1..] {
            for (x, y) in a.networks().flat_map(|x| b.networks().map(move |y| (x, y))) {
                if overlap(x, y) {
                    let key = if y.is_ipv6() { "subnet6" } else { "subnet" };
                    let path = join(&join("network.pools", b.name.as_str()), key);
                    let why = format!("overlaps {x} of pool {}", a.name);
                    let help = Some("choose another subnet: pools share no address".to_owned());
                    c.wrong(&path, Some(&Value::from(y.to_string())), why, help);
                }
            }
            if let (Some(x), Some(y)) = (a.parent(), b.parent())
                && x == y
                && a.type_name() != b.type_name()
            {
                let path = join(&join("network.pools", b.name.as_str()), "parent");
                let why = format!("is the parent of pool {}, of type {}", a.name, a.type_name());
                let help = Some("choose another parent, or the same type: a link carries one kind only".to_owned());
                c.wrong(&path, Some(&Value::from(y.as_str())), why, help);
            }
            if let (Some(x), Some(y)) = (a.bridge(), b.bridge())
                && x == y
            {
                let path = join(&join("network.pools", b.name.as_str()), "bridge");
                c.wrong(&path, Some(&Value::from(y.as_str())), format!("is the bridge of pool {}", a.name), None);
            }
        }
        if let Some(bridge) = a.bridge()
            && device.uplinks.contains(bridge)
        {
            let path = join(&join("network.pools", a.name.as_str()), "bridge");
            c.wrong(&path, Some(&Value::from(bridge.as_str())), "is an uplink", None);
        }
    }
}

/// Whether two networks share an address.
pub(super) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv6() == b.is_ipv6() && (a.contains(b.network()) || b.contains(a.network()))
}

fn ingress(c: &mut Checker, list: &[Field<raw::Ingress>]) {
    for (i, field) in list.iter().enumerate() {
        let path = format!("ingress[{i}]");
        let field = Some(field.clone());
        let Some(raw) = c.section(&path, &field) else { continue };
        c.plain(&join(&path, "type"), &raw.r#type);
        for (key, field) in
            [("name", &raw.name), ("external", &raw.external), ("provider", &raw.provider), ("service", &raw.service)]
        {
            if field.is_none() {
                c.wrong(&path, None, format!("has no {key:?}"), None);
            }
            c.plain(&join(&path, key), field);
        }
    }
}
