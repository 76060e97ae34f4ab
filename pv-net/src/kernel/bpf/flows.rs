//! Ages, states and time-outs of flows. Pure; the maps are read in `sweep.rs` and `reader.rs`.

use crate::model::FlowTimeouts;
use pv_net_common::{
    FlowEntry, FlowKey, HalfOpenFlow,
    flow::{FLOW_CLOSING, FLOW_OPENING, FLOW_REFUSED, FLOW_STACK, TCP_FIN_SEEN, TCP_LAST_ACK, TCP_RST_SEEN},
    ip_proto::{IPPROTO_TCP, IPPROTO_UDP},
};
use std::collections::HashMap;
use std::time::Duration;

const TCP: u32 = IPPROTO_TCP as u32;
const UDP: u32 = IPPROTO_UDP as u32;

/// The two entries of a flow are made one after the other. An entry that is alone for longer than this has lost its
/// partner.
const ORPHAN: Duration = Duration::from_secs(2);

/// After this much silence the container is asked about a flow that was reset: by then the container of a really reset
/// connection is done with it.
const DOUBT: Duration = Duration::from_secs(10);

/// One direction of a flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowRecord {
    /// 5-tuple and link.
    pub key: FlowKey,
    /// Decision and counters.
    pub entry: FlowEntry,
    /// Seconds since its last packet; `None` when this direction had no packet yet.
    pub age_secs: Option<f64>,
    /// The flow's state.
    pub state: FlowState,
}

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// No reply seen yet.
    Opening,
    /// In the flow table, and not about to end.
    Established,
    /// Both sides are done, or a reset was seen.
    Closing,
}

impl FlowState {
    /// The state of a half-open flow by its `phase`.
    #[must_use]
    pub const fn of_phase(phase: u32) -> Self {
        if phase == FLOW_CLOSING { Self::Closing } else { Self::Opening }
    }

    /// The state of a flow of the flow table.
    #[must_use]
    pub const fn of_entry(entry: &FlowEntry) -> Self {
        if entry.tcp & (TCP_LAST_ACK | TCP_RST_SEEN) != 0 { Self::Closing } else { Self::Established }
    }

    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

/// The kernel's tick counter and its rate.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// `bpf_jiffies64` now.
    pub now: u64,
    /// Ticks a second (`CONFIG_HZ`).
    pub hz: u64,
}

/// Values of `CONFIG_HZ` that Linux offers.
const RATES: [u64; 6] = [24, 48, 100, 250, 300, 1000];

impl Ticks {
    /// The tick rate, given that `ticks` passed in `time`: the nearest rate for which a kernel can be built.
    #[must_use]
    pub fn rate(ticks: u64, time: Duration) -> u64 {
        let measured = ticks as f64 / time.as_secs_f64().max(f64::EPSILON);
        let distance = |hz: u64| (measured / hz as f64).max(f64::EPSILON).ln().abs();
        RATES.into_iter().min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(250)
    }

    /// Seconds since `entry` was last used; `None` when it never was.
    #[must_use]
    pub fn age_secs(&self, entry: &FlowEntry) -> Option<f64> {
        (entry.last_used != 0).then(|| self.since(entry.last_used).as_secs_f64())
    }

    /// Time since tick `then`.
    #[must_use]
    pub fn since(&self, then: u64) -> Duration {
        Duration::from_secs_f64(self.now.saturating_sub(then) as f64 / self.hz.max(1) as f64)
    }
}

/// How long a flow of the flow table may be silent.
fn timeout(timeouts: &FlowTimeouts, proto: u32, tcp: u8) -> Duration {
    match proto {
        TCP if tcp & TCP_LAST_ACK != 0 => timeouts.tcp_closed,
        TCP if tcp & TCP_RST_SEEN != 0 => timeouts.tcp_closed.min(DOUBT),
        TCP if tcp & TCP_FIN_SEEN != 0 => timeouts.tcp_half_closed,
        TCP => timeouts.tcp,
        UDP => timeouts.udp,
        _ => timeouts.other,
    }
}

/// How long a flow has been silent, and how long it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Silence {
    idle: Duration,
    most: Duration,
}

impl Silence {
    /// Its time is over.
    pub(super) fn is_over(self) -> bool {
        self.idle > self.most
    }

    /// What is left of its time.
    pub(super) fn left(self) -> Duration {
        self.most.saturating_sub(self.idle)
    }
}

