//! What is read in messages, and what is told.

use super::*;

#[test]
fn a_container_gets_the_address_of_its_lease_and_no_other() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    lab.container = Some(Some(ip("fd00::5")));
    for (kind, wanted) in [(MessageType::Solicit, vec![ip("fd00::1000")]), (MessageType::Request, vec![])] {
        let request = ask(kind, &CLIENT, 1, &wanted);
        let request = if kind == MessageType::Request { named(request) } else { request };
        assert_eq!(said(&lab.ask(&request).expect("answered").0).1, [(ip("fd00::5"), 3600)]);
    }
    let renewed =
        lab.ask(&named(ask(MessageType::Renew, &CLIENT, 1, &[ip("fd00::5"), ip("fd00::6")]))).expect("answered");
    assert_eq!(said(&renewed.0).1, [(ip("fd00::5"), 3600), (ip("fd00::6"), 0)]);
    for (address, want) in [("fd00::5", Status::Success), ("fd00::6", Status::NotOnLink)] {
        let confirmed = lab.ask(&ask(MessageType::Confirm, &CLIENT, 1, &[ip(address)])).expect("answered");
        assert_eq!(said(&confirmed.0).2, [want]);
    }
    let released = lab.ask(&named(ask(MessageType::Release, &CLIENT, 1, &[ip("fd00::5")]))).expect("answered");
    assert_eq!(said(&released.0).2, [Status::Success]);
    // Its lease is that of its attachment: nothing is written.
    assert!(lab.leased().is_empty());
    // One without IPv6 has none.
    lab.container = Some(None);
    let none = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    assert_eq!(said(&none.0).2, [Status::NoAddrsAvail]);
}

#[test]
fn what_is_asked_for_is_told() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    lab.settings.range = None;
    let mut request = Message::new_with_id(MessageType::InformationRequest, [7, 8, 9]);
    let asked = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList, OptionCode::NtpServer];
    request.opts_mut().insert(DhcpOption::ORO(ORO { opts: asked }));
    let (reply, _) = lab.ask(&request).expect("answered");
    assert_eq!(reply.msg_type(), MessageType::Reply);
    let has = |code| reply.opts().get(code).cloned();
    assert_eq!(has(OptionCode::ServerId), Some(DhcpOption::ServerId(DUID.to_vec())));
    assert_eq!(has(OptionCode::ClientId), None);
    assert_eq!(has(OptionCode::DomainNameServers), Some(DhcpOption::DomainNameServers(vec![ip("fd00::1")])));
    let bytes = reply.to_vec().expect("written");
    let domain = [&[0, 24, 0, 10, 2][..], b"pv", &[5], b"local", &[0]].concat();
    assert!(bytes.windows(domain.len()).any(|w| w == domain), "{bytes:02x?}");
    let refresh = [0, 32, 0, 4, 0, 0, 14, 16];
    assert!(bytes.windows(8).any(|w| w == refresh), "{bytes:02x?}");
    assert!(has(OptionCode::NtpServer).is_some());
    // And nothing else; nor an address, where there is no range.
    let (reply, _) = lab.ask(&ask(MessageType::Solicit, &CLIENT, 1, &[])).expect("answered");
    assert_eq!(said(&reply).2, [Status::NoAddrsAvail]);
    assert!(reply.opts().get(OptionCode::DomainNameServers).is_none());
}

#[test]
fn what_is_not_for_this_server_is_not_answered() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    let other = |mut message: Message| {
        message.opts_mut().insert(DhcpOption::ServerId(vec![0, 4, 9, 9]));
        message
    };
    let without = |kind| Message::new_with_id(kind, [7, 8, 9]);
    let asked = |kind| ask(kind, &CLIENT, 1, &[]);
    for (what, message) in [
        ("a request of another server", other(asked(MessageType::Request))),
        ("a request of nobody", asked(MessageType::Request)),
        ("a renewal of nobody", asked(MessageType::Renew)),
        ("a solicitation of this server", named(asked(MessageType::Solicit))),
        ("a rebinding of this server", named(asked(MessageType::Rebind))),
        ("a solicitation of nobody", without(MessageType::Solicit)),
        ("a client that is too short", ask(MessageType::Solicit, &[0, 3], 1, &[])),
        ("a client that is too long", ask(MessageType::Solicit, &[7; 131], 1, &[])),
        ("a confirmation of nothing", asked(MessageType::Confirm)),
        ("an information request for addresses", asked(MessageType::InformationRequest)),
        ("what servers say", named(asked(MessageType::Advertise))),
        ("what relays say", asked(MessageType::RelayForw)),
        ("what is not known", asked(MessageType::Unknown(77))),
    ] {
        assert_eq!(lab.ask(&message).map(|(reply, _)| reply), Err(Ignored), "{what}");
    }
    let (id, longest) = (ClientId::of_association(1, &CLIENT), ClientId::of_association(1, &[7; 130]));
    assert!(id.is_some() && longest.is_some());
}

/// A client has the name that it gave itself last. Whether that is another's is decided by the lease book.
#[test]
fn a_client_gives_itself_a_name() {
    let mut lab = Lab::new("fd00::1000", "fd00::1fff");
    let ask_as = |lab: &mut Lab, duid: &[u8], data: &[u8]| {
        lab.from = at(if duid == CLIENT { 9 } else { 8 }, 1);
        let mut request = named(ask(MessageType::Request, duid, 1, &[]));
        if !data.is_empty() {
            let option = UnknownOption::new(OptionCode::ClientFqdn, data.to_vec());
            request.opts_mut().insert(DhcpOption::Unknown(option));
        }
        let (_, ended) = lab.ask(&request).expect("answered");
        assert_eq!(ended, Ended::Answered);
        let client = ClientId::of_association(1, duid).expect("an identifier");
        let lease = lab.ipam.clients().find(|lease| lease.client == client).expect("a lease");
        lease.hostname.clone()
    };
    assert_eq!(ask_as(&mut lab, &CLIENT, b"\x01\x06Laptop\x04home\x00").as_deref(), Some("laptop"));
    assert_eq!(ask_as(&mut lab, &CLIENT, b"").as_deref(), Some("laptop"), "it keeps its name");
    assert_eq!(ask_as(&mut lab, &CLIENT, b"\x04\x06laptop\x00"), None, "it wants none");
    assert_eq!(ask_as(&mut lab, &OTHER, b"\x01\x06laptop\x00").as_deref(), Some("laptop"));
}
