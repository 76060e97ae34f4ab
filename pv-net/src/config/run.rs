//! Checks `run.json`.

use super::checker::{Checker, join};
use super::field::Field;
use super::{ConfigError, device, health, net, raw, sockets, start};
use crate::model::{
    Container, ContainerKind, ContainerName, IfName, Interface, Mac, NetworkMode, PoolName, PortMapping, Start,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

const SPEC: &str = "service-manifest-run@1";

/// Parses and checks a `run.json`, which must name its container.
///
/// # Errors
/// Every error of the file.
pub fn parse_run(file: &str, text: &str) -> Result<Container, Vec<ConfigError>> {
    parse_run_named(file, text, None)
}

/// Parses and checks a `run.json` of the container `name`. If the file names the container, it must be the same name.
///
/// # Errors
/// Every error of the file.
pub fn parse_run_named(file: &str, text: &str, name: Option<&ContainerName>) -> Result<Container, Vec<ConfigError>> {
    let mut c = Checker::new(file);
    let container = c.file::<raw::Run>(text).and_then(|raw| check(&mut c, &raw, name));
    match container {
        Some(container) if c.errors.is_empty() => Ok(container),
        _ => Err(c.errors),
    }
}

fn check(c: &mut Checker, raw: &raw::Run, known_as: Option<&ContainerName>) -> Option<Container> {
    if let Some(spec) = c.plain("#spec", &raw.spec)
        && spec != SPEC
    {
        c.wrong("#spec", Some(&Value::from(spec.as_str())), format!("this version reads {SPEC:?}"), None);
    }
    let name = name(c, raw, known_as);
    let kind = c.plain("type", &raw.r#type).copied().unwrap_or_default();
    let netns = netns(c, raw, kind);
    let mut inactive = Vec::new();
    let requires = rest(c, raw, &mut inactive);
    let health = health::command(c, raw, kind);
    let empty = None;
    let network = match &raw.network {
        Some(_) => c.section("network", &raw.network),
        None => empty,
    };
    let mode = network.and_then(|n| c.plain("network.mode", &n.mode).copied()).unwrap_or_default();
    let hostname = network.and_then(|n| c.text_with("network.hostname", &n.hostname, hostname));
    let aliases = aliases(c, network);
    let interfaces = interfaces(c, network, mode);
    let ports = ports(c, network, mode, &interfaces);
    let sockets = sockets::sockets(c, network, kind, &ports);
    let how = start::How { kind, mode, requires, sockets: sockets.as_ref() };
    let startable = start::startable(c, raw, name.as_ref(), how);
    let name = name?;
    let hostname = hostname.unwrap_or_else(|| name.to_string());
    // The place where `ip netns add` makes namespaces.
    let usual = || Path::new("/run/netns").join(name.as_str());
    let netns = (kind == ContainerKind::Netns).then(|| netns.unwrap_or_else(usual));
    Some(Container {
        name,
        kind,
        netns,
        startable,
        health,
        mode,
        hostname,
        aliases,
        interfaces,
        ports,
        sockets,
        inactive,
    })
}

/// The path of the namespace file.
fn netns(c: &mut Checker, raw: &raw::Run, kind: ContainerKind) -> Option<PathBuf> {
    let path = c.text_with("netns", &raw.netns, absolute)?;
    if kind != ContainerKind::Netns {
        let value = Value::from(path.display().to_string());
        c.wrong(
            "netns",
            Some(&value),
            "its runtime makes its namespace",
            Some("only \"type\" \"netns\" has it".to_owned()),
        );
        return None;
    }
    Some(path)
}

/// An absolute path of a file or directory.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if text.contains('\0') {
        return Err("has a NUL character".to_owned());
    }
    match path.file_name() {
        Some(_) if path.is_absolute() => Ok(path.to_owned()),
        Some(_) => Err("is no absolute path".to_owned()),
        None => Err("names no file".to_owned()),
    }
}

fn name(c: &mut Checker, raw: &raw::Run, known_as: Option<&ContainerName>) -> Option<ContainerName> {
    if raw.name.is_none() {
        if known_as.is_none() {
            c.wrong("", None, "has no \"name\"", Some("name the container with \"name\"".to_owned()));
        }
        return known_as.cloned();
    }
    let name = c.text::<ContainerName>("name", &raw.name)?;
    match known_as {
        Some(known) if *known != name => {
            c.wrong("name", Some(&Value::from(name.as_str())), format!("this is the file of {known}"), None);
            None
        }
        _ => Some(name),
    }
}

