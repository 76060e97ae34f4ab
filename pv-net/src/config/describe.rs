//! The description of a field in its JSON Schema, used as help for errors that have none. Pure.

use schemars::Schema;
use serde_json::Value;

/// The description of the field at `path`, such as `network.pools.internal.subnet` or `network.interfaces[0].name`.
/// `None` when the schema has none, or a name in the path contains a dot.
pub(super) fn describe(schema: &Schema, path: &str) -> Option<String> {
    let root = schema.as_value();
    let (mut at, mut found) = (root, None);
    for key in path.split('.') {
        let (name, index) = key.split_once('[').map_or((key, None), |(name, rest)| (name, Some(rest)));
        let object = resolve(root, at)?;
        let field =
            object.pointer("/properties").and_then(|p| p.get(name)).or_else(|| object.get("additionalProperties"));
        // `false` where the schema allows no other fields.
        at = field.filter(|f| f.is_object())?;
        // An element of a list has the list's description.
        found = at.get("description").or(found);
        if index.is_some() {
            at = resolve(root, at)?.get("items")?;
        }
    }
    let text = found?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned())
}

/// Follows references, and skips the `null` alternative of `anyOf`.
fn resolve<'a>(root: &'a Value, mut at: &'a Value) -> Option<&'a Value> {
    loop {
        if let Some(list) = at.get("anyOf").and_then(Value::as_array) {
            at = list.iter().find(|v| v.get("$ref").is_some())?;
        } else if let Some(reference) = at.get("$ref").and_then(Value::as_str) {
            at = root.pointer(reference.strip_prefix('#')?)?;
        } else {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw;
    use super::*;

    #[test]
    fn a_field_is_found_by_its_path() {
        let (device, run) = (schemars::schema_for!(raw::Device), schemars::schema_for!(raw::Run));
        for (schema, path, want) in [
            (&device, "network.pools.internal.subnet", Some("IPv4 network, such as `10.0.3.0/24`")),
            (
                &device,
                "network.policies[3]",
                Some("Rules between containers, pools and networks; a deny wins over every allow"),
            ),
            (
                &device,
                "network.pools.p.dhcp.range[0]",
                Some("First and last address for clients that are not containers; without it they get none"),
            ),
            (&device, "ingress[0].external", Some("`ADDRESS:PORT`, for HTTP followed by a path")),
            (&device, "network.nonsense", None),
            (&run, "network.interfaces[1].pool", Some("The pool it is in")),
            (&run, "#spec", Some("`service-manifest-run@1`")),
            (&run, "", None),
        ] {
            assert_eq!(describe(schema, path).as_deref(), want, "{path}");
        }
    }
}
