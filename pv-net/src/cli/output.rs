//! What commands print, and what they send.

use serde_json::{Value, json};
use std::io::Write;

/// Prints a line; a reader that hung up (`| head`) ends the command in silence.
pub fn say(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

pub fn done(json: bool, text: &str) {
    say(&if json { json!({"done": text}).to_string() } else { text.to_owned() });
}

pub fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// A name as one segment of a path, whatever is in it: the daemon says what is wrong with it.
pub fn escaped(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
