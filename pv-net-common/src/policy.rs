//! The policy as the programs see it: the classes of senders and receivers, and what the rules say about a pair of
//! them.
//!
//! Every key carries a generation: a new policy is written beside the old one, and one write of the generation in force
//! switches to it.

use crate::Ip;
use crate::ip_proto::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};

/// Key of the `policy_ids` map: a container at one of its addresses.
///
/// The identity is part of the key, so an address that another container uses later finds nothing here. The entry with
/// address `::` is for all addresses of the container that need no entry of their own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyId {
    /// Policy generation.
    pub generation: u32,
    /// The container's identity.
    pub identity: u32,
    /// One of its addresses, or `::`.
    pub addr: Ip,
}

const _: () = assert!(size_of::<PolicyId>() == 24);

/// Data of a key of the `policy_cidrs` map, a longest-prefix trie: an address that is no container's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyAddr {
    /// Policy generation.
    pub generation: u32,
    /// The address.
    pub addr: Ip,
}

const _: () = assert!(size_of::<PolicyAddr>() == 20);

/// Bits of [`PolicyAddr`] before the address.
pub const POLICY_ADDR_HEAD_BITS: u32 = 32;

/// Value of `policy_ids` and `policy_cidrs`: a number for the set of rules that can apply to somebody. All to whom the
/// same rules can apply share it. Senders and receivers are numbered separately, so that a rule about senders does not
/// split the classes of receivers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyClass {
    /// As a sender; zero when no rule's `from` matches.
    pub src: u32,
    /// As a receiver; zero when no rule's `to` matches.
    pub dst: u32,
}

const _: () = assert!(size_of::<PolicyClass>() == 8);

/// Data of a key of the `policy_pairs` map, a longest-prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyPair {
    /// Policy generation.
    pub generation: u32,
    /// [`PolicyClass::src`] of the sender.
    pub src_class: u32,
    /// [`PolicyClass::dst`] of the receiver.
    pub dst_class: u32,
    /// [`POLICY_TCP`] and its like.
    pub proto: u16,
    /// Destination port, network byte order; zero for what has none.
    pub port_be: u16,
}

const _: () = assert!(size_of::<PolicyPair>() == 16);

/// Prefix length of a [`PolicyPair`] for all traffic of two classes.
pub const POLICY_PAIR_BITS: u32 = 96;
/// Prefix length of a [`PolicyPair`] for all traffic of a protocol.
pub const POLICY_PROTO_BITS: u32 = 112;
/// Prefix length of a [`PolicyPair`] for one port.
pub const POLICY_PORT_BITS: u32 = 128;

/// [`PolicyPair::proto`] of protocols that rules do not name.
pub const POLICY_OTHER: u16 = 0;
/// [`PolicyPair::proto`] of TCP.
pub const POLICY_TCP: u16 = 1;
/// [`PolicyPair::proto`] of UDP.
pub const POLICY_UDP: u16 = 2;
/// [`PolicyPair::proto`] of ICMP and ICMPv6.
pub const POLICY_ICMP: u16 = 3;

/// [`PolicyPair::proto`] of IP protocol `proto`.
#[inline(always)]
#[must_use]
pub const fn policy_proto(proto: u8) -> u16 {
    match proto {
        IPPROTO_TCP => POLICY_TCP,
        IPPROTO_UDP => POLICY_UDP,
        IPPROTO_ICMP | IPPROTO_ICMPV6 => POLICY_ICMP,
        _ => POLICY_OTHER,
    }
}

/// What the rules say about a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyVerdict {
    /// The rule that says it: its place in the list of rules, or [`POLICY_NO_RULE`].
    pub rule: u32,
    /// [`POLICY_NOTHING`], [`POLICY_ALLOW`] or [`POLICY_DENY`].
    pub action: u32,
}

const _: () = assert!(size_of::<PolicyVerdict>() == 8);

impl PolicyVerdict {
    /// No rule applies: the pools' own settings decide.
    pub const NOTHING: Self = Self { rule: 0, action: POLICY_NOTHING };
    /// There are rules, but they were compiled before this container was added: its flows are refused until the next
    /// generation.
    pub const UNKNOWN: Self = Self { rule: POLICY_NO_RULE, action: POLICY_DENY };
}

/// No rule applies.
pub const POLICY_NOTHING: u32 = 0;
/// Let pass.
pub const POLICY_ALLOW: u32 = 1;
/// Refuse.
pub const POLICY_DENY: u32 = 2;
/// [`PolicyVerdict::rule`] for a container that the policy in force does not know.
pub const POLICY_NO_RULE: u32 = u32::MAX;

/// A sender or a receiver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicySide {
    /// The container's identity; zero for what is no container.
    pub identity: u32,
    /// The address in the packet.
    pub addr: Ip,
}

const _: () = assert!(size_of::<PolicySide>() == 20);

/// The question to `pv_policy_probe`, in the frame of its test run, [`POLICY_QUERY_AT`] bytes from the frame's start.
/// The program writes the [`PolicyVerdict`] behind it, at [`POLICY_ANSWER_AT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyQuery {
    /// Policy generation to ask.
    pub generation: u32,
    /// The sender.
    pub src: PolicySide,
    /// The receiver.
    pub dst: PolicySide,
    /// Destination port, network byte order.
    pub port_be: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<PolicyQuery>() == 48);

/// Offset of the [`PolicyQuery`]: behind an Ethernet header.
pub const POLICY_QUERY_AT: usize = 14;
/// Offset of the [`PolicyVerdict`], the frame's last bytes.
pub const POLICY_ANSWER_AT: usize = POLICY_QUERY_AT + size_of::<PolicyQuery>();

impl PolicyQuery {
    /// The query as the probe reads it.
    #[must_use]
    pub fn bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&self.generation.to_ne_bytes());
        for side in [&self.src, &self.dst] {
            put(&side.identity.to_ne_bytes());
            put(&side.addr.octets());
        }
        put(&self.port_be.to_ne_bytes());
        put(&[self.proto, self.reserved]);
        bytes
    }
}

/// Addresses of containers that a policy can hold.
pub const MAX_POLICY_IDS: u32 = 8_192;
/// Networks and addresses of others that a policy can hold.
pub const MAX_POLICY_CIDRS: u32 = 32_768;
/// Pairs of classes, with their ports, that a policy can hold.
pub const MAX_POLICY_PAIRS: u32 = 131_072;
