//! Router solicitations, which hosts send.

use std::net::Ipv6Addr;

/// ICMPv6 type of a solicitation (RFC 4861 section 4.1).
pub const SOLICITATION: u8 = 133;
/// A packet with this hop limit has not been forwarded by a router.
const ON_LINK: u8 = 255;
const SOURCE_LINK_LAYER: u8 = 1;

/// Whether an ICMPv6 message is a valid solicitation (RFC 4861 section 6.1.1). The kernel has verified its checksum.
#[must_use]
pub fn is_valid(message: &[u8], from: Ipv6Addr, hops: u8) -> bool {
    let Some((head, mut options)) = message.split_at_checked(8) else { return false };
    if hops != ON_LINK || head[..2] != [SOLICITATION, 0] || from.is_multicast() || from.is_loopback() {
        return false;
    }
    while let Some((kind, units)) = options.first().zip(options.get(1)) {
        let Some(rest) = options.get(usize::from(*units) * 8..) else { return false };
        // A host without an address must not send its MAC.
        if *units == 0 || *kind == SOURCE_LINK_LAYER && from.is_unspecified() {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solicitation_is_what_the_rfc_says() {
        let host: Ipv6Addr = "fe80::1".parse().expect("an address");
        let none = Ipv6Addr::UNSPECIFIED;
        let plain = [133, 0, 0, 0, 0, 0, 0, 0];
        let with = |option: &[u8]| [&plain[..], option].concat();
        let mac = with(&[1, 1, 2, 0, 0, 0, 0, 1]);
        for (name, message, from, hops, want) in [
            ("plain", &plain[..], host, 255, true),
            ("of a host without an address", &plain, none, 255, true),
            ("with its MAC", &mac, host, 255, true),
            ("with a MAC of nobody", &mac, none, 255, false),
            ("with an unknown option", &with(&[200, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), none, 255, true),
            ("forwarded", &plain, host, 254, false),
            ("from a group", &plain, "ff02::1".parse().expect("an address"), 255, false),
            ("from itself", &plain, Ipv6Addr::LOCALHOST, 255, false),
            ("with a code", &[133, 1, 0, 0, 0, 0, 0, 0], host, 255, false),
            ("an advertisement", &[134, 0, 0, 0, 0, 0, 0, 0], host, 255, false),
            ("too short", &plain[..7], host, 255, false),
            ("empty", &[], host, 255, false),
            ("an option of no length", &with(&[200, 0, 0, 0, 0, 0, 0, 0]), host, 255, false),
            ("an option that is cut", &with(&[200, 2, 0, 0, 0, 0, 0, 0]), host, 255, false),
            ("half an option", &with(&[200]), host, 255, false),
        ] {
            assert_eq!(is_valid(message, from, hops), want, "{name}");
        }
    }
}
