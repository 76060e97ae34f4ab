//! Addresses as the maps hold them: 128 bits for both families, in network order.

/// An IP address; IPv4 is IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// Four words in network byte order, so that the programs load and compare words, not bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ip {
    /// The address, most significant word first, each in network byte order.
    pub words_be: [u32; 4],
}

const _: () = assert!(size_of::<Ip>() == 16);

/// The third word of an IPv4-mapped address, in network byte order.
pub const V4_MARK_BE: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `::`
    pub const UNSPECIFIED: Self = Self { words_be: [0; 4] };

    /// An IPv4 address whose four octets are `word` in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_be(word: u32) -> Self {
        Self { words_be: [0, 0, V4_MARK_BE, word] }
    }

    /// The address with these sixteen octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            words_be: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// The sixteen octets in network order.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let w = [
            self.words_be[0].to_ne_bytes(),
            self.words_be[1].to_ne_bytes(),
            self.words_be[2].to_ne_bytes(),
            self.words_be[3].to_ne_bytes(),
        ];
        [
            w[0][0], w[0][1], w[0][2], w[0][3], w[1][0], w[1][1], w[1][2], w[1][3], w[2][0], w[2][1], w[2][2], w[2][3],
            w[3][0], w[3][1], w[3][2], w[3][3],
        ]
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == V4_MARK_BE
    }

    /// Whether no bit is set.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        self.words_be[0] | self.words_be[1] | self.words_be[2] | self.words_be[3] == 0
    }

    /// Whether this is an IPv6 link-local address (RFC 4291 section 2.5.6).
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        u32::from_be(self.words_be[0]) >> 22 == 0xfe80 >> 6
    }

    /// Whether this is a loopback address: 127.0.0.0/8 or `::1` (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.words_be;
        if self.is_v4() { u32::from_be(d) >> 24 == 127 } else { a | b | c == 0 && d == 1_u32.to_be() }
    }

    /// Whether this is a multicast address (RFC 1112, RFC 4291 section 2.7).
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.words_be[3]) >> 28 == 0xe;
        }
        u32::from_be(self.words_be[0]) >> 24 == 0xff
    }

    /// Whether this is 255.255.255.255.
    #[inline(always)]
    #[must_use]
    pub const fn is_limited_broadcast(self) -> bool {
        self.is_v4() && self.words_be[3] == u32::MAX
    }

    /// Whether this names nobody: 0.0.0.0/8 or `::` (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.2).
    #[inline(always)]
    #[must_use]
    pub const fn is_nobody(self) -> bool {
        if self.is_v4() { u32::from_be(self.words_be[3]) >> 24 == 0 } else { self.is_unspecified() }
    }

    /// Whether this means something on its own link alone: 169.254.0.0/16 (RFC 3927) or `fe80::/10`.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_scoped(self) -> bool {
        if self.is_v4() { u32::from_be(self.words_be[3]) >> 16 == 0xa9fe } else { self.is_link_local() }
    }

    /// A link-local address as a key of the `endpoints` map: the second word, which is zero in the address itself, has
    /// the pool's number, because containers of two pools may have the same link-local address.
    #[inline(always)]
    #[must_use]
    pub const fn of_pool(self, pool_id: u32) -> Self {
        let [a, _, c, d] = self.words_be;
        Self { words_be: [a, pool_id.to_be(), c, d] }
    }

    /// The IPv6 link-local address that `mac` gives (modified EUI-64, RFC 4291 appendix A).
    #[must_use]
    pub const fn link_local(mac: [u8; 6]) -> Self {
        Self::from_octets([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            mac[0] ^ 2,
            mac[1],
            mac[2],
            0xff,
            0xfe,
            mac[3],
            mac[4],
            mac[5],
        ])
    }

    /// The MAC that gives this address, if it is one of [`link_local`](Self::link_local).
    #[inline(always)]
    #[must_use]
    pub const fn link_local_mac(self) -> [u8; 6] {
        let [a, b, c, _] = self.words_be[2].to_ne_bytes();
        let [_, d, e, f] = self.words_be[3].to_ne_bytes();
        [a ^ 2, b, c, d, e, f]
    }
}

impl From<core::net::Ipv4Addr> for Ip {
    fn from(a: core::net::Ipv4Addr) -> Self {
        Self::from_v4_be(u32::from_ne_bytes(a.octets()))
    }
}

impl From<core::net::Ipv6Addr> for Ip {
    fn from(a: core::net::Ipv6Addr) -> Self {
        Self::from_octets(a.octets())
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(a: core::net::IpAddr) -> Self {
        match a {
            core::net::IpAddr::V4(a) => a.into(),
            core::net::IpAddr::V6(a) => a.into(),
        }
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(a: Ip) -> Self {
        core::net::Ipv6Addr::from(a.octets()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::Ip;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn both_families_go_there_and_back() {
        for a in [IpAddr::V4(Ipv4Addr::new(10, 0, 3, 7)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x5056, 0, 0, 0, 0, 0, 9))] {
            let ip = Ip::from(a);
            assert_eq!(IpAddr::from(ip), a);
            assert_eq!(ip.is_v4(), a.is_ipv4());
        }
    }

    #[test]
    fn a_link_local_address_is_of_a_pool() {
        let ip = Ip::link_local([2, 0, 10, 0, 3, 7]);
        assert!(ip.is_link_local() && ip.of_pool(5).is_link_local());
        let want = Ipv6Addr::new(0xfe80, 0, 0, 5, 0, 0x0aff, 0xfe00, 0x307);
        assert_eq!(IpAddr::from(ip.of_pool(5)), want);
        for other in ["10.0.3.7", "fd00::1", "fec0::1", "ff02::1", "::"] {
            assert!(!Ip::from(other.parse::<IpAddr>().expect("an address")).is_link_local(), "{other}");
        }
    }

    #[test]
    fn kinds_of_addresses() {
        let is = |text: &str| {
            let ip = Ip::from(text.parse::<IpAddr>().expect("an address"));
            let kinds =
                [ip.is_loopback(), ip.is_multicast(), ip.is_limited_broadcast(), ip.is_nobody(), ip.is_link_scoped()];
            kinds.iter().position(|is| *is).filter(|_| kinds.iter().filter(|is| **is).count() == 1)
        };
        for (kind, addresses) in [
            (Some(0), &["127.0.0.1", "127.255.0.9", "::1"][..]),
            (Some(1), &["224.0.0.1", "239.255.255.250", "ff02::1", "ff05::2"]),
            (Some(2), &["255.255.255.255"]),
            (Some(3), &["0.0.0.0", "0.1.2.3", "::"]),
            (Some(4), &["169.254.0.1", "fe80::1", "febf::1"]),
            (None, &["10.0.3.1", "128.0.0.1", "240.0.0.1", "::2", "fec0::1", "fd00::1", "2001:db8::1"]),
        ] {
            for address in addresses {
                assert_eq!(is(address), kind, "{address}");
            }
        }
    }

    #[test]
    fn link_local_follows_eui64() {
        let ll = IpAddr::from(Ip::link_local([0x02, 0, 0x0a, 0, 3, 7]));
        assert_eq!(Ip::from(ll).link_local_mac(), [0x02, 0, 0x0a, 0, 3, 7]);
        assert_eq!(ll, IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x0aff, 0xfe00, 0x0307)));
    }
}
