//! Whether a flow is allowed: the rules are asked first, then the pools' defaults.

use crate::{
    maps::{CONFIG, endpoint_at, interface, is_local},
    policy,
    port_map::Target,
    scratch::{AT_DEVICE, AT_GATEWAY, Scratch, scratch},
};
use pv_net_common::{
    DropReason, EndpointInfo, FlowEntry, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, Place, default_verdict,
    flow::{FLOW_DEVICE, FLOW_REPLY},
    policy::{POLICY_ALLOW, POLICY_DENY, POLICY_NOTHING},
};

pub use crate::scratch::PolicyInput;

/// The address by which the rules know the container behind the link `me`: the one of the family, or of the other
/// family if it has none.
#[inline(always)]
pub fn own_address(v4: bool, me: &InterfaceInfo) -> Ip {
    let (first, other) = if v4 { (me.addr4, me.addr6) } else { (me.addr6, me.addr4) };
    if first.is_unspecified() { other } else { first }
}

/// A container at one end of a flow, as rules and defaults see it.
#[derive(Clone, Copy)]
pub struct End {
    identity: u32,
    pool: u32,
    flags: u32,
}

impl End {
    #[inline(always)]
    fn place(self) -> Place<u32> {
        Place::Pool { pool: self.pool, flags: self.flags }
    }
}

impl From<&EndpointInfo> for End {
    #[inline(always)]
    fn from(of: &EndpointInfo) -> Self {
        Self { identity: of.identity, pool: of.pool_id, flags: of.pool_flags }
    }
}

impl From<&InterfaceInfo> for End {
    #[inline(always)]
    fn from(of: &InterfaceInfo) -> Self {
        Self { identity: of.identity, pool: of.pool_id, flags: of.pool_flags }
    }
}

impl PolicyInput {
    /// The question that an entry was decided by; a packet with `key` has hit it.
    #[inline(always)]
    pub fn of_entry(key: &FlowKey, entry: &FlowEntry) -> Self {
        if entry.flags & FLOW_REPLY != 0 {
            return Self {
                src: entry.dst,
                dst: key.src,
                link: key.link,
                proto: key.proto,
                dport_be: key.sport_be,
                published: entry.src != key.src,
                device: 0,
            };
        }
        Self { dst: entry.dst, dport_be: entry.dport_be, published: entry.dst != key.dst, ..Self::of_key(key) }
    }

    /// The question about a flow whose packets have `key`, with no translation.
    #[inline(always)]
    pub fn of_key(key: &FlowKey) -> Self {
        let FlowKey { src, dst, link, proto, dport_be, .. } = *key;
        Self { src, dst, link, proto, dport_be, published: false, device: 0 }
    }

    /// [`of_key`](Self::of_key) for a sender that may not have an address yet: it counts as the container behind the
    /// link `me`.
    #[inline(always)]
    pub fn of_sender(key: &FlowKey, me: &InterfaceInfo) -> Self {
        let src = if key.src.is_nobody() { own_address(key.dst.is_v4(), me) } else { key.src };
        Self { src, ..Self::of_key(key) }
    }

    /// The question that a note was made for: a flow whose other end is the host's stack.
    #[inline(always)]
    pub fn of_note(open: &HalfOpenFlow) -> Self {
        let input = Self::of_key(&open.origin);
        let device = if open.reply.flags & FLOW_DEVICE != 0 { input.way_in() } else { 0 };
        Self { device, ..input }
    }

    /// For a flow that ends at the device: [`AT_GATEWAY`] or [`AT_DEVICE`], by its destination. A link-local address
    /// counts as the gateway, since it is the bridge's.
    #[inline(always)]
    fn way_in(&self) -> u8 {
        let by_gateway = self.dst.is_link_local() || interface(self.link).is_some_and(|me| is_gateway(self.dst, me));
        if by_gateway { AT_GATEWAY } else { AT_DEVICE }
    }

