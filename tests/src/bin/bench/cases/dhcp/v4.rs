//! DISCOVER, OFFER, REQUEST, ACK (RFC 2131).

use super::clients::{Exchange as Messages, Heard};
use harness::dhcp_client::{Said, discover};
use harness::{dhcp, frame};

const NAK: u8 = 6;

/// The exchange.
pub struct Exchange;

impl Messages for Exchange {
    const KIND: u16 = frame::IPV4;

    fn first(&self, client: u32) -> Vec<u8> {
        discover(client)
    }

    fn hear(&self, bytes: &[u8]) -> Heard {
        let Some(said) = Said::of(bytes) else { return Heard::Nothing };
        match said.kind {
            dhcp::OFFER => Heard::Offer(said.client, said.request()),
            dhcp::ACK => Heard::Lease(said.client),
            NAK => Heard::Refusal(said.client),
            _ => Heard::Nothing,
        }
    }
}
