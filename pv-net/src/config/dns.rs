//! DNS of a pool, and of the device itself.

use super::checker::{Checker, join};
use super::device::domain;
use super::field::Field;
use super::raw;
use crate::model::PoolDns;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Beside systemd-resolved's own, 127.0.0.53 and .54.
const ON_DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 153));

/// Where the device's own programs are answered; `None` where they are not.
pub(super) fn on_device(c: &mut Checker, raw: &raw::Network) -> Option<IpAddr> {
    let path = "network.dns_on_device";
    match c.plain(path, &raw.dns_on_device)? {
        raw::OnDevice::Switch(on) => on.then_some(ON_DEVICE),
        raw::OnDevice::Address(text) => {
            let address = text.parse::<IpAddr>().ok().filter(IpAddr::is_loopback);
            if address.is_none() {
                c.wrong(path, Some(&Value::from(text.as_str())), "is no address of loopback, 127.0.0.0/8 or ::1", None);
            }
            address
        }
    }
}

/// The DNS settings of a pool; `None` when its gateway does not answer. Without any setting it does.
pub(super) fn dns(c: &mut Checker, path: &str, raw: &raw::Pool) -> Option<PoolDns> {
    let settings = match c.plain(path, &raw.dns) {
        None | Some(raw::DnsChoice::Switch(true)) => return Some(PoolDns::default()),
        Some(raw::DnsChoice::Switch(false)) => return None,
        Some(raw::DnsChoice::Settings(settings)) => Some((**settings).clone()),
    };
    let dns = c.section(path, &settings)?;
    let upstream = c.plain(&join(path, "upstream"), &dns.upstream).map(Vec::as_slice).unwrap_or_default();
    let upstream = servers(c, &join(path, "upstream"), upstream);
    let mut zones = BTreeMap::new();
    let at = join(path, "zones");
    for (name, field) in c.plain(&at, &dns.zones).into_iter().flatten() {
        let path = join(&at, name);
        let list = c.plain(&path, &Some(field.clone())).cloned().unwrap_or_default();
        if list.is_empty() && field.parsed.is_ok() {
            let help = "give the domain its servers, as in {\"corp.example\": [\"10.9.0.53\"]}".to_owned();
            c.wrong(&path, Some(&field.value), "the domain has no servers", Some(help));
        }
        let list = servers(c, &path, &list);
        match domain(name) {
            Ok(name) => drop(zones.insert(name, list)),
            Err(why) => c.wrong(&path, None, why, None),
        }
    }
    let at = join(path, "private_names");
    let names = c.plain(&at, &dns.private_names).map(Vec::as_slice).unwrap_or_default();
    let each = |(i, field): (usize, &Field<String>)| c.text_with(&format!("{at}[{i}]"), &Some(field.clone()), domain);
    let private_names = names.iter().enumerate().filter_map(each).collect();
    Some(PoolDns { upstream, zones, private_names })
}

fn servers(c: &mut Checker, path: &str, list: &[Field<String>]) -> Vec<IpAddr> {
    let each = |(i, field): (usize, &Field<String>)| c.text::<IpAddr>(&format!("{path}[{i}]"), &Some(field.clone()));
    list.iter().enumerate().filter_map(each).collect()
}
