//! `services.json`: what a container offers.

use super::checker::{Checker, join};
use super::{ConfigError, device, raw};
use crate::model::{Offer, Transport};
use serde_json::Value;
use std::path::Path;

const SPEC: &str = "service-manifest-xconnect@1";

/// Parses and checks a `services.json`. Services on a socket of the container's are checked, and left out: nothing of the
/// network leads there.
///
/// # Errors
/// Every error of the file.
pub fn parse_services(file: &str, text: &str) -> Result<Vec<Offer>, Vec<ConfigError>> {
    let mut c = Checker::new(file);
    // Pantavisor's older form is the list alone.
    let wrapped = text.trim_start().starts_with('[').then(|| format!("{{\"services\": {text}}}"));
    let offers = c.file::<raw::Manifest>(wrapped.as_deref().unwrap_or(text)).map(|raw| check(&mut c, &raw));
    match offers {
        Some(offers) if c.errors.is_empty() => Ok(offers),
        _ => Err(c.errors),
    }
}

fn check(c: &mut Checker, raw: &raw::Manifest) -> Vec<Offer> {
    if let Some(spec) = c.plain("#spec", &raw.spec)
        && spec != SPEC
    {
        c.wrong("#spec", Some(&Value::from(spec.as_str())), format!("this version reads {SPEC:?}"), None);
    }
    let mut names = Vec::new();
    let mut offers = Vec::new();
    for (i, field) in c.plain("services", &raw.services).into_iter().flatten().enumerate() {
        let path = format!("services[{i}]");
        let field = Some(field.clone());
        let Some(service) = c.section(&path, &field) else { continue };
        let name = c.text_with(&join(&path, "name"), &service.name, label);
        let kind = c.text_with(&join(&path, "type"), &service.r#type, kind);
        let port = self::port(c, &path, service);
        if service.name.is_none() || service.r#type.is_none() {
            c.wrong(&path, None, "a service has a \"name\" and a \"type\"", None);
        }
        let Some((name, kind)) = name.zip(kind) else { continue };
        if names.contains(&name) {
            c.wrong(&join(&path, "name"), Some(&Value::from(name.as_str())), "stands twice in the list", None);
        }
        names.push(name.clone());
        let transport = if kind == "udp" { Transport::Udp } else { Transport::Tcp };
        offers.extend(port.map(|port| Offer { name, kind, transport, port }));
    }
    offers
}

/// The port, when it is on one. It is on a port or on a socket.
fn port(c: &mut Checker, path: &str, service: &raw::Service) -> Option<u16> {
    let socket = c.text_with(&join(path, "socket"), &service.socket, |text| match Path::new(text) {
        path if path.is_absolute() && !text.contains('\0') => Ok(()),
        _ => Err("is no absolute path".to_owned()),
    });
    let number = c.plain(&join(path, "port"), &service.port).copied();
    if service.port.is_some() == service.socket.is_some() {
        c.wrong(path, None, "a service is on a \"port\", or on a \"socket\"", None);
    }
    let port = number.and_then(|number| u16::try_from(number).ok().filter(|port| *port > 0));
    if let (Some(number), None) = (number, port) {
        c.wrong(&join(path, "port"), Some(&Value::from(number)), "a port is 1 to 65535", None);
    }
    port.filter(|_| socket.is_none())
}

/// One label of a host name: others find the service by it in the device's domain, and with a `_` before it.
pub(super) fn label(text: &str) -> Result<String, String> {
    match text {
        _ if text.contains('.') => Err("is more than one label".to_owned()),
        _ if text.len() > 62 => Err("has more than 62 characters".to_owned()),
        "gateway" => Err("is the gateway's name".to_owned()),
        _ => device::domain(text),
    }
}

fn kind(text: &str) -> Result<String, String> {
    let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._/".contains(&b));
    if (1..=63).contains(&text.len()) && is_word(text) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a type has 1 to 63 letters, digits and characters of -+._/".to_owned())
    }
}