    /// The same flow, ending at the device by a group. For rules and defaults its destination is the gateway of `me`.
    #[inline(always)]
    pub fn to_device_of(self, me: &InterfaceInfo) -> Self {
        Self { dst: gateway_of(self.dst.is_v4(), me), device: AT_GATEWAY, ..self }
    }

    /// The question about a flow to a container: by a published port that leads to `to`, or directly when `to` is the
    /// packet's own destination.
    #[inline(always)]
    pub fn of_target(key: &FlowKey, to: &Target) -> Self {
        Self { dst: to.addr, dport_be: to.port_be, published: to.addr != key.dst, ..Self::of_key(key) }
    }

    /// Whether a flow is allowed from one container to another. `from` is taken from the sender's link, so that the
    /// sender's address needs no look-up.
    #[inline(always)]
    pub fn may_pass(&self, from: End, to: End) -> Result<(), DropReason> {
        match self.rules(from.identity, to.identity) {
            POLICY_DENY => Err(DropReason::PolicyDenied),
            POLICY_ALLOW => Ok(()),
            // The published port was named by an address of the device, so the sender asks for the device.
            _ if self.published => self.default(from.place(), Place::Device, true),
            _ => self.default(from.place(), to.place(), false),
        }
    }

    /// Whether a flow is allowed from the container with identity `from` to the outside. Only a rule can deny that, no
    /// default does.
    #[inline(always)]
    pub fn may_leave(&self, from: u32) -> Result<(), DropReason> {
        if self.rules(from, 0) == POLICY_DENY { Err(DropReason::PolicyDenied) } else { Ok(()) }
    }

    /// Whether a flow is allowed from the outside into a container. The caller has checked that the source is no
    /// address of the device or of a pool.
    #[inline(always)]
    pub fn may_come_in(&self, to: End) -> Result<(), DropReason> {
        match self.rules(0, to.identity) {
            POLICY_DENY => Err(DropReason::PolicyDenied),
            POLICY_ALLOW => Ok(()),
            _ => self.default(Place::World, to.place(), self.published),
        }
    }

    /// Whether the flow is allowed, by rules and defaults; the ends are found by their addresses.
    #[inline(always)]
    pub fn allowed(&self) -> Result<(), DropReason> {
        self.may(false)
    }

    /// Like [`allowed`](Self::allowed), but with `goes_on` only a rule can deny the flow, not the defaults.
    #[inline(always)]
    pub fn may(&self, goes_on: bool) -> Result<(), DropReason> {
        let Some(scratch) = scratch() else { return Err(DropReason::PolicyDenied) };
        scratch.input = *self;
        may(goes_on)
    }

    #[inline(always)]
    fn default(&self, from: Place<u32>, to: Place<u32>, published: bool) -> Result<(), DropReason> {
        default_verdict(from, to, self.proto, self.dport_be, published)
    }

    /// What the rules say. Written so that it needs little stack, of which the callers have hardly any left.
    #[inline(always)]
    fn rules(&self, from: u32, to: u32) -> u32 {
        let Some((config, scratch)) = CONFIG.get(0).zip(scratch()) else { return POLICY_DENY };
        if config.rules == 0 {
            return POLICY_NOTHING;
        }
        scratch.input = *self;
        scratch.sides[0].identity = from;
        scratch.sides[1].identity = to;
        pv_said(config.generation)
    }
}

/// Asks again about the flow that was asked about last, which ends at the device by an address that only the kernel
/// knows to be local. For the rules its destination is now the gateway of the sender's pool.
#[inline(always)]
pub fn may_at_device() -> Result<(), DropReason> {
    if pv_at_device() != 0 { may(false) } else { Err(DropReason::PolicyDenied) }
}

/// Changes the question in the scratch memory for [`may_at_device`]. Returns 0 if the sender's interface is unknown. A
/// global function as [`pv_said`] is, since the caller's stack frame has no room for this.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_at_device() -> u32 {
    let Some(Scratch { input, .. }) = scratch() else { return 0 };
    let Some(me) = interface(input.link) else { return 0 };
    input.device = input.way_in();
    input.dst = gateway_of(input.dst.is_v4(), me);
    1
}

