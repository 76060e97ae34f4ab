//! Whether a flow of a macvlan interface may be opened: the rules are asked first, then the pools' defaults.

use crate::{
    maps::{CONFIG, child_at, endpoint, interface, is_local, is_of_device, network},
    policy_input::{PolicyInput, said},
    port_map,
    scratch::{Scratch, scratch},
};
use pv_net_common::{
    DropReason, EndpointInfo, InterfaceInfo, LinkId, Place, default_verdict,
    endpoint::POOL_DEVICE,
    policy::{POLICY_ALLOW, POLICY_DENY, POLICY_NOTHING},
};

/// Which way a packet goes, seen from the container.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// From the container.
    Outwards = 0,
    /// To the container.
    Inwards = 1,
}

impl Way {
    /// The opposite way.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Outwards => Self::Inwards,
            Self::Inwards => Self::Outwards,
        }
    }
}

/// Results of [`pv_child_may`]. Any other number means that a rule denies the flow.
const MAY: u32 = 0;
const ISOLATED: u32 = 1;
const HOST_ACCESS: u32 = 2;
const UNPUBLISHED: u32 = 3;
const FORGED: u32 = 4;
const DENIED: u32 = 5;

/// Whether the flow whose opener's key is in the scratch memory (`flow.origin`) may be opened, at the interface `link`.
/// `way`: which way the opener's packets go there.
#[inline(always)]
pub fn may_open(link: LinkId, way: Way) -> Result<(), DropReason> {
    match pv_child_may(link.number(), way as u32) {
        MAY => Ok(()),
        ISOLATED => Err(DropReason::PoolIsolated),
        HOST_ACCESS => Err(DropReason::HostAccess),
        UNPUBLISHED => Err(DropReason::Unpublished),
        FORGED => Err(DropReason::ForgedSource),
        _ => Err(DropReason::PolicyDenied),
    }
}

#[inline(always)]
fn at_endpoint(of: &EndpointInfo) -> (u32, Place<u32>) {
    (of.identity, Place::Pool { pool: of.pool_id, flags: of.pool_flags })
}

#[inline(always)]
fn at_interface(of: &InterfaceInfo) -> (u32, Place<u32>) {
    if of.pool_flags & POOL_DEVICE != 0 {
        return (0, Place::Device);
    }
    (of.identity, Place::Pool { pool: of.pool_id, flags: of.pool_flags })
}

/// Does the work of [`may_open`]. A global function, so that the verifier checks it once, and since the callers' stack
/// frames have no room for this.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_child_may(link: u32, way: u32) -> u32 {
    let Some(Scratch { flow, input, sides, .. }) = scratch() else { return DENIED };
    let Some(me) = interface(LinkId::of_index(link)) else { return DENIED };
    let Some(config) = CONFIG.get(0) else { return DENIED };
    *input = PolicyInput::of_key(&flow.origin);
    let (from, to, published);
    if way == Way::Outwards as u32 {
        from = at_interface(me);
        published = false;
        to = match child_at(input.dst, me.pool_id).or_else(|| endpoint(input.dst)) {
            Some(to) => at_endpoint(to),
            None if is_local(input.dst) => (0, Place::Device),
            // Nobody has this address of a pool whose containers are not behind a wire.
            None if network(input.dst).is_some() => return ISOLATED,
            None => (0, Place::World),
        };
    } else {
        to = at_interface(me);
        if flow.origin.link.is_outside() {
            // The program on the container's own interface would have noted this flow, or that on the device's. And nobody
            // else reaches the device by its own one.
            if child_at(input.src, me.pool_id).is_some() || is_of_device(input.src) || me.pool_flags & POOL_DEVICE != 0
            {
                return FORGED;
            }
            from = (0, Place::World);
            published = port_map::of(&flow.origin).is_some_and(|to| to.addr == input.dst);
        } else {
            let Some(sender) = interface(flow.origin.link) else { return DENIED };
            from = at_interface(sender);
            published = false;
        }
    }
    sides[0].identity = from.0;
    sides[1].identity = to.0;
    match if config.rules == 0 { POLICY_NOTHING } else { said(config.generation) } {
        POLICY_DENY => return DENIED,
        POLICY_ALLOW => return MAY,
        _ => {}
    }
    match default_verdict(from.1, to.1, input.proto, input.dport_be, published) {
        Ok(()) => MAY,
        Err(DropReason::PoolIsolated) => ISOLATED,
        Err(DropReason::HostAccess) => HOST_ACCESS,
        Err(DropReason::Unpublished) => UNPUBLISHED,
        Err(_) => DENIED,
    }
}
