//! The bodies of requests and answers of the control socket. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is done with a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is started.
    Start,
    /// It is stopped, and Pantavisor does not start it again by itself.
    Stop,
    /// It is stopped and started.
    Restart,
}

/// A container, as Pantavisor lists it. The list has more, which nobody here needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its group; groups start one after the other.
    #[serde(default)]
    pub group: Option<String>,
    /// Its status, such as `STARTED`, `READY` or `STOPPED`.
    pub status: String,
    /// The status that Pantavisor brings it to.
    #[serde(default)]
    pub status_goal: Option<String>,
    /// `container` where it may be started and stopped, or `system`.
    #[serde(default)]
    pub restart_policy: Option<String>,
    /// Its first process. Not every version of Pantavisor tells it.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// The body that asks for an action.
pub fn action(action: Action) -> String {
    let word = match action {
        Action::Start => "start",
        Action::Stop => "stop",
        Action::Restart => "restart",
    };
    json!({"action": word}).to_string()
}

/// The body of the signal that its sender is ready.
pub fn ready() -> String {
    json!({"type": "ready", "payload": ""}).to_string()
}

/// The list of containers.
pub fn list(bytes: &[u8]) -> Result<Vec<Listed>, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("not a list of containers: {e}"))
}

/// What an answer says about why the request was refused: `{"Error": "…"}`, or the text itself.
pub fn error(bytes: &[u8]) -> String {
    let text = serde_json::from_slice::<Value>(bytes).ok().and_then(|v| v["Error"].as_str().map(str::to_owned));
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(bytes).trim().to_owned());
    one_line(if text.is_empty() { "refused" } else { &text }, 200)
}

/// A value of the device's metadata: the revision, and what is wrong in it.
pub fn value(revision: &str, why: &str, longest: usize) -> String {
    one_line(&format!("{revision}: {why}"), longest)
}

/// Whether the value of `key` in the device's metadata is about this revision.
pub fn is_about(bytes: &[u8], key: &str, revision: &str) -> bool {
    let all = serde_json::from_slice::<BTreeMap<String, Value>>(bytes).unwrap_or_default();
    let value = all.get(key).and_then(Value::as_str).unwrap_or_default();
    value.strip_prefix(revision).is_some_and(|rest| rest.starts_with(": "))
}

/// The text without control characters, in at most `longest` bytes.
fn one_line(text: &str, longest: usize) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > longest {
            break;
        }
        line.push(c);
    }
    line
}
