//! Checks the places that errors name.

use serde_json::Value;

/// Whether `path`, such as `network.pools.internal.subnet`, leads to something in `document`, or to a place where one
/// of the fields `known` is missing. Names may contain dots and brackets.
pub fn exists(document: &Value, path: &str, known: &dyn Fn(&str) -> bool) -> bool {
    if path.is_empty() {
        return true;
    }
    match document {
        Value::Object(map) => {
            // At the beginning there is no dot before the name.
            let inside = |path: &str| {
                let begins = |(key, value): (&String, &Value)| {
                    path.strip_prefix(key.as_str()).is_some_and(|rest| {
                        (rest.is_empty() || rest.starts_with(['.', '['])) && exists(value, rest, known)
                    })
                };
                map.iter().any(begins) || known(path)
            };
            inside(path) || path.strip_prefix('.').is_some_and(inside)
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .any(|(i, value)| path.strip_prefix(&format!("[{i}]")).is_some_and(|rest| exists(value, rest, known))),
        _ => false,
    }
}

/// The document with the fields of each object in reverse order.
pub fn reversed(document: &Value) -> Value {
    match document {
        Value::Object(map) => map.iter().rev().map(|(k, v)| (k.clone(), reversed(v))).collect(),
        Value::Array(list) => list.iter().map(reversed).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::exists;
    use serde_json::json;

    #[test]
    fn places() {
        let document = json!({"network": {"pools": {"a.b": {"subnet": 1}}, "uplinks": ["eth0"]}, ".": null});
        let known = |name: &str| name == "gateway";
        for (path, want) in [
            ("", true),
            ("network.pools.a.b.subnet", true),
            ("network.pools.a.b.gateway", true),
            ("network.pools.a.b.nonsense", false),
            ("network.uplinks[0]", true),
            ("network.uplinks[1]", false),
            ("network.pools.a.c", false),
            (".", true),
        ] {
            assert_eq!(exists(&document, path, &known), want, "{path}");
        }
    }
}