/// Checks a host name (RFC 1123 section 2.1): one label or more.
fn hostname(text: &str) -> Result<String, String> {
    device::domain(text)
}

/// Further names, each checked like a host name.
fn aliases(c: &mut Checker, network: Option<&raw::RunNetwork>) -> Vec<String> {
    let list = network.and_then(|n| c.plain("network.aliases", &n.aliases)).map_or(&[][..], Vec::as_slice);
    let mut aliases: Vec<String> = Vec::new();
    for (i, field) in list.iter().enumerate() {
        let path = format!("network.aliases[{i}]");
        let Some(alias) = c.text_with(&path, &Some(field.clone()), hostname) else { continue };
        if aliases.contains(&alias) {
            c.wrong(&path, Some(&Value::from(alias.as_str())), "stands twice in the list", None);
        }
        aliases.push(alias);
    }
    aliases
}

fn interfaces(c: &mut Checker, network: Option<&raw::RunNetwork>, mode: NetworkMode) -> Vec<Interface> {
    let pool = network.and_then(|n| c.text::<PoolName>("network.pool", &n.pool));
    let list = network.and_then(|n| c.plain("network.interfaces", &n.interfaces)).map_or(&[][..], Vec::as_slice);
    if mode != NetworkMode::Pool {
        for (there, key) in [(pool.is_some(), "network.pool"), (!list.is_empty(), "network.interfaces")] {
            if there {
                c.wrong(key, None, "a container with this \"mode\" has no interfaces in pools", None);
            }
        }
        return Vec::new();
    }
    let said = network.is_some_and(|n| n.pool.is_some() || n.interfaces.is_some());
    if !said || (list.is_empty() && pool.is_none() && network.is_some_and(|n| n.pool.is_none())) {
        let help = "give \"network\" a \"pool\" or \"interfaces\", or \"mode\" \"host\" or \"none\"";
        c.wrong("network", None, "the container is in no pool", Some(help.to_owned()));
        return Vec::new();
    }
    if list.is_empty() {
        let eth0 = "eth0".parse::<IfName>().ok();
        let one = eth0.zip(pool).map(|(name, pool)| Interface {
            name,
            pool,
            default_route: None,
            ipv4: None,
            ipv6: None,
            mac: None,
        });
        return one.into_iter().collect();
    }
    let mut all: Vec<Interface> = Vec::new();
    let mut claimed: Option<usize> = None;
    for (i, field) in list.iter().enumerate() {
        let path = format!("network.interfaces[{i}]");
        let field = Some(field.clone());
        let Some(raw) = c.section(&path, &field) else { continue };
        let default_route = c.plain(&join(&path, "default_route"), &raw.default_route).copied();
        if default_route == Some(true) {
            match claimed {
                Some(first) => {
                    let why = format!("network.interfaces[{first}] has the default route already");
                    c.wrong(&join(&path, "default_route"), Some(&Value::from(true)), why, None);
                }
                None => claimed = Some(i),
            }
        }
        if let Some(interface) = interface(c, &path, raw, i, pool.as_ref(), default_route) {
            twice(c, &path, &interface, &all);
            all.push(interface);
        }
    }
    all
}

fn interface(
    c: &mut Checker,
    path: &str,
    raw: &raw::Interface,
    index: usize,
    default_pool: Option<&PoolName>,
    default_route: Option<bool>,
) -> Option<Interface> {
    let name = match &raw.name {
        Some(_) => c.text::<IfName>(&join(path, "name"), &raw.name),
        None => format!("eth{index}").parse().ok(),
    };
    if name.as_ref().is_some_and(|n| n.as_str() == "lo") {
        c.wrong(&join(path, "name"), None, "\"lo\" is the loopback interface", None);
    }
    let pool = match &raw.pool {
        Some(_) => c.text::<PoolName>(&join(path, "pool"), &raw.pool),
        None => {
            if default_pool.is_none() {
                c.wrong(path, None, "has no \"pool\"", None);
            }
            default_pool.cloned()
        }
    };
    let ipv4 = c.text_with(&join(path, "ipv4_address"), &raw.ipv4_address, net::ipv4);
    let ipv6 = c.text_with(&join(path, "ipv6_address"), &raw.ipv6_address, net::ipv6);
    let mac = c.text::<Mac>(&join(path, "mac_address"), &raw.mac_address);
    Some(Interface { name: name?, pool: pool?, default_route, ipv4, ipv6, mac })
}

