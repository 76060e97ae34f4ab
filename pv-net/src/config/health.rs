//! Checks `health_check` of a `run.json`.

use super::checker::{Checker, join};
use super::field::Field;
use super::raw::{self, HealthType};
use super::start::word;
use crate::model::{ContainerKind, HealthCommand};
use serde_json::Value;
use std::time::Duration;

/// Seconds that a check may take, unless set: those of Docker and podman.
const TIMEOUT: u32 = 30;
/// Most of these.
const MOST_TIMEOUT: u32 = 3600;
/// Most words of a command.
const MOST_WORDS: usize = 256;

const COMMAND: &str = "health_check.command";

/// The command of a check of type `exec`.
pub(super) fn command(c: &mut Checker, raw: &raw::Run, kind: ContainerKind) -> Option<HealthCommand> {
    let check = c.section("health_check", &raw.health_check)?;
    let is_exec = c.plain("health_check.type", &check.r#type) == Some(&HealthType::Exec);
    c.plain("health_check.endpoint", &check.endpoint);
    for (key, field) in
        [("interval", &check.interval), ("retries", &check.retries), ("start_period", &check.start_period)]
    {
        c.plain(&join("health_check", key), field);
    }
    let secs = c.plain("health_check.timeout", &check.timeout).copied().unwrap_or(TIMEOUT);
    if !(1..=MOST_TIMEOUT).contains(&secs) {
        let why = format!("is not between 1 and {MOST_TIMEOUT} seconds");
        c.wrong("health_check.timeout", Some(&Value::from(secs)), why, None);
    }
    let words = words(c, &check.command);
    if !is_exec {
        if check.command.is_some() {
            let help = "set \"type\": \"exec\", or leave it out".to_owned();
            c.wrong(COMMAND, None, "only a check of type \"exec\" has it", Some(help));
        }
        return None;
    }
    let why = match kind {
        ContainerKind::Lxc | ContainerKind::Oci => "",
        ContainerKind::Wasm => "a WebAssembly container has no programs beside its module",
        ContainerKind::Netns => "somebody else runs the container, and pv-net knows only its network namespace",
    };
    if !why.is_empty() {
        let help = "set \"http\" or \"tcp\", which are asked for over the network".to_owned();
        c.wrong("health_check.type", Some(&Value::from("exec")), why, Some(help));
    }
    match &words[..] {
        [program, ..] if !program.is_empty() => {}
        _ => {
            let help = "name a program and its arguments, as in [\"wget\", \"-qO-\", \"http://[::1]/\"]".to_owned();
            c.wrong(COMMAND, None, "names no program", Some(help));
        }
    }
    Some(HealthCommand { command: words, timeout: Duration::from_secs(secs.into()) })
}

fn words(c: &mut Checker, command: &Option<Field<Vec<Field<String>>>>) -> Vec<String> {
    let fields = c.plain(COMMAND, command).map_or(&[][..], Vec::as_slice);
    if fields.len() > MOST_WORDS {
        c.wrong(COMMAND, None, format!("has more than {MOST_WORDS} words"), None);
        return Vec::new();
    }
    let mut words = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        words.extend(c.text_with(&format!("{COMMAND}[{i}]"), &Some(field.clone()), word));
    }
    words
}
