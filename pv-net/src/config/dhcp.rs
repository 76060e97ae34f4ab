//! DHCP of a pool.

use super::checker::{Checker, join};
use super::field::Field;
use super::{leases, net, raw};
use crate::model::{PoolDhcp, Subnet4};
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Octets of an option (RFC 2132 section 2).
const LONGEST: usize = 255;
/// Some 20 are what a message of 576 octets has room for.
const MOST_ROUTES: usize = 20;

/// Options that are not free: what each is, and the setting that it is set by.
const OWN: &[(u8, &str, Option<&str>)] = &[
    (0, "padding", None),
    (1, "the subnet mask", None),
    (3, "the gateway", Some("gateway")),
    (6, "the DNS servers", Some("dns")),
    (12, "the client's name", None),
    (15, "the domain", None),
    (26, "the MTU", Some("mtu")),
    (28, "the broadcast address", None),
    (42, "the time servers", Some("dhcp.ntp")),
    (50, "the address asked for", None),
    (51, "the lease time", Some("dhcp.lease_time")),
    (52, "about the message itself", None),
    (53, "the message's type", None),
    (54, "the server", None),
    (55, "the list of what is asked for", None),
    (56, "a message to people", None),
    (57, "about the message itself", None),
    (58, "the time of renewal", Some("dhcp.lease_time")),
    (59, "the time of rebinding", Some("dhcp.lease_time")),
    (61, "the client", None),
    (82, "a relay agent's", None),
    (114, "the captive portal", Some("dhcp.captive_portal")),
    (119, "the search domains", None),
    (121, "the routes", Some("dhcp.routes")),
    (255, "the end of the message", None),
];

/// What the pool's gateway tells clients, and which addresses are theirs.
pub(super) fn dhcp(
    c: &mut Checker,
    path: &str,
    raw: &raw::Pool,
    subnet: Option<&Subnet4>,
) -> (Option<PoolDhcp>, Option<(Ipv4Addr, Ipv4Addr)>) {
    let Some(dhcp) = c.section(path, &raw.dhcp) else { return (None, None) };
    if raw.subnet.is_none() {
        let help = "give the pool a \"subnet\", or leave \"dhcp\" out".to_owned();
        c.wrong(path, None, "the pool has no IPv4 addresses that could be leased", Some(help));
    }
    leases::on_bridge(c, path, raw, "DHCP server");
    let unfit = |first, last| subnet.and_then(|subnet| unfit(first, last, subnet));
    // Without a network that is right there is nothing that a range could be in.
    let range = leases::range(c, &join(path, "range"), &dhcp.range, net::ipv4, unfit).filter(|_| subnet.is_some());
    let size = range.map_or(0, |(first, last)| u128::from(u32::from(last) - u32::from(first)) + 1);
    let per_port = join(path, "leases_per_port");
    let settings = PoolDhcp {
        lease_time: leases::lease_time(c, &join(path, "lease_time"), &dhcp.lease_time),
        leases_per_port: leases::per_port(c, &per_port, &dhcp.leases_per_port, dhcp.range.is_some(), size),
        ntp: addresses(c, &join(path, "ntp"), &dhcp.ntp),
        routes: routes(c, &join(path, "routes"), &dhcp.routes, subnet),
        captive_portal: c.text_with(&join(path, "captive_portal"), &dhcp.captive_portal, portal),
        options: options(c, &join(path, "options"), &dhcp.options),
    };
    (Some(settings), range)
}

/// Why a range does not fit the pool's network.
fn unfit(first: Ipv4Addr, last: Ipv4Addr, subnet: &Subnet4) -> Option<String> {
    Some(if !subnet.net.contains(first) || !subnet.net.contains(last) {
        format!("is not inside the subnet {}", subnet.net)
    } else if (first..=last).contains(&subnet.gateway) {
        format!("holds the gateway {}", subnet.gateway)
    } else if first == subnet.net.network() || last == subnet.net.broadcast() {
        format!("holds the network or broadcast address of {}", subnet.net)
    } else {
        return None;
    })
}

fn addresses(c: &mut Checker, path: &str, field: &Option<Field<Vec<Field<String>>>>) -> Vec<Ipv4Addr> {
    let list = c.plain(path, field).map(Vec::as_slice).unwrap_or_default();
    if list.len() * 4 > LONGEST {
        c.wrong(path, None, format!("has more than {} addresses", LONGEST / 4), None);
    }
    let each =
        |(i, field): (usize, &Field<String>)| c.text_with(&format!("{path}[{i}]"), &Some(field.clone()), net::ipv4);
    list.iter().enumerate().filter_map(each).collect()
}

