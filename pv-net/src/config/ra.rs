//! Router advertisements of a pool.

use super::checker::{Checker, join};
use super::{leases, net, raw};
use crate::model::{PoolRa, RaMode, Subnet6};
use ipnetwork::Ipv6Network;
use serde_json::Value;
use std::ops::RangeInclusive;

/// Three times the least and the most that may be between two advertisements (RFC 4861 section 6.2.1); the latter of
/// the lifetime itself.
const LIFETIMES: RangeInclusive<u32> = 12..=9000;
/// RFC 4861 section 6.2.1: three times ten minutes.
const DEFAULT_LIFETIME: u16 = 1800;
/// With all else that an advertisement has, these fit into the smallest MTU of IPv6.
const MOST_ROUTES: usize = 16;
/// Hosts make the other half of the address (RFC 4862 section 5.5.3, RFC 2464 section 4).
const SLAAC_PREFIX: u8 = 64;

/// What the pool advertises; `None` where it advertises nothing.
pub(super) fn check(c: &mut Checker, path: &str, raw: &raw::Pool, subnet: Option<&Subnet6>) -> Option<PoolRa> {
    let ra = c.section(path, &raw.ra)?;
    let value = raw.ra.as_ref().map(|f| &f.value);
    leases::on_bridge(c, path, raw, "router");
    if raw.subnet6.is_none() {
        let help = Some("give the pool a \"subnet6\", or leave \"ra\" out".to_owned());
        c.wrong(path, value, "there is no subnet6 to advertise", help);
    }
    let at = join(path, "mode");
    let mode = if ra.mode.is_some() { *c.plain(&at, &ra.mode)? } else { RaMode::Slaac };
    if let Some(subnet) = subnet.filter(|s| mode.is_autonomous() && s.net.prefix() != SLAAC_PREFIX) {
        let why = format!("hosts make addresses of a /64 alone, and subnet6 is {}", subnet.net);
        let help = "give the pool a /64, or set \"mode\" to \"stateful\" or \"route-only\"".to_owned();
        c.wrong(&at, ra.mode.as_ref().map(|f| &f.value), why, Some(help));
    }
    let lifetime = match &ra.lifetime {
        Some(_) => c.text_with(&join(path, "lifetime"), &ra.lifetime, lifetime)?,
        None => DEFAULT_LIFETIME,
    };
    let at = join(path, "preference");
    let preference = c.plain(&at, &ra.preference).copied().unwrap_or_default();
    Some(PoolRa { mode, lifetime_secs: lifetime, preference, routes: routes(c, &join(path, "routes"), ra) })
}

fn lifetime(text: &str) -> Result<u16, String> {
    let secs = net::seconds(text)?;
    let fits = u16::try_from(secs).ok().filter(|_| LIFETIMES.contains(&secs));
    fits.ok_or_else(|| format!("a lifetime is {}s to {}m", LIFETIMES.start(), LIFETIMES.end() / 60))
}

fn routes(c: &mut Checker, path: &str, ra: &raw::Ra) -> Vec<Ipv6Network> {
    let list = c.plain(path, &ra.routes).map(Vec::as_slice).unwrap_or_default();
    if list.len() > MOST_ROUTES {
        let why = format!("an advertisement has room for {MOST_ROUTES} routes, these are {}", list.len());
        c.wrong(path, None, why, None);
    }
    let mut routes: Vec<Ipv6Network> = Vec::new();
    for (i, field) in list.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if let Some(route) = c.text_with(&path, &Some(field.clone()), net::route6) {
            if routes.contains(&route) {
                c.wrong(&path, Some(&Value::from(route.to_string())), "stands twice in the list", None);
            }
            routes.push(route);
        }
    }
    routes
}
