//! DNS of a pool, and of the device itself.

use super::checker::{Checker, join};
use super::device::domain;
use super::field::Field;
use super::raw;
use crate::model::{NameServer, PoolDns};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

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

/// Servers of which all have TLS, or none: of both kinds a slow server with TLS would send questions to one without.
fn servers(c: &mut Checker, path: &str, list: &[Field<String>]) -> Vec<NameServer> {
    let each =
        |(i, field): (usize, &Field<String>)| c.text::<NameServer>(&format!("{path}[{i}]"), &Some(field.clone()));
    let found: Vec<NameServer> = list.iter().enumerate().filter_map(each).collect();
    let with_tls = found.iter().filter(|server| server.tls.is_some()).count();
    if with_tls != 0 && with_tls != found.len() {
        let why = "some servers have TLS and others not: a question would go unencrypted when one with TLS is slow";
        c.wrong(path, None, why, Some("name all as tls://ADDRESS#NAME, or none".to_owned()));
    }
    found
}

/// The file with the certificates of authorities.
pub(super) fn ca_file(c: &mut Checker, raw: &raw::Network) -> Option<PathBuf> {
    c.text_with("network.dns_ca_file", &raw.dns_ca_file, |text| match PathBuf::from(text) {
        path if path.is_absolute() && !text.contains('\0') => Ok(path),
        _ => Err("is no absolute path".to_owned()),
    })
}
