//! Tests of how messages about links are read.

use super::*;
use rtnetlink::packet_route::link::{InfoData, InfoIpVlan, IpVlanMode};

#[test]
fn only_an_ipvlan_in_mode_l3s_is_one() {
    let link = |mode| {
        let mut message = LinkMessage::default();
        let parts = vec![InfoIpVlan::Mode(mode)];
        message.attributes =
            vec![LinkAttribute::LinkInfo(vec![Info::Kind(InfoKind::IpVlan), Info::Data(InfoData::IpVlan(parts))])];
        LinkInfo::from(&message)
    };
    assert_eq!([IpVlanMode::L2, IpVlanMode::L3, IpVlanMode::L3S].map(|mode| link(mode).l3s), [false, false, true]);
    assert_eq!(link(IpVlanMode::L2).kind.as_deref(), Some("ipvlan"));
    assert!(!LinkInfo::from(&LinkMessage::default()).l3s);
}
