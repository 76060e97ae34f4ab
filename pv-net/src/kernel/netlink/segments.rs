//! The size of TCP segments before they are split for the wire: BIG TCP (kernel 5.19 for IPv6, 6.3 for IPv4).

use super::{Net, NetError};
use rtnetlink::packet_route::link::LinkAttribute;

/// The size with BIG TCP, in bytes. With larger segments the cache misses cost more than is saved.
pub const BIG_SEGMENT: u32 = 262_144;
/// The size without BIG TCP, in bytes: the kernel's default, which fits IPv4's length field.
pub const USUAL_SEGMENT: u32 = 65_536;

/// The attributes for one family; each family came with its own kernel version.
type Group = (&'static str, [fn(u32) -> LinkAttribute; 2]);

const GROUPS: [Group; 2] = [
    ("IPv6", [LinkAttribute::GsoMaxSize, LinkAttribute::GroMaxSize]),
    ("IPv4", [LinkAttribute::GsoIpv4MaxSize, LinkAttribute::GroIpv4MaxSize]),
];

impl Net {
    /// Sets the largest segments of a link, in bytes. What the kernel refuses stays as it was; everything works without
    /// it.
    pub async fn set_segment_bytes(&self, name: &str, index: u32, bytes: u32) {
        for (family, attributes) in GROUPS {
            let set = |l: rtnetlink::LinkMessageBuilder<rtnetlink::LinkUnspec>| {
                attributes.iter().fold(l, |l, attribute| l.append_extra_attribute(attribute(bytes)))
            };
            let done: Result<(), NetError> = self.set_link(name, index, set).await;
            if let Err(e) = done {
                tracing::debug!(link = name, family, bytes, error = %e, "segment size");
            }
        }
    }
}
