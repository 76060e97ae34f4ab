//! Records in the `events` ring buffer.

use crate::Ip;

/// A dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// Nanoseconds since boot (`bpf_ktime_get_ns`).
    pub time_ns: u64,
    /// Source address, or `::` when the packet has none.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port, network byte order.
    pub sport_be: u16,
    /// Destination port, network byte order.
    pub dport_be: u16,
    /// Link that the packet came in on.
    pub ifindex: u32,
    /// [`crate::DropReason`] as a number.
    pub reason: u32,
    /// IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<DropEvent>() == 56);

impl DropEvent {
    /// The record in `bytes`, as the programs wrote it; `None` when it is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 56] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let ip = |at: usize| Some(Ip::from_octets(bytes.get(at..at + 16)?.try_into().ok()?));
        Some(Self {
            time_ns: u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?),
            src: ip(8)?,
            dst: ip(24)?,
            sport_be: half(40)?,
            dport_be: half(42)?,
            ifindex: word(44)?,
            reason: word(48)?,
            proto: word(52)?,
        })
    }
}

/// The identity of no container.
pub const NOBODY: u32 = 0;

/// A program of the device was refused a published port, or has taken a port of masquerade's range. The record's size
/// tells it from a [`DropEvent`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindEvent {
    /// Nanoseconds since boot (`bpf_ktime_get_ns`).
    pub time_ns: u64,
    /// The address that it named.
    pub addr: Ip,
    /// Name of the thread, with zeros behind it (`bpf_get_current_comm`).
    pub comm: [u8; 16],
    /// Process (thread group).
    pub pid: u32,
    /// Identity of the container that publishes the port; [`NOBODY`] when it is one of masquerade's.
    pub identity: u32,
    /// IP protocol number.
    pub proto: u32,
    /// The port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: [u8; 10],
}

const _: () = assert!(size_of::<BindEvent>() == 64);

impl BindEvent {
    /// The record in `bytes`, as the programs wrote it; `None` when it is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 64] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            time_ns: u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?),
            addr: Ip::from_octets(bytes.get(8..24)?.try_into().ok()?),
            comm: bytes.get(24..40)?.try_into().ok()?,
            pid: word(40)?,
            identity: word(44)?,
            proto: word(48)?,
            port_be: u16::from_ne_bytes(bytes.get(52..54)?.try_into().ok()?),
            pad: [0; 10],
        })
    }
}

/// At most one event per reason and CPU in this many nanoseconds; the counters count all.
pub const EVENT_INTERVAL_NS: u64 = 10_000_000;
