//! Names of domains that a network says: they end up in a container's `resolv.conf`, so only letters, digits, dashes,
//! underscores and dots are let through.

/// Search domains that are kept.
const MOST: usize = 6;
/// Octets of a name and of a label (RFC 1035 section 2.3.4).
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;
/// Labels that are read for one name, those behind pointers included.
const MOST_LABELS: usize = 128;

/// The domain that a text names; `None` when it is none.
pub(super) fn of_text(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0').trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let sign = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(sign) && !label.starts_with('-')
    };
    (text.len() <= LONGEST && text.split('.').all(is_label)).then_some(text)
}

/// The domains of a search list: names of RFC 1035 one behind the other, padded with roots. `pointers`: with compression
/// (RFC 3397), which router advertisements have not (RFC 8106).
pub(super) fn list(octets: &[u8], pointers: bool) -> Vec<String> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < octets.len() && all.len() < MOST {
        let Some((name, end)) = name(octets, at, pointers) else { break };
        at = end;
        if let Some(name) = of_text(&name).filter(|name| !all.contains(name)) {
            all.push(name);
        }
    }
    all
}

/// The name at `at` with dots, and where the next one begins.
fn name(octets: &[u8], mut at: usize, pointers: bool) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut end) = (Vec::new(), None);
    for _ in 0..MOST_LABELS {
        let len = usize::from(*octets.get(at)?);
        if len == 0 {
            return Some((name, end.unwrap_or(at + 1)));
        }
        if len & 0xc0 == 0xc0 && pointers {
            let to = (len & 0x3f) << 8 | usize::from(*octets.get(at + 1)?);
            // Only backwards, so that it ends.
            if to >= at {
                return None;
            }
            end.get_or_insert(at + 2);
            at = to;
            continue;
        }
        if len > LONGEST_LABEL {
            return None;
        }
        if !name.is_empty() {
            name.push(b'.');
        }
        name.extend(octets.get(at + 1..at + 1 + len)?);
        at += 1 + len;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_get_through() {
        for (text, want) in [
            (&b"Lan.Example."[..], Some("lan.example")),
            (b"home\0", Some("home")),
            (b"_tcp.example", Some("_tcp.example")),
            (b"a b", None),
            (b"example\nnameserver 192.0.2.1", None),
            (b"", None),
            (b"a..b", None),
            (b"-a", None),
            (&[b'a'; 64], None),
            (&[0xff], None),
        ] {
            assert_eq!(of_text(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn a_list_is_read_with_and_without_compression() {
        let plain = b"\x03lan\x07example\0\x04home\0\0\0\0";
        assert_eq!(list(plain, false), ["lan.example", "home"]);
        let pointed = b"\x03lan\x07example\0\x02eu\xc0\x04";
        assert_eq!(list(pointed, true), ["lan.example", "eu.example"]);
        assert_eq!(list(pointed, false), ["lan.example"]);
        // A pointer to itself, and one forwards.
        assert!(list(b"\x01a\xc0\x02", true).is_empty());
        assert!(list(b"\xc0\x02\x01a\0", true).is_empty());
        assert!(list(b"\x05abc", true).is_empty(), "cut");
    }
}
