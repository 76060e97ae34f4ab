//! Compares `GET /openapi.json` with what a running daemon answers: every answer fits its schema.

use anyhow::{Context, Result, bail, ensure};
use harness::{Device, configs, unix_http};
use serde_json::{Map, Value, json};

/// Fails unless `value` fits `schema`: its type, its fields, its allowed words. Other keywords of JSON Schema do not
/// occur in the document, or concern the text of a string.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<()> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = reference.strip_prefix('#').and_then(|path| document.pointer(path));
        fits(document, target.with_context(|| format!("{at}: {reference} leads nowhere"))?, value, at)?;
    }
    for list in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[list].as_array() {
            let fit = choices.iter().filter(|choice| fits(document, choice, value, at).is_ok()).count();
            ensure!(fit > 0 && (list == "anyOf" || fit == 1), "{at}: {value} fits {fit} of {schema}");
        }
    }
    if let Some(only) = schema.get("const") {
        ensure!(value == only, "{at}: {value}, not {only}");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    ensure!(
        types.contains(&is) || (is == "integer" && types.contains(&"number")),
        "{at}: {value} is none of {types:?}"
    );
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{number}]"))?;
    }
    if let Some(object) = value.as_object() {
        object_fits(document, schema, object, at)?;
    }
    Ok(())
}

fn object_fits(document: &Value, schema: &Value, object: &Map<String, Value>, at: &str) -> Result<()> {
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        ensure!(object.contains_key(required), "{at}: without {required}");
    }
    for (key, value) in object {
        let at = format!("{at}.{key}");
        match (schema["properties"].get(key), &schema["additionalProperties"]) {
            (Some(property), _) => fits(document, property, value, &at)?,
            (None, Value::Object(_)) => fits(document, &schema["additionalProperties"], value, &at)?,
            (None, Value::Bool(true)) => {}
            (None, _) => bail!("{at}: the document does not have it"),
        }
    }
    Ok(())
}

/// The schema of the answer with status `code` to `method` at `path`.
fn schema<'a>(document: &'a Value, path: &str, method: &str, code: &str) -> Result<&'a Value> {
    let responses = &document["paths"][path][method]["responses"];
    let content = &responses[code]["content"];
    let (_, media) =
        content.as_object().and_then(|kinds| kinds.iter().next()).with_context(|| format!("{path}: {responses}"))?;
    Ok(&media["schema"])
}

