//! The JSON Schemas of the configuration: whether a document conforms to them, and their words.

use super::own;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::LazyLock;

static SCHEMAS: LazyLock<[Value; 3]> = LazyLock::new(|| {
    pv_net::config::raw::schemas().map(|(_, text)| serde_json::from_str(&text).expect("a schema is JSON"))
});

/// Schema `number`: 0 is that of `device.json`, 1 that of `run.json`, 2 that of `services.json`.
pub fn schema(number: usize) -> &'static Value {
    &SCHEMAS[number]
}

/// Names of fields and choices, and values of the kinds that are looked at.
pub fn words(number: usize) -> Vec<Vec<u8>> {
    let mut names = BTreeSet::new();
    collect(schema(number), &mut names);
    let mut words: Vec<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
    words.extend(own(&[
        "10.0.3.0/24",
        "10.0.3.1",
        "10.0.3.255",
        "10.0.0.0/8",
        "fd00:5056::/64",
        "fd00:5056::1",
        "::ffff:10.0.3.1",
        "0.0.0.0/0",
        "::/0",
        "1h",
        "90s",
        "8080:80/tcp",
        "[::]:53:53/udp",
        "127.0.0.1:9000-9009:9000-9009",
        "tcp/5432",
        "udp/1-65535",
        "icmp",
        "eth0",
        "internal",
        "02:00:0a:00:03:07",
        "pv.local",
        "corp.example",
        "service-manifest-run@1",
    ]));
    words
}

fn collect(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(fields)) = map.get("properties") {
                names.extend(fields.keys().cloned());
            }
            for key in ["const", "enum"] {
                let choices = map.get(key).map(|c| c.as_array().cloned().unwrap_or_else(|| vec![c.clone()]));
                names.extend(choices.into_iter().flatten().filter_map(|c| c.as_str().map(str::to_owned)));
            }
            map.values().for_each(|value| collect(value, names));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}

/// Why `value` does not conform to `schema`, which is a part of `root`; `None` when it does. Only the keywords that our
/// schemas use are supported.
///
/// # Panics
/// At an unknown keyword.
pub fn broken(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let Value::Object(rules) = schema else {
        return (schema == &Value::Bool(false)).then(|| format!("{value}: nothing may be here"));
    };
    rules.iter().find_map(|(rule, told)| {
        let wrong = |yes: bool| (!yes).then(|| format!("{value}: {rule} {told}"));
        let all =
            |list: &Value| list.as_array().into_iter().flatten().filter(|s| broken(root, s, value).is_none()).count();
        match rule.as_str() {
            "$schema" | "title" | "description" | "$defs" | "format" => None,
            "$ref" => {
                let place = told.as_str().and_then(|t| t.strip_prefix('#')).expect("a reference within the schema");
                broken(root, root.pointer(place).expect("what is referred to"), value)
            }
            "type" => {
                let is = |name: &Value| has_type(value, name.as_str().expect("a type has a name"));
                wrong(told.as_array().map_or_else(|| is(told), |list| list.iter().any(is)))
            }
            "const" => wrong(value == told),
            "enum" => wrong(told.as_array().is_some_and(|list| list.contains(value))),
            "anyOf" => wrong(all(told) > 0),
            "oneOf" => wrong(all(told) == 1),
            "minimum" => wrong(value.as_f64().is_none_or(|n| n >= told.as_f64().unwrap_or_default())),
            "maximum" => wrong(value.as_f64().is_none_or(|n| n <= told.as_f64().unwrap_or_default())),
            "items" => value.as_array()?.iter().find_map(|v| broken(root, told, v)),
            "required" => {
                let names = told.as_array().into_iter().flatten().filter_map(Value::as_str);
                let map = value.as_object()?;
                wrong(names.into_iter().all(|name| map.contains_key(name)))
            }
            "properties" => {
                let known = told.as_object()?;
                value.as_object()?.iter().find_map(|(k, v)| broken(root, known.get(k)?, v))
            }
            "additionalProperties" => {
                let known = rules.get("properties").and_then(Value::as_object);
                let mut others = value.as_object()?.iter().filter(|(k, _)| known.is_none_or(|p| !p.contains_key(*k)));
                others.find_map(|(_, v)| broken(root, told, v))
            }
            other => panic!("a schema has {other:?}"),
        }
    })
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("a schema has type {name:?}"),
    }
}