fn routes(
    c: &mut Checker,
    path: &str,
    field: &Option<Field<BTreeMap<String, Field<String>>>>,
    subnet: Option<&Subnet4>,
) -> Vec<(Ipv4Network, Ipv4Addr)> {
    let mut routes = Vec::new();
    let all = c.plain(path, field);
    if all.is_some_and(|all| all.len() > MOST_ROUTES) {
        c.wrong(path, None, format!("has more than {MOST_ROUTES} routes"), None);
    }
    for (to, field) in all.into_iter().flatten() {
        let path = join(path, to);
        let via = |text: &str| {
            let via = net::ipv4(text)?;
            match subnet {
                Some(subnet) if !subnet.net.contains(via) => Err(format!("is not inside the subnet {}", subnet.net)),
                _ => Ok(via),
            }
        };
        let via = c.text_with(&path, &Some(field.clone()), via);
        match network(to) {
            Ok(to) => routes.extend(via.map(|via| (to, via))),
            Err(why) => c.wrong(&path, None, why, None),
        }
    }
    routes
}

/// Where a route leads.
fn network(text: &str) -> Result<Ipv4Network, String> {
    let bad = || format!("{text:?} is no network, such as 10.9.0.0/16");
    let (_, prefix) = text.split_once('/').ok_or_else(bad)?;
    let net: Ipv4Network = text.parse().map_err(|_| bad())?;
    if net.network() == net.ip() && prefix == net.prefix().to_string() {
        Ok(net)
    } else {
        Err(format!("has host bits set: the network is {}/{}", net.network(), net.prefix()))
    }
}

/// RFC 8910 section 2: a URI, and only https lets a client know who answers.
fn portal(text: &str) -> Result<String, String> {
    let is_uri = text
        .strip_prefix("https://")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()));
    if !is_uri {
        return Err("is no address of an API, such as https://portal.example/api".to_owned());
    }
    if text.len() > LONGEST {
        return Err(format!("an option has at most {LONGEST} octets"));
    }
    Ok(text.to_owned())
}

fn options(
    c: &mut Checker,
    path: &str,
    field: &Option<Field<BTreeMap<String, Field<raw::DhcpOption>>>>,
) -> BTreeMap<u8, Vec<u8>> {
    let mut options = BTreeMap::new();
    for (number, field) in c.plain(path, field).into_iter().flatten() {
        let path = join(path, number);
        let Some(option) = c.plain(&path, &Some(field.clone())).map(octets) else { continue };
        let code = match number.parse::<u8>() {
            Ok(code) if code.to_string() == *number => code,
            _ => {
                c.wrong(&path, None, format!("{number:?} is no option's number, 1 to 254"), None);
                continue;
            }
        };
        if let Some((_, what, setting)) = OWN.iter().find(|(own, ..)| *own == code) {
            let help = match setting {
                Some(setting) => format!("it is set by \"{setting}\" of the pool"),
                None => "pv-net sets it itself: leave it out".to_owned(),
            };
            c.wrong(&path, None, format!("option {code} is {what}"), Some(help));
            continue;
        }
        match option {
            Ok(octets) => drop(options.insert(code, octets)),
            Err(why) => c.wrong(&path, Some(&field.value), why, None),
        }
    }
    options
}

/// The octets of an option.
fn octets(option: &raw::DhcpOption) -> Result<Vec<u8>, String> {
    let octets = match option {
        raw::DhcpOption::Text(text) => match text.strip_prefix("hex:") {
            Some(digits) => hexadecimal(digits)?,
            None => text.as_bytes().to_vec(),
        },
        raw::DhcpOption::Addresses(list) => {
            let octets: Result<Vec<_>, _> = list.iter().map(|text| net::ipv4(text).map(|a| a.octets())).collect();
            octets?.concat()
        }
    };
    if (1..=LONGEST).contains(&octets.len()) {
        Ok(octets)
    } else {
        Err(format!("has {} octets: an option has 1 to {LONGEST}", octets.len()))
    }
}

fn hexadecimal(digits: &str) -> Result<Vec<u8>, String> {
    let pair = |pair: &[u8]| match pair {
        [high, low] => {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
            Some(digit(*high)? << 4 | digit(*low)?)
        }
        _ => None,
    };
    let octets: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(pair).collect();
    octets.ok_or_else(|| "behind hex: stand hexadecimal digits, two an octet, as in hex:0104".to_owned())
}
