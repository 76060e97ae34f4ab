//! Whether a flow may be: the rules, then the defaults.

use crate::{
    maps::{CONFIG, endpoint_at, is_local},
    policy,
    port_map::Target,
    scratch::{Scratch, scratch},
};
use pv_net_common::{
    DropReason, EndpointInfo, FlowEntry, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, Place, default_verdict,
    flow::{FLOW_DEVICE, FLOW_REPLY},
    policy::{POLICY_ALLOW, POLICY_DENY, POLICY_NOTHING},
};

pub use crate::scratch::PolicyInput;

/// The address by which rules know the container behind the link `me`: of this family, if it has one.
#[inline(always)]
pub fn own_address(v4: bool, me: &InterfaceInfo) -> Ip {
    let (first, other) = if v4 { (me.addr4, me.addr6) } else { (me.addr6, me.addr4) };
    if first.is_unspecified() { other } else { first }
}

impl PolicyInput {
    /// What the entry that a packet with `key` hit was decided for.
    #[inline(always)]
    pub fn of_entry(key: &FlowKey, entry: &FlowEntry) -> Self {
        if entry.flags & FLOW_REPLY != 0 {
            return Self {
                src: entry.dst,
                dst: key.src,
                link: key.ifindex,
                proto: key.proto,
                dport_be: key.sport_be,
                published: entry.src != key.src,
                device: false,
            };
        }
        Self { dst: entry.dst, dport_be: entry.dport_be, published: entry.dst != key.dst, ..Self::of_key(key) }
    }

    /// What a container with `key` asks for when it is what the packet says.
    #[inline(always)]
    pub fn of_key(key: &FlowKey) -> Self {
        let FlowKey { src, dst, ifindex, proto, dport_be, .. } = *key;
        Self { src, dst, link: ifindex, proto, dport_be, published: false, device: false }
    }

    /// The same, of who may not have an address yet: it is asked as the container behind the link `me`.
    #[inline(always)]
    pub fn of_sender(key: &FlowKey, me: &InterfaceInfo) -> Self {
        let src = if key.src.is_nobody() { own_address(key.dst.is_v4(), me) } else { key.src };
        Self { src, ..Self::of_key(key) }
    }

    /// What the note of a flow with the host's stack at one end was made for.
    #[inline(always)]
    pub fn of_note(open: &HalfOpenFlow) -> Self {
        Self { device: open.reply.flags & FLOW_DEVICE != 0, ..Self::of_key(&open.origin) }
    }

    /// The same flow when it ends at the device by an address that only the kernel knows, or by a group: for the rules
    /// that is the gateway of `me`.
    #[inline(always)]
    pub fn to_device_of(self, me: &InterfaceInfo) -> Self {
        let (first, other) = if self.dst.is_v4() { (me.gateway4, me.gateway6) } else { (me.gateway6, me.gateway4) };
        let gateway = if first.is_unspecified() { other } else { first };
        Self { dst: gateway, device: true, ..self }
    }

    /// The same, of one who came by a published port that leads to `to`; or straight, when that is the destination.
    #[inline(always)]
    pub fn of_target(key: &FlowKey, to: &Target) -> Self {
        Self { dst: to.addr, dport_be: to.port_be, published: to.addr != key.dst, ..Self::of_key(key) }
    }

    #[inline(always)]
    fn ends(&self) -> (Option<&'static EndpointInfo>, Option<&'static EndpointInfo>) {
        (endpoint_at(self.src, self.link), endpoint_at(self.dst, self.link))
    }

    /// Whether the flow may be.
    #[inline(always)]
    pub fn allowed(&self) -> Result<(), DropReason> {
        self.may(false)
    }

    /// The same; for what `goes_on` no rule forbids it, whatever the defaults say.
    #[inline(always)]
    pub fn may(&self, goes_on: bool) -> Result<(), DropReason> {
        let (from, to) = self.ends();
        match self.rules(from, to) {
            POLICY_DENY => return Err(DropReason::PolicyDenied),
            POLICY_ALLOW => return Ok(()),
            _ if goes_on => return Ok(()),
            _ => {}
        }
        let pool = |end: &EndpointInfo| Place::Pool { pool: end.pool_id, flags: end.pool_flags };
        match (from, to) {
            // By an address of the device.
            (Some(from), Some(_)) if self.published => self.default(pool(from), Place::Device, true),
            (Some(from), Some(to)) => self.default(pool(from), pool(to), false),
            (Some(from), None) if self.device || is_local(self.dst) => self.default(pool(from), Place::Device, false),
            // Nobody knows who asks.
            (None, None) if self.device => Err(DropReason::HostAccess),
            (None, Some(to)) if !self.published && !is_local(self.src) => self.default(Place::World, pool(to), false),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn default(&self, from: Place<u32>, to: Place<u32>, published: bool) -> Result<(), DropReason> {
        default_verdict(from, to, self.proto, self.dport_be, published)
    }

    #[inline(always)]
    fn rules(&self, from: Option<&EndpointInfo>, to: Option<&EndpointInfo>) -> u32 {
        let Some(config) = CONFIG.get(0) else { return POLICY_DENY };
        if config.rules == 0 {
            return POLICY_NOTHING;
        }
        let Some(scratch) = scratch() else { return POLICY_DENY };
        scratch.input = *self;
        pv_said(config.generation, from.map_or(0, |e| e.identity), to.map_or(0, |e| e.identity))
    }
}

/// What the rules say of the question in the scratch memory: a function of its own, for the callers have little stack
/// left. A global one: the verifier goes through it once, and not at each call with all that the caller knows.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_said(generation: u32, from: u32, to: u32) -> u32 {
    let Some(Scratch { input, sides, .. }) = scratch() else { return POLICY_DENY };
    sides[0].identity = from;
    sides[0].addr = input.src;
    sides[1].identity = to;
    sides[1].addr = input.dst;
    policy::verdict(generation, &sides[0], &sides[1], input.proto as u8, input.dport_be).action
}
