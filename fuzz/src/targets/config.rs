//! `device.json`, `run.json` and `services.json`: a file is accepted completely, or refused with errors that say where.

use super::place::{exists, reversed};
use super::schema::{broken, schema};
use pv_net::config::{ConfigError, parse_device, parse_run, parse_services};
use pv_net::model::{Container, Device, NetworkMode, PoolIpam};
use serde_json::Value;
use std::fmt::Debug;
use std::sync::LazyLock;

type Parser<T> = fn(&str, &str) -> Result<T, Vec<ConfigError>>;

/// Target `device`.
pub fn device(input: &[u8]) {
    if let Some((document, device)) = parse(input, parse_device, 0) {
        nothing_is_left_out(&document, &device);
    }
}

/// Target `run`.
pub fn run(input: &[u8]) {
    if let Some((document, container)) = parse(input, parse_run, 1) {
        nothing_of_it_is_left_out(&document, &container);
    }
}

/// Target `services`. The list alone, which is read too, is left out: the schema is that of the object.
pub fn services(input: &[u8]) {
    if input.trim_ascii_start().starts_with(b"[") {
        return;
    }
    if let Some((document, offers)) = parse(input, parse_services, 2) {
        assert!(offers.len() <= len(&document, "/services"), "services");
        assert!(offers.iter().all(|o| o.port > 0 && !o.name.contains('.')), "{offers:?}");
    }
}

fn parse<T: PartialEq + Debug>(input: &[u8], parse: Parser<T>, number: usize) -> Option<(Value, T)> {
    let text = std::str::from_utf8(input).ok()?;
    let parsed = parse("file", text);
    let document = match serde_json::from_str::<Value>(text) {
        Ok(document) => document,
        Err(e) => {
            let errors = parsed.expect_err("what is no JSON is refused");
            assert!(errors.len() == 1 && errors[0].path.is_empty(), "{e}: {errors:?}");
            return None;
        }
    };
    let twice = parsed.as_ref().err().is_some_and(|e| e.iter().any(|e| e.why.contains("stands twice in one object")));
    if let Err(errors) = &parsed {
        assert!(!errors.is_empty(), "refused without a reason");
        errors.iter().for_each(|e| reasonable(&document, e, number));
    }
    // The same document in another form must mean the same.
    let pretty = serde_json::to_string_pretty(&document).expect("JSON");
    for form in [document.to_string(), pretty, reversed(&document).to_string()] {
        let again = parse("file", &form);
        match (&parsed, &again) {
            (Ok(parsed), Ok(again)) => assert_eq!(parsed, again, "{form}"),
            (Err(errors), Err(again)) => {
                assert!(twice || places(errors) == places(again), "{errors:?}\n{again:?}\n{form}")
            }
            // A document with a duplicate key is refused; serde_json has kept the last of the two.
            (Err(_), Ok(_)) if twice => {}
            _ => panic!("{parsed:?}\n{again:?}\n{form}"),
        }
    }
    let value = parsed.ok()?;
    let schema = schema(number);
    assert_eq!(broken(schema, schema, &document), None, "what is taken conforms to the schema");
    Some((document, value))
}

/// An error must be one line, with a place that exists in the file, and a reason.
fn reasonable(document: &Value, error: &ConfigError, number: usize) {
    assert_eq!(error.file, "file");
    assert!(!error.why.is_empty(), "{error:?}");
    assert!(
        exists(document, &error.path, &|name| is_field(name, number)),
        "{} is not in the file: {error:?}",
        error.path
    );
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// Whether a name is a field that an error may report as missing.
fn is_field(name: &str, number: usize) -> bool {
    static NAMES: LazyLock<[Vec<Vec<u8>>; 3]> = LazyLock::new(|| [0, 1, 2].map(super::schema::words));
    NAMES[number].iter().any(|n| n == name.as_bytes())
}

fn places(errors: &[ConfigError]) -> Vec<&str> {
    let mut places: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
    places.sort_unstable();
    places
}

/// How many entries the list or object at `pointer` has.
fn len(document: &Value, pointer: &str) -> usize {
    match document.pointer(pointer) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

fn nothing_is_left_out(document: &Value, device: &Device) {
    assert_eq!(device.pools.len(), len(document, "/network/pools"), "pools");
    assert_eq!(device.policies.len(), len(document, "/network/policies"), "rules");
    assert_eq!(device.uplinks.len(), len(document, "/network/uplinks"), "uplinks");
    let denied = device.uplink_filter.as_ref().map_or(0, |f| f.deny.len());
    assert_eq!(denied, len(document, "/network/uplink_filter/deny"), "networks that are denied");
    for (i, rule) in device.policies.iter().enumerate() {
        assert_eq!(rule.ports.len(), len(document, &format!("/network/policies/{i}/ports")), "ports of rule {i}");
    }
    for pool in device.pools.values() {
        let has_networks = pool.v4.is_some() || pool.v6.is_some();
        assert!(has_networks != (pool.ipam == PoolIpam::Dhcp), "{}", pool.name);
        assert!(has_networks || pool.macvlan().is_some(), "{}", pool.name);
        if let Some(v4) = &pool.v4 {
            assert!(v4.net.contains(v4.gateway) && v4.net.ip() == v4.net.network(), "{v4:?}");
        }
        if let Some(v6) = &pool.v6 {
            assert!(v6.net.contains(v6.gateway) && v6.net.ip() == v6.net.network(), "{v6:?}");
        }
    }
    // An accepted device must be usable for compiling a policy.
    assert!(
        device.flow_table > 0 && device.pools.values().all(|p| p.max_flows > 0 && p.max_flows <= device.flow_table)
    );
}

fn nothing_of_it_is_left_out(document: &Value, container: &Container) {
    let said = len(document, "/network/interfaces");
    let short = usize::from(said == 0 && container.mode == NetworkMode::Pool);
    assert_eq!(container.interfaces.len(), said + short, "interfaces");
    assert_eq!(container.ports.len(), len(document, "/network/ports"), "ports");
    let granted = container.sockets.iter().map(|sockets| (sockets.listen.len(), sockets.connect.len())).next();
    let lists = (len(document, "/network/sockets/listen"), len(document, "/network/sockets/connect"));
    assert_eq!(granted.unwrap_or_default(), lists, "sockets");
    assert!(container.interfaces.iter().filter(|i| i.default_route == Some(true)).count() <= 1, "default routes");
    for (i, a) in container.interfaces.iter().enumerate() {
        for b in &container.interfaces[..i] {
            assert!(a.name != b.name && (a.ipv4.is_none() || a.ipv4 != b.ipv4), "{a:?} {b:?}");
        }
    }
}
