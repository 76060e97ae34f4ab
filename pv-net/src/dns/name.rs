//! Domain names as text. Everywhere else they are hickory-proto's types.

pub use hickory_proto::rr::{LowerName, Name};

/// Parses a text such as `web.pv.local` to a name in lower case. `None` when a label is empty or too long, or the name
/// is too long. There are no escapes: in a configuration each byte stands for itself.
#[must_use]
pub fn from_text(text: &str) -> Option<LowerName> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let labels = text.split('.').filter(|_| !text.is_empty()).map(str::as_bytes);
    Name::from_labels(labels).ok().map(|name| LowerName::new(&name))
}

/// The name as text, without the root's dot at the end.
#[must_use]
pub fn to_text(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(&text).to_owned()
}

/// The number of labels without the root. (`num_labels` of the library does not count a leading `*`.)
#[must_use]
pub fn labels(name: &Name) -> usize {
    name.iter().len()
}

/// Bytes of the name on the wire, without compression.
#[must_use]
pub fn wire_len(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_name_and_back() {
        for (text, want) in [
            ("web.pv.local", Some("web.pv.local")),
            ("Web.PV.local.", Some("web.pv.local")),
            (".", Some(".")),
            ("", Some(".")),
            ("a..b", None),
            (".a", None),
            (&"a".repeat(64), None),
            (&["a"; 127].join("."), Some(&*["a"; 127].join("."))),
            (&["a"; 128].join("."), None),
        ] {
            assert_eq!(from_text(text).map(|n| to_text(&n)).as_deref(), want, "{text}");
        }
        let name = from_text("*.x").expect("a name");
        assert_eq!((labels(&name), wire_len(&name)), (2, 5));
    }
}