#[test]
fn every_answer_is_as_the_document_says() -> Result<()> {
    let mut config = configs::two_pools();
    config["network"]["policies"] = json!([
        {"name": "in", "from": "world", "to": {"container": "web"}, "ports": ["tcp/80"], "action": "allow"},
        {"from": {"pool": "internal"}, "to": "host", "action": "deny"},
    ]);
    let mut device = Device::new(&config)?;
    let dir = device.file("containers").join("declared");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("run.json"), json!({"network": {"pool": "internal"}}).to_string())?;
    let offers = json!({"services": [{"name": "shop", "type": "http", "port": 8080}]});
    std::fs::write(dir.join("services.json"), offers.to_string())?;
    device.start()?;
    let socket = device.file("run").join("api.sock");
    let ask = |method: &str, path: &str, body: &str| unix_http::ask(&socket, method, path, body);
    let document: Value = serde_json::from_str(&ask("GET", "/openapi.json", "")?)?;
    let web = device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80"]}}))?;
    let other = device.attach("other", "internal")?;
    other.ns.ping(web.addresses()[0], 1)?;

    let paths = document["paths"].as_object().context("paths")?;
    let mut seen = Vec::new();
    for (path, _) in paths.iter().filter(|(_, item)| item.get("get").is_some()) {
        let query = match path.as_str() {
            "/containers/{name}" => "/containers/web",
            "/policy/verdict" => "/policy/verdict?from=other&to=web&proto=tcp&port=80",
            "/resolve" => "/resolve?name=web&type=A",
            // The events and the questions have no end, and the metrics are text.
            "/events" | "/dns/queries" | "/metrics" => continue,
            other => other,
        };
        let answer: Value = serde_json::from_str(&ask("GET", query, "")?).context("JSON")?;
        fits(&document, schema(&document, path, "get", "200")?, &answer, path)?;
        let is_empty = answer.as_array().is_some_and(Vec::is_empty);
        ensure!(!is_empty, "{path}: nothing was held against the document");
        seen.push(path.as_str());
    }
    ensure!(seen.len() == paths.len() - 6, "{seen:?}: all but streams, /metrics, /reload, /down and interfaces");
    ensure!(ask("GET", "/metrics", "")?.contains("pv_net_containers"), "no metrics");

    // An attach that is done already, a plan, errors, and a line of the event stream.
    let again = json!({"netns": other.ns.path(), "pool": "internal"}).to_string();
    let view: Value = serde_json::from_str(&ask("PUT", "/containers/other", &again)?)?;
    fits(&document, schema(&document, "/containers/{name}", "put", "200")?, &view, "PUT")?;
    fits(&document, &document["components"]["schemas"]["AttachRequest"], &serde_json::from_str(&again)?, "body")?;
    let (path, body) = ("/containers/{name}/interfaces/{interface}", json!({"pool": "management"}));
    let listens = Listens::start(&device)?;
    let view: Value = serde_json::from_str(&ask("PUT", "/containers/other/interfaces/eth1", &body.to_string())?)?;
    fits(&document, schema(&document, path, "put", "200")?, &view, "PUT of an interface")?;
    fits(&document, &document["components"]["schemas"]["InterfaceRequest"], &body, "body")?;
    let event = listens.line()?;
    fits(&document, schema(&document, "/events", "get", "200")?, &event, "event")?;
    ensure!(event["event"] == "interface-attached" && event["text"] == "eth1", "{event}");
    ensure!(
        ask("DELETE", "/containers/other/interfaces/eth1", "")?.is_empty(),
        "an interface that is gone says nothing"
    );
    let plan: Value = serde_json::from_str(&ask("POST", "/reload?dry_run", "")?)?;
    fits(&document, schema(&document, "/reload", "post", "200")?, &plan, "plan")?;
    ensure!(ask("POST", "/reload", "")?.is_empty(), "a reload that is done says nothing");
    for (method, path, body, why) in [
        ("GET", "/containers/none", "", "none"),
        ("GET", "/containers/no%20name", "", "no name"),
        ("GET", "/policy/verdict?from=web", "", "query of /policy/verdict: "),
        ("POST", "/reload?dry_run=perhaps", "", "query of /reload: dry_run = \\\"perhaps\\\""),
        ("POST", "/reload?now", "", "query of /reload: "),
        ("PUT", "/containers/web", "{", "body of PUT /containers/web: "),
        ("PUT", "/containers/web", "{\"nope\": 1}", "body of PUT /containers/web: "),
        ("PUT", "/containers/web/interfaces/a:b", "{\"pool\": \"internal\"}", "interface \\\"a:b\\\""),
        ("DELETE", "/containers/web/interfaces/eth7", "", "no interface eth7"),
        ("GET", "/nowhere", "", "no such path"),
        ("DELETE", "/pools", "", "not a method of this path"),
    ] {
        let said = ask(method, path, body).expect_err(path).to_string();
        let answer = said.find('{').map(|at| serde_json::from_str::<Value>(&said[at..]));
        let answer = answer.with_context(|| said.clone())?.with_context(|| said.clone())?;
        fits(&document, &document["components"]["schemas"]["ErrorView"], &answer, path)?;
        ensure!(said.contains(why), "{method} {path}: {said}");
    }
    let listens = Listens::start(&device)?;
    device.cli(&["detach", "other"]).ok()?;
    let line = listens.line()?;
    fits(&document, schema(&document, "/events", "get", "200")?, &line, "event")
}

/// A reader of the event stream.
struct Listens(std::io::BufReader<std::os::unix::net::UnixStream>);

impl Listens {
    fn start(device: &Device) -> Result<Self> {
        use std::io::{BufRead, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(device.file("run").join("api.sock"))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: pv-net\r\n\r\n")?;
        let mut reader = std::io::BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "{head}");
        }
        ensure!(head.contains("application/x-ndjson"), "{head}");
        Ok(Self(reader))
    }

    /// The next event; the lines with the chunks' lengths are skipped.
    fn line(mut self) -> Result<Value> {
        use std::io::BufRead;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the daemon hung up");
            if line.starts_with('{') {
                return Ok(serde_json::from_str(&line)?);
            }
        }
    }
}
