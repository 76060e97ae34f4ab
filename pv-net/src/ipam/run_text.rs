//! A container's `run.json` in the state file.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A container's `run.json`, as it was given. It is text because the state file is written at each attach, and parsed
/// values take longer to write and more memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunText(Box<RawValue>);

impl RunText {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The same, parsed; `null` for what is no JSON, which it never is.
    #[must_use]
    pub fn value(&self) -> serde_json::Value {
        serde_json::from_str(self.text()).unwrap_or_default()
    }
}

impl From<&serde_json::Value> for RunText {
    fn from(value: &serde_json::Value) -> Self {
        serde_json::value::to_raw_value(value).map(Self).unwrap_or_default()
    }
}

impl PartialEq for RunText {
    fn eq(&self, other: &Self) -> bool {
        // Fields may be in another order.
        self.text() == other.text() || self.value() == other.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_values_are_equal() {
        let text = r#"{"network":{"pool":"a","aliases":[]},"name":"web"}"#;
        let given: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let run = RunText::from(&given);
        assert_eq!(run, RunText::from(&json!({"name": "web", "network": {"aliases": [], "pool": "a"}})));
        assert_ne!(run, RunText::from(&json!({"name": "web", "network": {"pool": "a"}})));
        assert_eq!((run.value(), RunText::default().value()), (given, json!(null)));
        let read: RunText = serde_json::from_str(text).expect("JSON");
        assert_eq!((&read, read.text()), (&run, text));
    }
}
