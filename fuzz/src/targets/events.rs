//! Records of the ring buffer: only what has the size of one is one, and every byte of it is read.

use pv_net_common::{BindEvent, DropEvent, DropReason};

/// Target `events`.
pub fn check(input: &[u8]) {
    let (drop, bind) = (DropEvent::from_bytes(input), BindEvent::from_bytes(input));
    assert_eq!(drop.is_some(), input.len() == size_of::<DropEvent>());
    assert_eq!(bind.is_some(), input.len() == size_of::<BindEvent>());
    if let Some(event) = drop {
        let bytes = [
            &event.time_ns.to_ne_bytes()[..],
            &event.src.octets(),
            &event.dst.octets(),
            &event.sport_be.to_ne_bytes(),
            &event.dport_be.to_ne_bytes(),
            &event.ifindex.to_ne_bytes(),
            &event.reason.to_ne_bytes(),
            &event.proto.to_ne_bytes(),
        ];
        assert_eq!(bytes.concat(), input);
        if let Some(reason) = DropReason::from_number(event.reason) {
            assert_eq!(reason as u32, event.reason);
            assert!(!reason.label().is_empty());
        }
    }
    if let Some(event) = bind {
        let bytes = [
            &event.time_ns.to_ne_bytes()[..],
            &event.addr.octets(),
            &event.comm,
            &event.pid.to_ne_bytes(),
            &event.identity.to_ne_bytes(),
            &event.proto.to_ne_bytes(),
            &event.port_be.to_ne_bytes(),
        ];
        assert_eq!(bytes.concat(), input[..54]);
    }
}
