//! Printing results, and escaping names for requests.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::io::Write;

/// Prints a line. If the reader has hung up (`| head`), the process ends without an error.
pub(crate) fn say(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        #[expect(clippy::disallowed_methods, reason = "nobody reads any more, and a command holds nothing")]
        std::process::exit(0);
    }
}

pub(crate) fn done(json: bool, text: &str) {
    say(&if json { json!({"done": text}).to_string() } else { text.to_owned() });
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// Characters that are not escaped in a path segment, in addition to letters and digits.
const IN_A_SEGMENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Escapes a name for use as one path segment. Any text is possible; the daemon checks the name.
pub(crate) fn escaped(name: &str) -> String {
    utf8_percent_encode(name, &IN_A_SEGMENT).to_string()
}
