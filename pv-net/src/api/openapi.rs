//! `GET /openapi.json`: what the API offers, its schemas made from the types that it answers with.

use super::error::ErrorView;
use super::view::{ContainerView, FlowView, LeaseView, PoolView, PortView, RuleView, StatusView, VerdictView};
use crate::command::AttachRequest;
use crate::events::EventView;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

/// The OpenAPI 3.1 document.
#[must_use]
pub(super) fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut g = settings.into_generator();
    let name = json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    let container = reference::<ContainerView>(&mut g);
    let mut attach = operation("Attach a container", "200", json_body(container.clone()), &mut g);
    attach["requestBody"] = json!({"required": true, "content": content(reference::<AttachRequest>(&mut g))});
    let verdict = json_body(reference::<VerdictView>(&mut g));
    let mut verdict = operation("What happens to a flow, and why", "200", verdict, &mut g);
    let parameter = |name: &str, required: bool, kind: &str| json!({"name": name, "in": "query", "required": required, "schema": {"type": kind}});
    verdict["parameters"] = json!([
        parameter("from", true, "string"),
        parameter("to", true, "string"),
        parameter("proto", true, "string"),
        parameter("port", false, "integer"),
    ]);
    let events = reference::<EventView>(&mut g);
    let paths = json!({
        "/containers": {"get": operation("All containers", "200", json_body(list::<ContainerView>(&mut g)), &mut g)},
        "/containers/{name}": {
            "parameters": name,
            "get": operation("One container", "200", json_body(container), &mut g),
            "put": attach,
            "delete": operation("Detach a container and release its leases", "204", Value::Null, &mut g),
        },
        "/pools": {"get": operation("All pools", "200", json_body(list::<PoolView>(&mut g)), &mut g)},
        "/ports": {"get": operation("Published ports", "200", json_body(list::<PortView>(&mut g)), &mut g)},
        "/leases": {"get": operation("All leases", "200", json_body(list::<LeaseView>(&mut g)), &mut g)},
        "/flows": {"get": operation("The flow table", "200", json_body(list::<FlowView>(&mut g)), &mut g)},
        "/policies": {"get": operation("All rules", "200", json_body(list::<RuleView>(&mut g)), &mut g)},
        "/policy/verdict": {"get": verdict},
        "/status": {"get": operation("The daemon", "200", json_body(reference::<StatusView>(&mut g)), &mut g)},
        "/health": {"get": operation("Whether the daemon works", "200", json_body(json!({"type": "object"})), &mut g)},
        "/metrics": {"get": operation("OpenMetrics text", "200", json!({"application/openmetrics-text": {}}), &mut g)},
        "/events": {"get": operation("Dropped packets, refused binds and changes as they happen, one JSON object a line", "200",
            json!({"application/x-ndjson": {"schema": events}}), &mut g)},
        "/reload": {"post": operation("Read the configuration again", "204", Value::Null, &mut g)},
        "/down": {"post": operation("Remove everything and stop", "204", Value::Null, &mut g)},
        "/openapi.json": {"get": operation("This document", "200", json_body(json!({"type": "object"})), &mut g)},
    });
    json!({
        "openapi": "3.1.0",
        "info": {"title": "pv-net", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "MIT OR Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": g.take_definitions(true)},
    })
}

fn content(schema: Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn json_body(schema: Value) -> Value {
    content(schema)
}

fn reference<T: JsonSchema>(g: &mut SchemaGenerator) -> Value {
    g.subschema_for::<T>().to_value()
}

fn list<T: JsonSchema>(g: &mut SchemaGenerator) -> Value {
    json!({"type": "array", "items": reference::<T>(g)})
}

/// An operation that answers with `code` and `body`, or with an error.
fn operation(summary: &str, code: &str, body: Value, g: &mut SchemaGenerator) -> Value {
    let mut answer = json!({"description": summary});
    if !body.is_null() {
        answer["content"] = body;
    }
    json!({
        "summary": summary,
        "responses": {
            code: answer,
            "default": {"description": "What is wrong", "content": content(reference::<ErrorView>(g))},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = openapi();
        let text = document.to_string();
        let mut seen = 0;
        for part in text.split("\"$ref\":\"#").skip(1) {
            let path = part.split('"').next().expect("a string");
            assert!(document.pointer(path).is_some(), "{path}");
            seen += 1;
        }
        assert!(seen > 8, "{seen}");
    }
}
