//! IP protocols by name.

use pv_net_common::ip_proto::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};

/// `tcp` for 6, and so on; the number itself for other protocols.
#[must_use]
pub fn proto_name(proto: u32) -> String {
    match u8::try_from(proto) {
        Ok(IPPROTO_ICMP) => "icmp".to_owned(),
        Ok(IPPROTO_TCP) => "tcp".to_owned(),
        Ok(IPPROTO_UDP) => "udp".to_owned(),
        Ok(IPPROTO_ICMPV6) => "icmpv6".to_owned(),
        _ => proto.to_string(),
    }
}
