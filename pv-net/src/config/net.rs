//! Parses networks and addresses, with errors that name the wrong part. Pure.

use ipnetwork::{Ipv4Network, Ipv6Network};
use std::net::{Ipv4Addr, Ipv6Addr};

fn split<'a>(text: &'a str, max: u8, example: &str) -> Result<(&'a str, u8), String> {
    let (addr, prefix) =
        text.split_once('/').ok_or_else(|| format!("a network has a prefix length, as in {example}"))?;
    let prefix: u8 = prefix
        .parse()
        .ok()
        .filter(|p| *p <= max)
        .ok_or_else(|| format!("{prefix:?} is not a prefix length from 0 to {max}"))?;
    Ok((addr, prefix))
}

/// Parses an IPv4 address; the error names the wrong part.
pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| {
        if text.contains(':') {
            return "this is IPv6, and IPv4 is wanted here".to_owned();
        }
        let parts: Vec<&str> = text.split('.').collect();
        let bad = parts.iter().find(|p| p.parse::<u8>().is_err() || (p.len() > 1 && p.starts_with('0')));
        match bad {
            Some(part) => format!("{part:?} is not a number from 0 to 255"),
            None => format!("an IPv4 address has four numbers, this has {}", parts.len()),
        }
    })
}

/// Parses an IPv6 address; the error names the wrong part.
pub(super) fn ipv6(text: &str) -> Result<Ipv6Addr, String> {
    text.parse().map_err(|_| {
        if text.contains('.') && !text.contains(':') {
            return "this is IPv4, and IPv6 is wanted here".to_owned();
        }
        let mut groups = text.split(':').filter(|g| !g.is_empty());
        if let Some(bad) = groups.clone().find(|g| !g.bytes().all(|b| b.is_ascii_hexdigit())) {
            return format!("{bad:?} is not hexadecimal");
        }
        if let Some(long) = groups.find(|g| g.len() > 4) {
            return format!("{long:?} has more than four digits");
        }
        if text.matches("::").count() > 1 || text.contains(":::") {
            return "\"::\" may stand only once".to_owned();
        }
        "an IPv6 address has eight groups, or fewer and \"::\"".to_owned()
    })
}

/// A pool's IPv4 network: private or public unicast, /30 or wider, no host bits.
pub(super) fn subnet4(text: &str) -> Result<Ipv4Network, String> {
    let (addr, prefix) = split(text, 32, "10.0.3.0/24")?;
    let net = Ipv4Network::new(ipv4(addr)?, prefix).map_err(|e| e.to_string())?;
    if net.network() != net.ip() {
        return Err(format!("has host bits set: the network is {}/{prefix}", net.network()));
    }
    if prefix > 30 {
        return Err(format!("a /{prefix} has no room for a gateway and a container: /30 is the smallest"));
    }
    if prefix < 8 {
        return Err(format!("a /{prefix} is too wide for a pool: /8 is the widest"));
    }
    let first = net.network();
    let what = if first.is_loopback() {
        "loopback"
    } else if first.is_multicast() || first.octets()[0] >= 240 {
        "not unicast"
    } else if first.is_link_local() {
        "link-local"
    } else if first.octets()[0] == 0 {
        "reserved"
    } else {
        return Ok(net);
    };
    Err(format!("is {what}: no pool can have it"))
}

/// A pool's IPv6 network: unique local or global unicast, /126 or wider, no host bits.
pub(super) fn subnet6(text: &str) -> Result<Ipv6Network, String> {
    let (addr, prefix) = split(text, 128, "fd00:5056::/64")?;
    let net = Ipv6Network::new(ipv6(addr)?, prefix).map_err(|e| e.to_string())?;
    if net.network() != net.ip() {
        return Err(format!("has host bits set: the network is {}/{prefix}", net.network()));
    }
    if prefix > 126 {
        return Err(format!("a /{prefix} has no room for a gateway and a container: /126 is the smallest"));
    }
    if prefix < 16 {
        return Err(format!("a /{prefix} is too wide for a pool: /16 is the widest"));
    }
    let first = net.network();
    let what = if first.is_multicast() {
        "multicast"
    } else if first.is_unicast_link_local() {
        "link-local"
    } else if first.segments()[0] == 0 {
        "reserved"
    } else {
        return Ok(net);
    };
    Err(format!("is {what}: no pool can have it"))
}

/// An IPv6 network that hosts are told a route to: unicast, no host bits, and not all of IPv6, which is the way out.
pub(super) fn route6(text: &str) -> Result<Ipv6Network, String> {
    let (addr, prefix) = split(text, 128, "fd00:5057::/48")?;
    let net = Ipv6Network::new(ipv6(addr)?, prefix).map_err(|e| e.to_string())?;
    let first = net.network();
    if first != net.ip() {
        return Err(format!("has host bits set: the network is {first}/{prefix}"));
    }
    let what = if prefix == 0 {
        "all of IPv6, which \"lifetime\" is about"
    } else if first.is_multicast() {
        "multicast"
    } else if first.is_unicast_link_local() {
        "link-local"
    } else {
        return Ok(net);
    };
    Err(format!("is {what}: no route leads there"))
}

/// A time such as `90s`, `10m`, `1h` or `2d`, in seconds.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let bad = || "a time is a number and s, m, h or d, as in 1h".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number = &text[..text.len() - 1];
    let number: u32 = number.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
    number.checked_mul(scale).ok_or_else(|| "is longer than pv-net can count".to_owned())
}
