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

/// The first label of what option 81 of DHCPv4 says (RFC 4702): flags, two octets that mean nothing any more, and a name, on
/// the wire or as text. `None` too for a client that wants no name in DNS.
#[must_use]
pub(crate) fn of_fqdn(octets: &[u8]) -> Option<String> {
    const ENCODED: u8 = 4;
    const NO_UPDATE: u8 = 8;
    let ([flags, ..], name) = octets.split_first_chunk::<3>()?;
    match flags & (ENCODED | NO_UPDATE) {
        0 => label(name),
        ENCODED => name.split_first().and_then(|(len, rest)| label(rest.get(..usize::from(*len))?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_option_81() {
        for (said, name) in [
            (&b"\x04\0\0\x06LapTop\x07example\0"[..], Some("laptop")),
            (b"\x05\xff\xff\x06laptop", Some("laptop")),
            (b"\0\0\0laptop.example", Some("laptop")),
            (b"\x0c\0\0\x06laptop\0", None),
            (b"\x04\0\0\x07laptop", None),
            (b"\x04\0\0", None),
            (b"\x04\0", None),
        ] {
            assert_eq!(of_fqdn(said).as_deref(), name, "{said:?}");
        }
    }

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