/// The silence of a flow of the flow table: the time since the last packet of either direction. For an entry that has
/// lost its partner: since its own.
pub(super) fn silence(
    entries: &HashMap<FlowKey, FlowEntry>,
    key: &FlowKey,
    entry: &FlowEntry,
    ticks: Ticks,
    timeouts: &FlowTimeouts,
) -> Silence {
    let idle = ticks.since(entry.last_used);
    match entries.get(&entry.opposite_key(key.proto)) {
        Some(other) => Silence {
            idle: idle.min(ticks.since(other.last_used)),
            most: timeout(timeouts, key.proto, entry.tcp | other.tcp),
        },
        None => Silence { idle, most: ORPHAN },
    }
}

/// The silence of a flow in the half-open table; `None` for a flow that is not removed by time but by the LRU. These
/// are the notes of the host stack's flows, and flows that the policy refused: if one of those were removed, packets of
/// its other side would count as a flow of their own.
pub(super) fn half_open_silence(flow: &HalfOpenFlow, ticks: Ticks, timeouts: &FlowTimeouts) -> Option<Silence> {
    if flow.reply.flags & FLOW_STACK != 0 || flow.reply.epoch == FLOW_REFUSED {
        return None;
    }
    let idle = ticks.since(flow.forward.last_used.max(flow.reply.last_used));
    let answered = flow.reply.last_used != 0;
    let most = match flow.origin.proto {
        TCP if flow.phase == FLOW_CLOSING => timeouts.tcp_closed,
        TCP if !answered || was_reset(flow) => timeouts.tcp_opening,
        UDP if !answered => timeouts.udp_opening,
        proto => timeout(timeouts, proto, flow.forward.tcp | flow.reply.tcp),
    };
    Some(Silence { idle, most })
}

/// Whether somebody outside sent a reset and no packet was seen since. The container may have ignored the reset as
/// forged.
pub(super) const fn was_reset(flow: &HalfOpenFlow) -> bool {
    flow.phase == FLOW_OPENING && flow.forward.tcp & TCP_RST_SEEN != 0
}

/// Least time between two sweeps, so an expired flow may stay this long.
const SOONEST: Duration = Duration::from_secs(5);
/// Most time between two sweeps.
const LATEST: Duration = Duration::from_secs(60);

