//! IP protocol numbers, as the IPv4 and IPv6 headers have them (IANA's registry).

/// IPv6 hop-by-hop options (RFC 8200 section 4.3).
pub const IPPROTO_HOPOPTS: u8 = 0;
/// ICMP.
pub const IPPROTO_ICMP: u8 = 1;
/// IGMP.
pub const IPPROTO_IGMP: u8 = 2;
/// TCP.
pub const IPPROTO_TCP: u8 = 6;
/// UDP.
pub const IPPROTO_UDP: u8 = 17;
/// IPv6 routing header (RFC 8200 section 4.4).
pub const IPPROTO_ROUTING: u8 = 43;
/// IPv6 fragment header (RFC 8200 section 4.5).
pub const IPPROTO_FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
pub const IPPROTO_AH: u8 = 51;
/// ICMPv6.
pub const IPPROTO_ICMPV6: u8 = 58;
/// IPv6 destination options (RFC 8200 section 4.6).
pub const IPPROTO_DSTOPTS: u8 = 60;
/// PIM.
pub const IPPROTO_PIM: u8 = 103;
