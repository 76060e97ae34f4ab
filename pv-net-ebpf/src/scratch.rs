//! What does not fit the 512 bytes of stack: a place in memory for each CPU, and the types of what is laid there. Stages
//! pass on what they found out by it, too: it outlives a tail call.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    btf_maps::{PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use pv_net_common::{
    FlowKey, FragmentInfo, FragmentKey, HalfOpenFlow, Ip, PolicyAddr, PolicyId, PolicyPair, PolicySide,
};

/// One CPU's.
#[repr(C)]
pub struct Scratch {
    pub flow: HalfOpenFlow,
    pub fib: bpf_fib_lookup,
    /// Place and content of a fragmented packet.
    pub fragment_key: FragmentKey,
    pub fragment: FragmentInfo,
    /// What the opening stage is to do, with `flow`.
    pub plan: Plan,
    /// The key of the replies that it tries to claim.
    pub reply_key: FlowKey,
    pub policy: PolicyKeys,
    /// What the rules are asked about.
    pub input: PolicyInput,
    /// How the stage for the device's stack is asked.
    pub to_stack: ToStack,
    /// The two ends that the rules are asked about.
    pub sides: [PolicySide; 2],
    /// What the answering stage is to say.
    pub answer: Answer,
    /// A packet that the verifier is to forget.
    pub packet: Forgotten,
    /// A frame under construction.
    pub frame: [u8; FRAME_BYTES],
}

/// What the decision about a new flow says, beside its two entries and but for the source port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plan {
    /// Addresses of the packet when it leaves.
    pub src: Ip,
    pub dst: Ip,
    /// Link of the replies' key: 0 when they come from outside.
    pub reply_link: u32,
    /// Not 0: the source address is the device's, and the port one of masquerade's range: first this one.
    pub masquerade: u32,
    /// Where in the range.
    pub offset: u16,
    /// Where the range begins.
    pub first_port: u16,
    /// Not 0: the flow was not in the half-open map before.
    pub claimed: u32,
    /// Link of the packet's own key.
    pub link: u32,
    pub dport_be: u16,
    pub pad: u16,
}

/// What is known of a packet for the device's stack.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ToStack {
    /// Not 0: the kernel's routes call its destination the device's own.
    pub device: u32,
    /// Not 0: it is for somebody else on the bridge, and not for the device's stack.
    pub elsewhere: u32,
    /// Not 0: the kernel does not know the neighbour that it goes to yet.
    pub unresolved: u32,
}

/// An ICMP or ICMPv6 error, or a TCP reset.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answer {
    /// The error's type; 0 for a reset.
    pub kind: u8,
    pub code: u8,
    /// Not 0: it is for the device itself, which sent the packet.
    pub to_device: u8,
    pub pad: u8,
    /// The header's last word: an MTU where the type has one.
    pub rest: u32,
}

/// Room for the longest answer.
pub const FRAME_BYTES: usize = 152;

/// One [`Scratch`] a CPU.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch memory; a program has it to itself until it returns.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nothing preempts a TC program on its CPU but another packet's, which runs after this one returns.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// A flow as policy sees it: by who opens it and where it really ends.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PolicyInput {
    pub src: Ip,
    pub dst: Ip,
    /// A link of the pool in which link-local addresses are looked up.
    pub link: u32,
    pub proto: u32,
    pub dport_be: u16,
    /// It came by a published port.
    pub published: bool,
    /// It ends at the device, whatever address that has.
    pub device: bool,
}

/// Keys of the policy maps under construction.
#[repr(C)]
pub struct PolicyKeys {
    pub id: PolicyId,
    pub pad: u32,
    pub addr: Key<PolicyAddr>,
    pub pair: Key<PolicyPair>,
}

/// What of a packet is laid aside by `Packet::forget`: whatever the reading of a frame decides by.
#[repr(C)]
pub struct Forgotten {
    pub key: FlowKey,
    pub bits: u32,
    pub rest: u32,
    pub l4: u32,
    pub end: u32,
}