/// Adds errors for what two interfaces of a container must not share.
fn twice(c: &mut Checker, path: &str, new: &Interface, all: &[Interface]) {
    for old in all {
        let mut clash = |key: &str, value: Option<String>, same: bool| {
            if let (Some(value), true) = (value, same) {
                c.wrong(&join(path, key), Some(&Value::from(value)), format!("{} has it already", old.name), None);
            }
        };
        clash("ipv4_address", new.ipv4.map(|a| a.to_string()), new.ipv4 == old.ipv4);
        clash("ipv6_address", new.ipv6.map(|a| a.to_string()), new.ipv6 == old.ipv6);
        clash("mac_address", new.mac.map(|a| a.to_string()), new.mac == old.mac && new.pool == old.pool);
        if new.name == old.name {
            let value = Value::from(new.name.as_str());
            c.wrong(&join(path, "name"), Some(&value), "two interfaces cannot have one name", None);
        }
    }
}

fn ports(
    c: &mut Checker,
    network: Option<&raw::RunNetwork>,
    mode: NetworkMode,
    interfaces: &[Interface],
) -> Vec<PortMapping> {
    let list = network.and_then(|n| c.plain("network.ports", &n.ports)).map_or(&[][..], Vec::as_slice);
    if mode != NetworkMode::Pool && !list.is_empty() {
        c.wrong("network.ports", None, "only a container in a pool publishes ports", None);
    }
    let mut all: Vec<PortMapping> = Vec::new();
    for (i, field) in list.iter().enumerate() {
        let path = format!("network.ports[{i}]");
        let Some(new) = c.text::<PortMapping>(&path, &Some(field.clone())) else { continue };
        if let Some(old) = all.iter().find(|old| clash(old, &new)) {
            c.wrong(&path, Some(&field.value), format!("shares a port with {old}"), None);
        }
        if let Some(name) = new.interface.as_ref().filter(|name| !interfaces.iter().any(|i| i.name == **name))
            && !interfaces.is_empty()
        {
            let names: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
            let help = format!("its interfaces are {}", names.join(", "));
            c.wrong(&path, Some(&field.value), format!("the container has no interface {name}"), Some(help));
        }
        all.push(new);
    }
    all
}

/// Whether two mappings claim the same port of one address.
fn clash(a: &PortMapping, b: &PortMapping) -> bool {
    let hosts = match (a.host, b.host) {
        (Some(x), Some(y)) => x == y || (x.is_unspecified() || y.is_unspecified()) && x.is_ipv4() == y.is_ipv4(),
        _ => true,
    };
    let ports = a.host_ports.start() <= b.host_ports.end() && b.host_ports.start() <= a.host_ports.end();
    hosts && ports && a.transport == b.transport
}

/// Checks the parts of the file that this version does not act on yet. Returns the services that the container needs,
/// which decide only when it is started.
fn rest(c: &mut Checker, raw: &raw::Run, inactive: &mut Vec<String>) -> Vec<String> {
    let mut requires = Vec::new();
    if let Some(services) = c.section("services", &raw.services) {
        for (i, field) in c.plain("services.required", &services.required).into_iter().flatten().enumerate() {
            let path = format!("services.required[{i}]");
            let field: Option<Field<raw::RequiredService>> = Some(field.clone());
            if let Some(service) = c.section(&path, &field) {
                requires.extend(start::requires(c, &join(&path, "name"), service));
                for (key, field) in [("type", &service.r#type), ("target", &service.target)] {
                    c.plain(&join(&path, key), field);
                }
            }
        }
        let has_order = raw.start.as_ref().is_some_and(|start| start.parsed == Ok(Start::Auto));
        if !has_order {
            inactive.push("services".to_owned());
        }
    }
    if raw.health_check.is_some() {
        inactive.push("health_check".to_owned());
    }
    if let Some(recovery) = c.section("auto_recovery", &raw.auto_recovery) {
        c.plain("auto_recovery.type", &recovery.r#type);
        c.plain("auto_recovery.escalate_to", &recovery.escalate_to);
        c.plain("auto_recovery.backoff_factor", &recovery.backoff_factor);
        for (key, field) in [
            ("maximum_retry_count", &recovery.maximum_retry_count),
            ("retry_delay", &recovery.retry_delay),
            ("reset_window", &recovery.reset_window),
        ] {
            c.plain(&join("auto_recovery", key), field);
        }
        inactive.push("auto_recovery".to_owned());
    }
    requires
}
