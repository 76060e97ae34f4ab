//! Reverse names: `7.3.0.10.in-addr.arpa` and `….ip6.arpa` (RFC 1035 section 3.5, RFC 3596 section 2.5), and those
//! about which no outside server is asked (RFC 6303, RFC 7793).

use super::name::{self, Name};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

const V4: [&[u8]; 2] = [b"arpa", b"in-addr"];
const V6: [&[u8]; 2] = [b"arpa", b"ip6"];

/// Networks whose reverse names mean something else on each device, with the prefix length of the zone. From RFC 6303
/// section 4, RFC 7793 and RFC 6761 section 6.1.
const LOCAL: [([u8; 4], u8, u8); 11] = [
    ([0, 0, 0, 0], 8, 8),
    ([10, 0, 0, 0], 8, 8),
    ([100, 64, 0, 0], 10, 16),
    ([127, 0, 0, 0], 8, 8),
    ([169, 254, 0, 0], 16, 16),
    ([172, 16, 0, 0], 12, 16),
    ([192, 0, 2, 0], 24, 24),
    ([192, 168, 0, 0], 16, 16),
    ([198, 51, 100, 0], 24, 24),
    ([203, 0, 113, 0], 24, 24),
    ([255, 255, 255, 255], 32, 32),
];
const LOCAL6: [(u128, u8, u8); 5] =
    [(0, 128, 128), (1, 128, 128), (0xfd << 120, 8, 8), (0xfe80 << 112, 10, 12), (0x2001_0db8 << 96, 32, 32)];

/// The content of a reverse name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// The address, or its network when the name has fewer labels.
    pub net: IpNetwork,
    /// Whether the name has labels in front that do not belong to an address.
    pub is_strange: bool,
}

impl Reverse {
    /// Parses `name`, which is in lower case; `None` when it is no reverse name. hickory-proto parses these names too,
    /// but it takes `01` for `1`, and rejects names below an address.
    #[must_use]
    pub fn parse(name: &Name) -> Option<Self> {
        let mut labels = name.iter().rev();
        let above = [labels.next()?, labels.next()?];
        let v4 = above == V4;
        if !v4 && above != V6 {
            return None;
        }
        let (parts, radix, bits) = if v4 { (4, 10, 8) } else { (32, 16, 4) };
        let (mut addr, mut used) = (0_u128, 0_u8);
        for label in labels.take(parts) {
            let Some(part) = part(label, radix) else { break };
            addr = addr << bits | u128::from(part);
            used += 1;
        }
        let is_strange = usize::from(used) + above.len() < name::labels(name);
        let prefix = used * bits;
        let net = if v4 {
            let addr = (addr as u32).checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpNetwork::new(IpAddr::V4(addr.into()), prefix)
        } else {
            let addr = addr.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpNetwork::new(IpAddr::V6(addr.into()), prefix)
        };
        net.ok().map(|net| Self { net, is_strange })
    }

    /// The address, when the name has all of its labels.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        let all = if self.net.is_ipv4() { 32 } else { 128 };
        (self.net.prefix() == all && !self.is_strange).then(|| self.net.ip())
    }

    /// The prefix length of this device's own zone with the name; `None` when outside servers have it.
    #[must_use]
    pub fn local_zone(&self) -> Option<u8> {
        let inside = |net: IpAddr, bits: u8, zone: u8| {
            let holds = IpNetwork::new(net, bits).is_ok_and(|n| n.contains(self.net.ip()));
            (holds && self.net.prefix() >= zone).then_some(zone)
        };
        if self.net.is_ipv4() {
            LOCAL.iter().find_map(|(net, bits, zone)| inside((*net).into(), *bits, *zone))
        } else {
            LOCAL6.iter().find_map(|(net, bits, zone)| inside(IpAddr::V6((*net).into()), *bits, *zone))
        }
    }

    /// The number of labels of a reverse zone with this prefix length.
    #[must_use]
    pub fn labels_of(is_ipv4: bool, bits: u8) -> usize {
        2 + usize::from(bits / if is_ipv4 { 8 } else { 4 })
    }
}

fn part(label: &[u8], radix: u32) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_hexdigit()) && (text.len() == 1 || !text.starts_with('0'));
    let value = u8::from_str_radix(text, radix).ok().filter(|_| plain)?;
    (radix == 10 || text.len() == 1).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_addresses_and_who_has_them() {
        for (text, net, strange, zone) in [
            ("7.3.0.10.in-addr.arpa", "10.0.3.7/32", false, Some(8)),
            ("3.0.10.in-addr.arpa", "10.0.3.0/24", false, Some(8)),
            ("172.in-addr.arpa", "172.0.0.0/8", false, None),
            ("20.172.in-addr.arpa", "172.20.0.0/16", false, Some(16)),
            ("32.172.in-addr.arpa", "172.32.0.0/16", false, None),
            ("1.1.1.1.in-addr.arpa", "1.1.1.1/32", false, None),
            ("x.10.in-addr.arpa", "10.0.0.0/8", true, Some(8)),
            ("256.10.in-addr.arpa", "10.0.0.0/8", true, Some(8)),
            ("01.10.in-addr.arpa", "10.0.0.0/8", true, Some(8)),
            ("1.7.3.0.10.in-addr.arpa", "10.0.3.7/32", true, Some(8)),
            ("d.f.ip6.arpa", "fd00::/8", false, Some(8)),
            ("ip6.arpa", "::/0", false, None),
            ("8.e.f.ip6.arpa", "fe80::/12", false, Some(12)),
            ("10.d.f.ip6.arpa", "fd00::/8", true, Some(8)),
        ] {
            let name = name::from_text(text).expect("name");
            let got = Reverse::parse(&name).expect(text);
            let want = Reverse { net: net.parse().expect("net"), is_strange: strange };
            assert_eq!((got, got.local_zone()), (want, zone), "{text}");
        }
        assert_eq!(Reverse::parse(&name::from_text("arpa").expect("name")), None);
        let name = name::from_text("7.3.0.10.in-addr.arpa").expect("name");
        assert_eq!((Reverse::labels_of(true, 8), Reverse::labels_of(false, 32)), (3, 10));
        assert_eq!(Reverse::parse(&name).and_then(|r| r.address()), Some([10, 0, 3, 7].into()));
    }
}
