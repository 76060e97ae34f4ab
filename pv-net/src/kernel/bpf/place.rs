//! The places at which TC programs of the data plane are attached.

use aya::programs::TcAttachType;
use pv_net_common::names;

/// The place of a TC program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Ingress of a container's host-side link.
    FromContainer,
    /// Egress of a container's host-side link.
    ToContainer,
    /// Ingress of an uplink.
    FromUplink,
    /// Ingress of a pool's bridge.
    FromBridge,
}

impl Place {
    pub(super) const ALL: [Self; 4] = [Self::FromContainer, Self::ToContainer, Self::FromUplink, Self::FromBridge];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::FromContainer => names::PROG_FROM_CONTAINER,
            Self::ToContainer => names::PROG_TO_CONTAINER,
            Self::FromUplink => names::PROG_FROM_UPLINK,
            Self::FromBridge => names::PROG_FROM_BRIDGE,
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::FromContainer | Self::FromUplink | Self::FromBridge => TcAttachType::Ingress,
            Self::ToContainer => TcAttachType::Egress,
        }
    }
}
