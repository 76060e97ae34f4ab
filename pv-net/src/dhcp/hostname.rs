//! The name that a client gives itself.

/// Octets of a label (RFC 1035 section 2.3.4).
const LONGEST: usize = 63;

/// The first label of what option 12 of DHCPv4 says, or the label of a name in DHCPv6, in lower case; `None` when it is
/// none (RFC 1123 section 2.1), or one that means something else.
#[must_use]
pub(crate) fn label(octets: &[u8]) -> Option<String> {
    // Some end it as a text of C.
    let text = std::str::from_utf8(octets).ok()?.trim_end_matches('\0');
    let label = text.split('.').next()?.to_ascii_lowercase();
    let is_label = (1..=LONGEST).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-');
    (is_label && !matches!(&*label, "localhost" | "gateway" | "wpad" | "isatap")).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for (said, label_is) in [
            (&b"laptop"[..], Some("laptop")),
            (b"Laptop-2.fritz.box", Some("laptop-2")),
            (b"laptop\0", Some("laptop")),
            (b"", None),
            (b".", None),
            (b"-a", None),
            (b"a-", None),
            (b"a_b", None),
            (b"a b", None),
            (b"a\nb", None),
            (b"\xff", None),
            ("ä".as_bytes(), None),
            (b"LOCALHOST", None),
            (b"gateway.example", None),
            (&[b'a'; 63], Some(&"a".repeat(63))),
            (&[b'a'; 64], None),
        ] {
            assert_eq!(label(said).as_deref(), label_is, "{said:?}");
        }
    }
}