/// The gateway address of the pool of `me`: of this family, or of the other one if the pool has none of this.
#[inline(always)]
fn gateway_of(v4: bool, me: &InterfaceInfo) -> Ip {
    let (first, other) = if v4 { (me.gateway4, me.gateway6) } else { (me.gateway6, me.gateway4) };
    if first.is_unspecified() { other } else { first }
}

#[inline(always)]
fn is_gateway(addr: Ip, me: &InterfaceInfo) -> bool {
    addr == me.gateway4 || addr == me.gateway6
}

#[inline(always)]
fn may(goes_on: bool) -> Result<(), DropReason> {
    match pv_may(u32::from(goes_on)) {
        MAY => Ok(()),
        ISOLATED => Err(DropReason::PoolIsolated),
        HOST_ACCESS => Err(DropReason::HostAccess),
        UNPUBLISHED => Err(DropReason::Unpublished),
        _ => Err(DropReason::PolicyDenied),
    }
}

/// What the rules of `generation` say about the flow in the scratch memory, between the identities there. A global
/// function, so that the verifier checks it once and not at each call with everything that the caller knows.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_said(generation: u32) -> u32 {
    said(generation)
}

#[inline(always)]
pub fn said(generation: u32) -> u32 {
    let Some(Scratch { input, sides, .. }) = scratch() else { return POLICY_DENY };
    sides[0].addr = input.src;
    sides[1].addr = input.dst;
    policy::verdict(generation, &sides[0], &sides[1], input.proto as u8, input.dport_be).action
}

/// Results of [`pv_may`]. Any other number means that a rule denies the flow.
const MAY: u32 = 0;
const ISOLATED: u32 = 1;
const HOST_ACCESS: u32 = 2;
const UNPUBLISHED: u32 = 3;
const DENIED: u32 = 4;

/// Whether the flow in the scratch memory is allowed, by who its ends are. A global function for the same reason as
/// [`pv_said`]. It does not call that one: their two stack frames and the caller's together would exceed the stack.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_may(goes_on: u32) -> u32 {
    let Some(Scratch { input, sides, .. }) = scratch() else { return DENIED };
    let (from, to) = (endpoint_at(input.src, input.link), endpoint_at(input.dst, input.link));
    let Some(config) = CONFIG.get(0) else { return DENIED };
    sides[0].identity = from.map_or(0, |e| e.identity);
    sides[1].identity = to.map_or(0, |e| e.identity);
    let rules = if config.rules == 0 { POLICY_NOTHING } else { said(config.generation) };
    match rules {
        POLICY_DENY => return DENIED,
        POLICY_ALLOW => return MAY,
        _ if goes_on != 0 => return MAY,
        _ => {}
    }
    let pool = |end: &EndpointInfo| End::from(end).place();
    let default = match (from, to) {
        // The published port was named by an address of the device, so the sender asks for the device.
        (Some(from), Some(_)) if input.published => input.default(pool(from), Place::Device, true),
        (Some(from), Some(to)) => input.default(pool(from), pool(to), false),
        (Some(from), None) if input.device != 0 || is_local(input.dst) => {
            let way_in = if input.device != 0 { input.device } else { input.way_in() };
            let place = if way_in == AT_GATEWAY { Place::Gateway } else { Place::Device };
            input.default(pool(from), place, false)
        }
        // No container is involved, so no pool's setting can allow it.
        (None, None) if input.device != 0 => return HOST_ACCESS,
        (None, Some(to)) if !input.published && !is_local(input.src) => input.default(Place::World, pool(to), false),
        _ => return MAY,
    };
    match default {
        Ok(()) => MAY,
        Err(DropReason::PoolIsolated) => ISOLATED,
        Err(DropReason::HostAccess) => HOST_ACCESS,
        Err(DropReason::Unpublished) => UNPUBLISHED,
        Err(_) => DENIED,
    }
}
