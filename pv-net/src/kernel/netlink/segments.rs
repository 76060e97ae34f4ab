//! How large a TCP segment may be before it is cut for the wire: BIG TCP (kernel 5.19 for IPv6, 6.3 for IPv4).

use super::{Net, NetError};
use rtnetlink::packet_route::link::LinkAttribute;

/// BIG TCP's size, bytes: past it less CPU is saved than cache lost.
pub const BIG_SEGMENT: u32 = 262_144;
/// Without BIG TCP: what the length field of IPv4 holds, as the kernel has it.
pub const USUAL_SEGMENT: u32 = 65_536;

/// A group of attributes that one kernel version brought.
type Group = (&'static str, [fn(u32) -> LinkAttribute; 2]);

const GROUPS: [Group; 2] = [
    ("IPv6", [LinkAttribute::GsoMaxSize, LinkAttribute::GroMaxSize]),
    ("IPv4", [LinkAttribute::GsoIpv4MaxSize, LinkAttribute::GroIpv4MaxSize]),
];

impl Net {
    /// Sets the largest segments of a link. What the kernel refuses stays as it was: everything works without it.
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
