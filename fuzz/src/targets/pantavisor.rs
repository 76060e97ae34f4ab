//! Target `pantavisor`: files of its revisions, and answers of its control socket. What is taken of a file is a file of
//! pv-net's own form that means the same, and nothing that is not read changes that.

use super::own;
use pv_net::config::revision::{self, Run};
use pv_net::config::{parse_device, parse_run_named};
use pv_net::pantavisor::message;
use serde_json::{Map, Value, json};

/// The text as each of the files, and as each answer.
pub fn check(input: &[u8]) {
    answers(input);
    let Ok(text) = std::str::from_utf8(input) else { return };
    let device = revision::device("file", text);
    let run = revision::run("file", text, "web");
    let services = revision::services("file", text);
    let _ = revision::lxc_config(text);
    if let Ok(Some(Run { text, container, .. })) = &run {
        assert_eq!(parse_run_named("file", text, Some(&container.name)).as_ref(), Ok(container), "{text}");
        assert!(container.name.as_str() == "web" && !container.interfaces.is_empty(), "{container:?}");
    }
    // A device that the strict form takes is read in the same way.
    if let Ok(strict) = parse_device("file", text) {
        assert_eq!(device.as_ref(), Ok(&strict));
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else { return };
    add_what_is_pantavisors(&mut fields);
    let more = Value::Object(fields).to_string();
    if let Ok(device) = device {
        assert_eq!(revision::device("file", &more), Ok(device), "{more}");
    }
    if let Ok(run) = run {
        let meant = |run: Option<Run>| run.map(|run| (run.container, run.prefix_lengths));
        assert_eq!(revision::run("file", &more, "web").map(meant), Ok(meant(run)), "{more}");
    }
    if let Ok(services) = services {
        assert_eq!(revision::services("file", &more), Ok(services), "{more}");
    }
}

fn add_what_is_pantavisors(fields: &mut Map<String, Value>) {
    for (key, value) in [
        ("root-volume", json!("root.squashfs")),
        ("auto_recovery", json!({"policy": "always"})),
        ("groups", json!([])),
        ("a field of tomorrow", json!({"network": {"pool": 7}})),
    ] {
        fields.insert(key.to_owned(), value);
    }
}

fn answers(input: &[u8]) {
    if let Ok(all) = message::list(input) {
        let again = message::list(json!(all).to_string().as_bytes());
        assert_eq!(again.as_ref(), Ok(&all));
    }
    let why = message::error(input);
    assert!(!why.is_empty() && why.len() <= 200 && !why.contains(char::is_control), "{why:?}");
    let text = String::from_utf8_lossy(input);
    let value = message::value("locals/1", &text, 4096);
    assert!(value.len() <= 4096 && value.starts_with("locals/1: "));
    let meta = json!({"pv-net.error": value}).to_string();
    assert!(message::is_about(meta.as_bytes(), "pv-net.error", "locals/1"));
    let _ = message::is_about(input, "pv-net.error", &text);
}

pub fn words() -> Vec<Vec<u8>> {
    own(&[
        "\"#spec\": \"service-manifest-run@1\"",
        "\"network\": {\"mode\": \"pool\", \"pool\": \"internal\"}",
        "\"interfaces\": [{\"ipv4_address\": \"10.0.5.7/24\"}]",
        "\"pools\": {\"internal\": {\"type\": \"bridge\", \"subnet\": \"10.0.5.0/24\"}}",
        "\"services\": [{\"name\": \"page\", \"type\": \"http\", \"port\": 80}]",
        "\"mode\": \"host\"",
        "\"type\": \"lxc\"",
        "\"Error\": \"no\"",
        "\"pv-net.error\": \"locals/1: why\"",
        "\"status\": \"READY\"",
    ])
}
