//! Ipvlan interfaces. They are made, guarded and moved as macvlan interfaces are (`macvlan.rs`), but have the MAC of their
//! parent: the kernel tells them apart by addresses.

use super::LinkSpec;
use crate::kernel::netlink::{NetError, errno_of_new};
use rtnetlink::packet_route::link::{InfoData, InfoIpVlan, InfoKind, IpVlanFlags, IpVlanMode, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

/// The request for an interface on the link with index `parent`.
///
/// Mode and flags are those of all interfaces on the parent. In mode `l2` every packet that comes in passes the ingress hook
/// of the parent, and that of the interface. With the flag `vepa` what an interface sends to one address leaves by the parent,
/// whose program returns what is for another container; without it the kernel gives it to the other interface at once
/// (`ipvlan_xmit_mode_l2`), also from a container that has left out its own program.
pub(super) fn request(spec: &LinkSpec, parent: u32) -> LinkMessage {
    let data = vec![InfoIpVlan::Mode(IpVlanMode::L2), InfoIpVlan::Flags(IpVlanFlags::Vepa)];
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpVlan)
        .name(spec.host_if.to_string())
        .link(parent)
        .mtu(spec.mtu)
        .set_info_data(InfoData::IpVlan(data))
        .build()
}

/// Whether the kernel has ipvlan. Makes no link: the kernel is asked for one without a parent, which it refuses with `EINVAL`
/// (`ipvlan_link_new`). It answers `EOPNOTSUPP` when it has no ipvlan.
///
/// # Errors
/// When the kernel does not say, such as `EPERM` without `CAP_NET_ADMIN`.
pub fn is_known() -> Result<bool, NetError> {
    let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpVlan)
        .name("pv-ipvlan".to_owned())
        .set_info_data(InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L2)]))
        .build();
    match errno_of_new("look for ipvlan", message)? {
        libc::EINVAL => Ok(true),
        libc::EOPNOTSUPP => Ok(false),
        other => Err(NetError::refused("look for ipvlan", "by a link that cannot be made", other)),
    }
}
