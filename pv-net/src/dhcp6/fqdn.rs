//! The name that a client gives itself, by the Client FQDN option (RFC 4704).

use crate::dhcp::hostname;
use dhcproto::v6::{DhcpOption, DhcpOptions, OptionCode};

/// The flag by which a client wants no name in DNS (RFC 4704 section 4.1).
const NO_UPDATE: u8 = 4;

/// What a message says of its client's name: nothing, that it has none, or its first label in lower case.
pub(super) fn said(opts: &DhcpOptions) -> Option<Option<String>> {
    let Some(DhcpOption::Unknown(option)) = opts.get(OptionCode::ClientFqdn) else { return None };
    let (flags, name) = option.data().split_first()?;
    let label = name.split_first().and_then(|(len, rest)| rest.get(..usize::from(*len)));
    Some(label.filter(|_| flags & NO_UPDATE == 0).and_then(hostname::label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::v6::UnknownOption;

    #[test]
    fn names() {
        let named = |name: &str| Some(Some(name.to_owned()));
        for (data, want) in [
            (&b""[..], None),
            (b"\x01", Some(None)),
            (b"\x01\x00", Some(None)),
            (b"\x01\x06laptop", named("laptop")),
            (b"\x00\x06LapTop\x07example\x00", named("laptop")),
            (b"\x05\x06laptop\x00", Some(None)),
            (b"\x01\x07laptop", Some(None)),
            (b"\x01\x03a_b\x00", Some(None)),
            (b"\x01\x09localhost\x00", Some(None)),
            (b"\x01\xc0\x0c", Some(None)),
        ] {
            let mut opts = DhcpOptions::new();
            opts.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFqdn, data.to_vec())));
            assert_eq!(said(&opts), want, "{data:?}");
        }
        assert_eq!(said(&DhcpOptions::new()), None);
    }
}
