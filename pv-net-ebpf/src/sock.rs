//! The socket hooks: a program on the device that connects to a published port reaches the container directly, without
//! a proxy and without NAT.
//!
//! The hooks are attached to a cgroup and see the sockets of every process in it; they act only on sockets of the
//! device's own network namespace.

use crate::{
    maps::{CONFIG, EVENTS, SOCK_ORIGINS, is_local},
    nat,
    packet::IPPROTO_TCP,
    port_map,
    verdict::{count, event_time},
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_comm,
        generated::{
            bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
        },
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use pv_net_common::{BindEvent, Ip, SockKey, SockOrigin, Stat, drop_reason::DROP_SLOTS, event::NOBODY};

/// Return value of a hook: the system call continues.
const GO_ON: i32 = 1;
/// Return value of a hook: the system call fails.
const REFUSED: i32 = 0;
const EADDRINUSE: i32 = 98;

type Address = *mut bpf_sock_addr;

/// The address family of a hook, which tells where its context has the address.
#[derive(Clone, Copy)]
struct Family {
    v6: bool,
}

const V4: Family = Family { v6: false };
const V6: Family = Family { v6: true };

impl Family {
    #[inline(always)]
    fn addr(self, a: Address) -> Ip {
        // SAFETY: context fields, each read as the verifier wants it: by whole words.
        unsafe {
            if self.v6 {
                Ip { words_be: [(*a).user_ip6[0], (*a).user_ip6[1], (*a).user_ip6[2], (*a).user_ip6[3]] }
            } else {
                Ip::from_v4_be((*a).user_ip4)
            }
        }
    }

    #[inline(always)]
    fn set(self, a: Address, addr: Ip, port_be: u32) {
        // SAFETY: as above.
        unsafe {
            if self.v6 {
                (*a).user_ip6[0] = addr.words_be[0];
                (*a).user_ip6[1] = addr.words_be[1];
                (*a).user_ip6[2] = addr.words_be[2];
                (*a).user_ip6[3] = addr.words_be[3];
            } else {
                (*a).user_ip4 = addr.words_be[3];
            }
            (*a).user_port = port_be;
        }
    }
}

/// Whether the socket is in the device's own network namespace.
#[inline(always)]
fn is_ours(a: Address) -> bool {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_netns_cookie(a.cast()) };
    CONFIG.get(0).is_some_and(|c| c.netns_cookie != 0 && c.netns_cookie == cookie)
}

/// Whether `addr` is in 127.0.0.0/8 or is `::1`: such addresses are local on every device.
#[inline(always)]
fn is_loopback(addr: Ip) -> bool {
    if addr.is_v4() {
        return u32::from_be(addr.words_be[3]) >> 24 == 127;
    }
    addr.words_be == [0, 0, 0, 1_u32.to_be()]
}

#[inline(always)]
fn key_of(a: Address, addr: Ip, port_be: u32) -> SockKey {
    // SAFETY: the helper takes the context; a context field.
    unsafe { SockKey { cookie: bpf_get_socket_cookie(a.cast()), addr, port_be, proto: (*a).protocol } }
}

const IPPROTO_MPTCP: u32 = 262;

/// The protocol under which a port of `proto` is published: Multipath TCP uses the ports of TCP.
#[inline(always)]
fn published_as(proto: u32) -> u32 {
    if proto == IPPROTO_MPTCP { IPPROTO_TCP as u32 } else { proto }
}

/// For `connect` and `sendmsg`: replaces a destination that is a published port by the container's address and port.
#[inline(always)]
fn lead(a: Address, family: Family) -> i32 {
    if !is_ours(a) {
        return GO_ON;
    }
    let named = family.addr(a);
    // SAFETY: context fields.
    let (port_be, proto) = unsafe { ((*a).user_port, (*a).protocol) };
    if !is_loopback(named) && !is_local(named) {
        return GO_ON;
    }
    let Some(to) = port_map::target(named, published_as(proto), port_be as u16) else { return GO_ON };
    let key = key_of(a, to.addr, to.port_be as u32);
    // If the entry is lost, `getpeername` shows the container's address instead; the connection works all the same.
    let _ = SOCK_ORIGINS.insert(&key, &SockOrigin { addr: named, port_be }, 0);
    family.set(a, to.addr, to.port_be as u32);
    GO_ON
}