/// The time until the next sweep. `left` is the time until the first flow expires. A flow that opens or changes its
/// state after this sweep lasts for at least the shortest of the time-outs.
#[must_use]
pub fn next_sweep(left: Option<Duration>, timeouts: &FlowTimeouts) -> Duration {
    let FlowTimeouts { tcp_opening, tcp, tcp_half_closed, tcp_closed, udp_opening, udp, other } = *timeouts;
    let all = [tcp_opening, tcp, tcp_half_closed, tcp_closed, udp_opening, udp, other];
    all.into_iter().chain(left).fold(LATEST, Duration::min).max(SOONEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pv_net_common::{Ip, LinkId};

    const TICKS: Ticks = Ticks { now: 10_000_000, hz: 100 };

    fn pair(proto: u32, idle: [u64; 2], tcp: [u8; 2]) -> Vec<(FlowKey, FlowEntry)> {
        let (here, there) = (LinkId::of_index(7), LinkId::of_index(8));
        let key =
            FlowKey { src: Ip::from_v4_be(1), dst: Ip::from_v4_be(2), sport_be: 3, dport_be: 4, link: here, proto };
        let entry = |key: FlowKey, reply_link, i: usize| FlowEntry {
            src: key.src,
            dst: key.dst,
            sport_be: key.sport_be,
            dport_be: key.dport_be,
            reply_link,
            last_used: TICKS.now - idle[i] * TICKS.hz,
            tcp: tcp[i],
            ..FlowEntry::default()
        };
        vec![(key, entry(key, there, 0)), (key.reversed(there), entry(key.reversed(there), here, 1))]
    }

    fn over(entries: Vec<(FlowKey, FlowEntry)>) -> usize {
        let (entries, timeouts) = (table(entries), FlowTimeouts::default());
        entries.iter().filter(|(key, entry)| silence(&entries, key, entry, TICKS, &timeouts).is_over()).count()
    }

    fn table(entries: Vec<(FlowKey, FlowEntry)>) -> HashMap<FlowKey, FlowEntry> {
        entries.into_iter().collect()
    }

    #[test]
    fn a_flow_ends_when_both_directions_are_silent() {
        for (name, entries, gone) in [
            ("udp in use one way", pair(UDP, [1, 5000], [0, 0]), 0),
            ("udp idle", pair(UDP, [181, 200], [0, 0]), 2),
            ("tcp idle for an hour", pair(TCP, [3600, 3600], [0, 0]), 0),
            ("tcp idle for three hours", pair(TCP, [10_800, 10_800], [0, 0]), 2),
            ("tcp half closed", pair(TCP, [121, 121], [TCP_FIN_SEEN, 0]), 2),
            ("tcp without its last word", pair(TCP, [121, 121], [TCP_FIN_SEEN | TCP_LAST_ACK; 2]), 2),
            ("tcp before its last word", pair(TCP, [119, 119], [TCP_FIN_SEEN | TCP_LAST_ACK; 2]), 0),
            ("tcp with a reset", pair(TCP, [11, 11], [TCP_RST_SEEN; 2]), 2),
            ("tcp after a reset", pair(TCP, [9, 9], [TCP_RST_SEEN; 2]), 0),
            ("echo idle", pair(1, [31, 31], [0, 0]), 2),
        ] {
            assert_eq!(over(entries), gone, "{name}");
        }
    }

    #[test]
    fn what_waits_for_an_answer_has_less_time() {
        for (name, proto, idle, answered, phase, tcp, passed) in [
            ("SYN", TCP, 119, false, 0, 0, false),
            ("SYN without an answer", TCP, 121, false, 0, 0, true),
            ("connection above the limit", TCP, 121, true, 0, 0, false),
            ("half closed", TCP, 121, true, 0, TCP_FIN_SEEN, true),
            ("with a reset", TCP, 121, true, 0, TCP_RST_SEEN, true),
            ("after a reset", TCP, 119, true, 0, TCP_RST_SEEN, false),
            ("closed", TCP, 121, true, FLOW_CLOSING, 0, true),
            ("closed just now", TCP, 119, true, FLOW_CLOSING, 0, false),
            ("question", UDP, 31, false, 0, 0, true),
            ("talk", UDP, 31, true, 0, 0, false),
            ("echo", 1, 31, true, 0, 0, true),
        ] {
            let mut flow = HalfOpenFlow { phase, ..HalfOpenFlow::default() };
            flow.origin.proto = proto;
            flow.reply.epoch = 1;
            flow.forward.tcp = tcp;
            flow.forward.last_used = TICKS.now - idle * TICKS.hz;
            flow.reply.last_used = if answered { flow.forward.last_used - 1 } else { 0 };
            let silence = half_open_silence(&flow, TICKS, &FlowTimeouts::default());
            assert_eq!(silence.map(Silence::is_over), Some(passed), "{name}");
            flow.reply.flags = FLOW_STACK;
            assert_eq!(half_open_silence(&flow, TICKS, &FlowTimeouts::default()), None, "{name}, of the stack");
        }
    }

    #[test]
    fn a_direction_without_a_packet_has_no_age() {
        let used = FlowEntry { last_used: TICKS.now - 150, ..FlowEntry::default() };
        assert_eq!(TICKS.age_secs(&used), Some(1.5));
        assert_eq!(TICKS.age_secs(&FlowEntry::default()), None);
    }

    #[test]
    fn half_a_flow_ends_at_once() {
        let mut entries = pair(TCP, [3, 3], [0, 0]);
        entries.pop();
        assert_eq!(over(entries), 1);
        let mut fresh = pair(TCP, [1, 1], [0, 0]);
        fresh.pop();
        assert_eq!(over(fresh), 0);
    }

    #[test]
    fn the_next_sweep_is_when_something_can_be_over() {
        let secs = Duration::from_secs;
        let usual = FlowTimeouts::default();
        let long = FlowTimeouts { udp_opening: secs(300), other: secs(300), ..usual };
        let short = FlowTimeouts { tcp_closed: secs(1), ..usual };
        for (name, left, timeouts, next) in [
            ("empty", None, usual, 30),
            ("empty, nothing opens and goes within a minute", None, long, 60),
            ("the first one to go has little left", Some(12), usual, 12),
            ("it is about to go", Some(1), usual, 5),
            ("it has its time", Some(7000), usual, 30),
            ("it has its time, and so has all that opens", Some(7000), long, 60),
            ("what opens may go at once", Some(7000), short, 5),
        ] {
            assert_eq!(next_sweep(left.map(secs), &timeouts), secs(next), "{name}");
        }
    }

    #[test]
    fn tick_rates_snap_to_what_kernels_are_built_with() {
        assert_eq!(Ticks::rate(26, Duration::from_millis(100)), 250);
        assert_eq!(Ticks::rate(99, Duration::from_millis(100)), 1000);
        assert_eq!(Ticks::rate(10, Duration::from_millis(101)), 100);
    }
}
