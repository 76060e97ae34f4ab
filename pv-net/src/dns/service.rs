//! Services of containers as records: SRV (RFC 2782), and TXT with the protocol.

use super::name::{LowerName, Name};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{SRV, TXT};

/// A service that a container offers.
#[derive(Clone, Debug)]
pub(super) struct Offered {
    /// The container's addresses, by their numbers in the zone. A client that sees one of them sees the service.
    pub addresses: Vec<u32>,
    /// The container's name.
    pub target: LowerName,
    pub port: u16,
    /// The protocol of the service.
    pub kind: String,
}

impl Offered {
    /// The SRV record. All containers with this service have the same priority and weight.
    pub fn srv(&self) -> RData {
        RData::SRV(SRV::new(0, 0, self.port, Name::from(&self.target)))
    }

    /// The TXT record with the protocol, in the form of RFC 6763 section 6.3.
    pub fn txt(&self) -> RData {
        RData::TXT(TXT::new(vec![format!("type={}", self.kind)]))
    }
}