/// For `getpeername` and `recvmsg`: replaces the container's address by the one that the program had named.
#[inline(always)]
fn show_origin(a: Address, family: Family) -> i32 {
    if !is_ours(a) {
        return GO_ON;
    }
    // SAFETY: a context field.
    let port_be = unsafe { (*a).user_port };
    let key = key_of(a, family.addr(a), port_be);
    if let Some(origin) = SOCK_ORIGINS.get_ptr(&key) {
        // SAFETY: a map value stays readable for the program's run.
        let origin = unsafe { *origin };
        family.set(a, origin.addr, origin.port_be);
    }
    GO_ON
}

/// Set by the daemon where the kernel has `bpf_set_retval` (5.18). Elsewhere the call is dead code, which the verifier
/// skips.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 0;

/// For `bind`: refuses a published port, since nothing would arrive at a socket on it. The error is EADDRINUSE, or
/// EPERM on kernels without `bpf_set_retval`.
#[inline(always)]
fn keep_free(a: Address, family: Family) -> i32 {
    if !is_ours(a) {
        return GO_ON;
    }
    let addr = family.addr(a);
    // SAFETY: context fields.
    let (port_be, proto) = unsafe { ((*a).user_port as u16, published_as((*a).protocol)) };
    let mut owner = port_map::publisher(addr, proto, port_be);
    // A socket on `::` receives IPv4 too, unless it has IPV6_V6ONLY.
    if owner.is_none() && addr.is_unspecified() && family.v6 {
        owner = port_map::publisher(Ip::from_v4_be(0), proto, port_be);
    }
    let Some(identity) = owner else {
        if !is_loopback(addr) && nat::keep_for_device(proto, u16::from_be(port_be)) {
            // Sent without a rate limit: the daemon ends the flows that use the port because of this event.
            // SAFETY: the helper has no preconditions.
            tell(unsafe { bpf_ktime_get_ns() }, addr, proto, port_be, NOBODY);
        }
        return GO_ON;
    };
    if let Some(now) = event_time(DROP_SLOTS) {
        tell(now, addr, proto, port_be, identity);
    }
    // SAFETY: a static of the object, read as the loader left it; the helper takes a number.
    unsafe {
        if core::ptr::read_volatile(&raw const HAS_SET_RETVAL) != 0 {
            bpf_set_retval(-EADDRINUSE);
        }
    }
    REFUSED
}

/// Sends a [`BindEvent`]: which process was refused a published port, or has taken a port of masquerade's range. The
/// process itself would only log an error that names nobody.
#[inline(always)]
fn tell(time_ns: u64, addr: Ip, proto: u32, port_be: u16, identity: u32) {
    // SAFETY: the helper has no preconditions.
    let pid = unsafe { (bpf_get_current_pid_tgid() >> 32) as u32 };
    let comm = bpf_get_current_comm().unwrap_or_default();
    let Some(mut slot) = EVENTS.reserve_untyped::<BindEvent>(0) else {
        count(Stat::EventsLost);
        return;
    };
    slot.write(BindEvent { time_ns, addr, comm, pid, identity, proto, port_be, pad: [0; 10] });
    slot.submit(0);
}

/// `bind` over IPv4.
#[cgroup_sock_addr(bind4)]
pub fn pv_sock_bind4(ctx: SockAddrContext) -> i32 {
    keep_free(ctx.sock_addr, V4)
}

/// `bind` over IPv6.
#[cgroup_sock_addr(bind6)]
pub fn pv_sock_bind6(ctx: SockAddrContext) -> i32 {
    keep_free(ctx.sock_addr, V6)
}

/// `connect` over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn pv_sock_connect4(ctx: SockAddrContext) -> i32 {
    lead(ctx.sock_addr, V4)
}

/// `connect` over IPv6.
#[cgroup_sock_addr(connect6)]
pub fn pv_sock_connect6(ctx: SockAddrContext) -> i32 {
    lead(ctx.sock_addr, V6)
}

/// `sendmsg` of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn pv_sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    lead(ctx.sock_addr, V4)
}

/// `sendmsg` of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn pv_sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    lead(ctx.sock_addr, V6)
}

/// The source address that `recvmsg` returns for a datagram, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn pv_sock_recvmsg4(ctx: SockAddrContext) -> i32 {
    show_origin(ctx.sock_addr, V4)
}

/// The source address that `recvmsg` returns for a datagram, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn pv_sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    show_origin(ctx.sock_addr, V6)
}

/// `getpeername`, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn pv_sock_peer4(ctx: SockAddrContext) -> i32 {
    show_origin(ctx.sock_addr, V4)
}

/// `getpeername`, IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn pv_sock_peer6(ctx: SockAddrContext) -> i32 {
    show_origin(ctx.sock_addr, V6)
}
