//! Time-outs of flows.

use std::time::Duration;

/// How long a flow may be silent, by its protocol and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// TCP without an answer.
    pub tcp_opening: Duration,
    /// TCP, established.
    pub tcp: Duration,
    /// TCP of which one side has sent FIN.
    pub tcp_half_closed: Duration,
    /// TCP of which both sides have sent FIN, or one RST.
    pub tcp_closed: Duration,
    /// UDP without an answer.
    pub udp_opening: Duration,
    /// UDP.
    pub udp: Duration,
    /// Echo and the like.
    pub other: Duration,
}

/// Linux's defaults (`nf_conntrack_*_timeout_*`), except for established TCP, where RFC 5382, REQ-5 asks for at least
/// two hours and four minutes, and UDP, where RFC 4787, REQ-5 asks for at least two minutes.
impl Default for FlowTimeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(120),
            tcp: Duration::from_secs(7440),
            tcp_half_closed: Duration::from_secs(120),
            tcp_closed: Duration::from_secs(120),
            udp_opening: Duration::from_secs(30),
            udp: Duration::from_secs(180),
            other: Duration::from_secs(30),
        }
    }
}
