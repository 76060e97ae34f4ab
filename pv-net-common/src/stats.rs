//! Packet counters of the programs, by the path that a packet took.

/// Index in the per-CPU `stats` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// Forwarded by an entry of the flow table.
    FastPath = 0,
    /// Forwarded after the whole decision was made.
    SlowPath = 1,
    /// Left to the bridge or the host's stack.
    ToStack = 2,
    /// Flows entered into the flow table (both directions count as one).
    FlowsCreated = 3,
    /// The flow table was full: the flow lives in the half-open table.
    FlowTableFull = 4,
    /// Answered with a TCP reset or an ICMP error.
    Answered = 5,
    /// Drop events that found the ring buffer full.
    EventsLost = 6,
    /// A container had all the flows that it may have: the flow lives in the half-open table.
    FlowLimit = 7,
}

impl Stat {
    /// All counters, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::FastPath,
        Self::SlowPath,
        Self::ToStack,
        Self::FlowsCreated,
        Self::FlowTableFull,
        Self::Answered,
        Self::EventsLost,
        Self::FlowLimit,
    ];

    /// Short name for people and metric labels.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FastPath => "fast-path",
            Self::SlowPath => "slow-path",
            Self::ToStack => "to-stack",
            Self::FlowsCreated => "flows-created",
            Self::FlowTableFull => "flow-table-full",
            Self::Answered => "answered",
            Self::EventsLost => "events-lost",
            Self::FlowLimit => "flow-limit",
        }
    }
}

/// Slots of the `stats` map; room to grow without a new layout.
pub const STAT_SLOTS: u32 = 32;
