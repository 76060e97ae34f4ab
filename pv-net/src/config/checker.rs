//! Collects all errors of a file, each with its place, its value and what would be right.

use super::describe::describe;
use super::field::{Field, Section};
use schemars::Schema;
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// The place in the file: a JSON path such as `network.pools.internal.subnet`; empty for the file as a whole.
    pub path: String,
    /// The value at that place.
    pub value: Option<String>,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.file))?;
        if !self.path.is_empty() {
            write!(f, ": {}", one_line(&self.path))?;
        }
        if let Some(value) = &self.value {
            write!(f, ": {value}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for ConfigError {}

/// Most errors that are collected. A file full of errors must not use up the device's memory.
const MAX_ERRORS: usize = 1000;

/// The errors of one file so far.
pub(super) struct Checker {
    file: String,
    schema: Option<fn() -> &'static Schema>,
    pub errors: Vec<ConfigError>,
}

/// `value` for an error message, shortened to fit on a line.
fn show(value: &Value) -> String {
    let text = one_line(&value.to_string());
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The text without control characters, so that a terminal or log shows it on one line. A file may contain any
/// character.
fn one_line(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

impl Checker {
    pub(crate) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), schema: None, errors: Vec::new() }
    }

    /// Adds an error. Without `help`, the description of the field at `path` is used.
    pub(crate) fn wrong(&mut self, path: &str, value: Option<&Value>, why: impl Into<String>, help: Option<String>) {
        if self.errors.len() == MAX_ERRORS {
            return;
        }
        let described = || Some(format!("{path} is: {}", describe(self.schema?(), path)?));
        let mut error = ConfigError {
            file: self.file.clone(),
            path: path.to_owned(),
            value: value.map(show),
            why: one_line(&why.into()),
            help: help.or_else(described).map(|help| one_line(&help)),
        };
        if self.errors.len() + 1 == MAX_ERRORS {
            let why = format!("has more than {MAX_ERRORS} errors: those behind this one are not shown");
            error = ConfigError { path: String::new(), value: None, why, help: None, ..error };
        }
        self.errors.push(error);
    }

    /// Whether the text is JSON; an error is added if it is not.
    fn is_json(&mut self, text: &str) -> bool {
        // Of two equal keys JSON parsers silently use the second, so duplicates are refused.
        let read = serde_json::from_str::<super::duplicates::NoDuplicates>(text);
        if let Err(e) = &read {
            let help = Some("the file is JSON (RFC 8259) with each key once in its object".to_owned());
            self.wrong("", None, e.to_string(), help);
        }
        read.is_ok()
    }

    /// Reads the whole file without looking at what is in it.
    pub(super) fn document(&mut self, text: &str) -> Option<Value> {
        if !self.is_json(text) {
            return None;
        }
        serde_json::from_str(text).map_err(|e| self.wrong("", None, e.to_string(), None)).ok()
    }

    /// Reads the whole file as a `T`.
    pub(crate) fn file<T: serde::de::DeserializeOwned + Section>(&mut self, text: &str) -> Option<T> {
        self.schema = Some(T::schema);
        if !self.is_json(text) {
            return None;
        }
        match serde_json::from_str::<Field<T>>(text) {
            Ok(field) => {
                self.known::<T>("", &field);
                match field.parsed {
                    Ok(parsed) => Some(parsed),
                    Err(why) => {
                        self.wrong("", Some(&field.value), why, None);
                        None
                    }
                }
            }
            Err(e) => {
                self.wrong("", None, e.to_string(), None);
                None
            }
        }
    }

    /// Adds an error for each field that `T` does not have.
    fn known<T: Section>(&mut self, path: &str, field: &Field<T>) {
        let Ok(section) = &field.parsed else { return };
        if section.unknown().is_empty() {
            return;
        }
        let names = T::names();
        for (key, value) in section.unknown() {
            let help = match nearest(key, &names) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("the fields here are {}", names.join(", ")),
            };
            self.wrong(&join(path, key), Some(value), "unknown field", Some(help));
        }
    }

    /// The value at `path`, if it is there and of the right type.
    pub(crate) fn plain<'a, T>(&mut self, path: &str, field: &'a Option<Field<T>>) -> Option<&'a T> {
        let field = field.as_ref()?;
        match &field.parsed {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                self.wrong(path, Some(&field.value), why.clone(), None);
                None
            }
        }
    }

    /// The object at `path`. Its unknown fields are errors.
    pub(crate) fn section<'a, T: Section>(&mut self, path: &str, field: &'a Option<Field<T>>) -> Option<&'a T> {
        if let Some(field) = field {
            self.known(path, field);
        }
        self.plain(path, field)
    }

    /// The text at `path`, parsed as a `T`.
    pub(crate) fn text<T>(&mut self, path: &str, field: &Option<Field<String>>) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.text_with(path, field, |text| text.parse::<T>().map_err(|e| e.to_string()))
    }

    /// The text at `path`, parsed by `parse`.
    pub(crate) fn text_with<T>(
        &mut self,
        path: &str,
        field: &Option<Field<String>>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.plain(path, field)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(path, Some(&Value::from(text.as_str())), why, None);
                None
            }
        }
    }
}

/// `path.key`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The name that was probably meant by `key`, if one is similar.
pub(super) fn nearest<'a>(key: &str, names: &'a [String]) -> Option<&'a String> {
    let near = names.iter().map(|n| (strsim::levenshtein(key, n), n)).min()?;
    (near.0 <= 1 + key.len() / 4).then_some(near.1)
}
