//! Memory for what does not fit the 512 bytes of stack: one value for each CPU, and the types of its parts. It outlives
//! a tail call, so stages also pass their findings on in it.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    btf_maps::{PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use pv_net_common::{
    FlowKey, FragmentInfo, FragmentKey, HalfOpenFlow, Ip, LinkId, PolicyAddr, PolicyId, PolicyPair, PolicySide,
};

/// The scratch memory of one CPU.
#[repr(C)]
pub struct Scratch {
    pub flow: HalfOpenFlow,
    pub fib: bpf_fib_lookup,
    /// Key and value of the `fragments` map under construction.
    pub fragment_key: FragmentKey,
    pub fragment: FragmentInfo,
    /// What the stage `open` is to do with `flow`.
    pub plan: Plan,
    /// The key of the replies that `open` tries to claim.
    pub reply_key: FlowKey,
    pub policy: PolicyKeys,
    /// The question to the policy.
    pub input: PolicyInput,
    /// The question to the stage `stack`.
    pub to_stack: ToStack,
    /// The sender and the receiver in the question to the policy.
    pub sides: [PolicySide; 2],
    /// The answer that the stage `answer` is to send.
    pub answer: Answer,
    /// The headers as the first stage has read them.
    pub packet: Forgotten,
    /// The answer under construction.
    pub frame: [u8; FRAME_BYTES],
}

/// The decision about a new flow, beside its two entries. The source port is still open.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plan {
    /// Addresses of the packet when it leaves.
    pub src: Ip,
    pub dst: Ip,
    /// Link in the key of the replies.
    pub reply_link: LinkId,
    /// Not 0: the source address is the device's, and the source port is one of masquerade's range.
    pub masquerade: u32,
    /// Offset in the range of the port to try first.
    pub offset: u16,
    /// First port of the range.
    pub first_port: u16,
    /// Not 0: this packet made the entry in the half-open table.
    pub claimed: u32,
    /// Link in the packet's own key.
    pub link: LinkId,
    pub dport_be: u16,
    pub pad: u16,
}

/// What is known about a packet for the device's stack. Each field is a flag, 0 or 1.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ToStack {
    /// The kernel's routes call the destination the device's own.
    pub device: u32,
    /// The packet is for another host on the bridge, not for the device's stack.
    pub elsewhere: u32,
    /// The packet goes to a neighbour that the kernel does not know yet.
    pub unresolved: u32,
}

/// The answer to a packet: an ICMP or ICMPv6 error, or a TCP reset.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answer {
    /// The ICMP type; 0 for a reset.
    pub kind: u8,
    pub code: u8,
    /// Not 0: the packet came from the device itself, and so the answer goes there.
    pub to_device: u8,
    pub pad: u8,
    /// The second word of the ICMP header: an MTU where the type has one.
    pub rest: u32,
}

/// Bytes of the longest answer.
pub const FRAME_BYTES: usize = 152;

/// One [`Scratch`] for each CPU.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch memory. A program run has it to itself until it returns.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nothing preempts a TC program on its CPU but another packet's, which runs after this one returns.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// A flow as the policy sees it: who opens it, and where it really ends (after published ports).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PolicyInput {
    pub src: Ip,
    pub dst: Ip,
    /// A link of the pool in which link-local addresses are looked up.
    pub link: LinkId,
    pub proto: u32,
    pub dport_be: u16,
    /// The flow came by a published port.
    pub published: bool,
    /// [`AT_DEVICE`] or [`AT_GATEWAY`] if the flow ends at the device, whatever its destination is. 0: the destination
    /// tells.
    pub device: u8,
}

/// The flow ends at the device, by an address that is not the gateway of the sender's pool.
pub const AT_DEVICE: u8 = 1;
/// The flow ends at the device, by the gateway of the sender's pool.
pub const AT_GATEWAY: u8 = 2;

/// Keys of the policy maps under construction.
#[repr(C)]
pub struct PolicyKeys {
    pub id: PolicyId,
    pub pad: u32,
    pub addr: Key<PolicyAddr>,
    pub pair: Key<PolicyPair>,
}

/// The headers as `Packet::forget` stores them, so that later stages need not read them again.
#[repr(C)]
pub struct Forgotten {
    pub key: FlowKey,
    pub bits: u32,
    pub rest: u32,
    pub l4: u32,
    pub end: u32,
    pub id_be: u32,
    /// The IPv4 header's checksum, and TTL or hop limit above it.
    pub check_ttl: u32,
}
