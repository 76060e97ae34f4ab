//! A netkit pair in mode L2, in the place of a veth pair (`veth.rs`). The primary end is on the device: only by that one
//! can programs be attached to the pair, and its settings be changed (`netkit_dev_fetch`, `netkit_change_link` in
//! `drivers/net/netkit.c`), so a container cannot do it by its end. pv-net attaches none: its programs are where they are
//! on a veth, at the ends' tcx hooks.
//!
//! The pair lets packets pass without a program, and clears marks and priority of what changes its namespace: both are the
//! kernel's defaults.

use super::LinkSpec;
use crate::kernel::netlink::{NetError, errno_of_new};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoNetkit, LinkMessage, NetkitMode};
use rtnetlink::{LinkMessageBuilder, LinkNetkit};

/// The request for a netkit pair with this other end.
pub(super) fn pair(spec: &LinkSpec, bridge: u32, peer: LinkMessage) -> LinkMessage {
    LinkMessageBuilder::<LinkNetkit>::new_with_info_kind(InfoKind::Netkit)
        .name(spec.host_if.to_string())
        .mtu(spec.mtu)
        .controller(bridge)
        .set_info_data(InfoData::Netkit(vec![InfoNetkit::Mode(NetkitMode::L2), InfoNetkit::Peer(peer)]))
        .build()
}

/// Whether the kernel can make netkit pairs whose ends are given a MAC. Makes no link: the kernel is asked for one with a
/// multicast MAC, which it refuses with `EADDRNOTAVAIL` before it makes anything (`netkit_validate`). It answers
/// `EOPNOTSUPP` when it has no netkit, and before 6.12 to any MAC.
///
/// # Errors
/// When the kernel does not say, such as `EPERM` without `CAP_NET_ADMIN`.
pub fn is_known() -> Result<bool, NetError> {
    let message = LinkMessageBuilder::<LinkNetkit>::new_with_info_kind(InfoKind::Netkit)
        .name("pv-netkit".to_owned())
        .address(vec![1, 0, 0, 0, 0, 0])
        .set_info_data(InfoData::Netkit(vec![InfoNetkit::Mode(NetkitMode::L2)]))
        .build();
    match errno_of_new("look for netkit", message)? {
        libc::EADDRNOTAVAIL => Ok(true),
        libc::EOPNOTSUPP => Ok(false),
        other => Err(NetError::refused("look for netkit", "by a link that cannot be made", other)),
    }
}
