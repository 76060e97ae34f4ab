//! Checks `network.sockets` of a `run.json`: what the container's program may do with sockets.

use super::checker::{Checker, join};
use super::field::Field;
use super::policy::{FoundPool, selector_of};
use super::raw;
use crate::model::{ContainerKind, InvalidName, Peer, PortMapping, PortMatch, Sockets, Transport};
use serde_json::Value;
use std::ops::RangeInclusive;

const PATH: &str = "network.sockets";

/// The sockets of a container; `None` for one that may have any. The program of a WebAssembly container has those that are
/// granted and no others. Its published ports, `published`, must be among them.
pub(super) fn sockets(
    c: &mut Checker,
    network: Option<&raw::RunNetwork>,
    kind: ContainerKind,
    published: &[PortMapping],
) -> Option<Sockets> {
    let field = network.map_or(&None, |network| &network.sockets);
    if kind != ContainerKind::Wasm {
        if field.is_some() {
            let help = "leave it out: the rules of network.policies in device.json say what others may do";
            c.wrong(PATH, None, "only containers of \"type\" \"wasm\" have it", Some(help.to_owned()));
        }
        return None;
    }
    let mut sockets = Sockets::default();
    if let Some(raw) = c.section(PATH, field) {
        sockets.listen = ports(c, &join(PATH, "listen"), &raw.listen);
        for (i, field) in c.plain(&join(PATH, "connect"), &raw.connect).into_iter().flatten().enumerate() {
            sockets.connect.extend(peer(c, &format!("{PATH}.connect[{i}]"), &Some(field.clone())));
        }
        sockets.resolve = c.plain(&join(PATH, "resolve"), &raw.resolve).copied().unwrap_or_default();
    }
    for (i, mapping) in published.iter().enumerate() {
        let may = |port| sockets.listen.iter().any(|ports| has(ports, mapping.transport, port));
        if !mapping.container_ports().all(may) {
            let (path, value) = (format!("network.ports[{i}]"), Value::from(mapping.to_string()));
            let help = "add the container's port to \"listen\" in \"network.sockets\"";
            c.wrong(&path, Some(&value), "leads to a port that the container may not listen on", Some(help.to_owned()));
        }
    }
    Some(sockets)
}

fn peer(c: &mut Checker, path: &str, field: &Option<Field<raw::Peer>>) -> Option<Peer> {
    let raw = c.section(path, field)?;
    let to = selector_of(c, path, "to", &raw.to, pool);
    if raw.ports.is_none() {
        let help = "name them, as in \"tcp/443\", or \"tcp\" for all".to_owned();
        c.wrong(path, None, "has no \"ports\"", Some(help));
    }
    let ports = ports(c, &join(path, "ports"), &raw.ports);
    Some(Peer { to: to?, ports })
}

/// A pool by its name; whether the device has it is checked with the container's own pools.
fn pool(name: &str) -> FoundPool {
    (None, Some(name.parse().map_err(|e: InvalidName| e.to_string())))
}

fn ports(c: &mut Checker, path: &str, field: &Option<Field<Vec<Field<String>>>>) -> Vec<PortMatch> {
    let Some(list) = c.plain(path, field) else { return Vec::new() };
    if list.is_empty() {
        c.wrong(path, Some(&Value::Array(Vec::new())), "is empty", Some("leave it out, or name ports".to_owned()));
    }
    let port = |text: &str| match text.parse::<PortMatch>()? {
        PortMatch::Icmp => Err("a WebAssembly program has no sockets of ICMP".to_owned()),
        ports => Ok(ports),
    };
    let each = |(i, field): (usize, &Field<String>)| c.text_with(&format!("{path}[{i}]"), &Some(field.clone()), port);
    list.iter().enumerate().filter_map(each).collect()
}

/// Whether these ports have a published port of the container.
fn has(ports: &PortMatch, transport: Transport, port: u16) -> bool {
    let within = |range: &Option<RangeInclusive<u16>>| range.as_ref().is_none_or(|range| range.contains(&port));
    match (ports, transport) {
        (PortMatch::Tcp(range), Transport::Tcp) | (PortMatch::Udp(range), Transport::Udp) => within(range),
        _ => false,
    }
}
