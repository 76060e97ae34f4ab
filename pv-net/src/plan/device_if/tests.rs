//! The steps that lead to the device's own interface, and back.

use super::*;
use crate::model::Mac;
use crate::plan::fixture;

const POOL: PoolLink = PoolLink { index: 5, mac: Mac([2; 6]), mtu: 1400, id: 1, borrowed: true, on_parent: true };

/// A device whose link `wan0` has these addresses.
fn device(addresses: &[&str]) -> Observed {
    let mut observed = fixture::links(&[7], true);
    let mut parent = observed.links.remove("pv7").expect("there");
    (parent.name, parent.index, parent.kind, parent.alias) = ("wan0".to_owned(), 5, None, None);
    observed.links.insert("wan0".to_owned(), parent);
    observed.addresses = addresses.iter().map(|a| Address::usual(5, a.parse().expect("address"))).collect();
    observed
}

fn wanted(numbers: &[u8], observed: &Observed) -> Vec<DeviceIf> {
    let attachment = |n: &u8| Attachment {
        ipv6: Some([0x2001, 0xdb8, 0, 0, 0, 0, 0, (*n).into()].into()),
        ..fixture::attachment(*n)
    };
    let attachments: Vec<Attachment> = numbers.iter().map(attachment).collect();
    device_ifs(attachments.iter().map(|a| (a, &POOL)), observed, &Ways::default()).0
}

#[test]
fn an_address_that_is_not_on_the_parents_link_gets_no_route() {
    let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
    let near = fixture::attachment(7);
    let far = Attachment { ipv4: Some([8, 8, 8, 8].into()), ..fixture::attachment(8) };
    let ways = |observed: &Observed| {
        let (all, refused) = device_ifs([(&near, &POOL), (&far, &POOL)].into_iter(), observed, &Ways::default());
        (all[0].routes.keys().map(ToString::to_string).collect::<Vec<_>>().join(" "), refused)
    };
    let (routes, refused) = ways(&observed);
    assert_eq!(routes, "10.0.3.7");
    let want = "container c8: interface eth0: not reached at 8.8.8.8: it is in no network of the device on that link";
    assert_eq!(refused, [want]);
    // The same network on another link: the device reaches others there.
    observed.addresses.push(Address::usual(6, "10.0.3.2/24".parse().expect("address")));
    assert_eq!(ways(&observed).0, "");
}

/// Brings the kernel to what these containers need, and returns the steps. The same again changes nothing, and the
/// steps can be undone.
fn follow(numbers: &[u8], observed: &mut Observed) -> String {
    let before = observed.clone();
    let (mut done, mut back) = (Vec::new(), Vec::new());
    let mut carry_out = |ops: Vec<Op>, observed: &mut Observed| {
        for op in ops {
            back.push(op.undo(observed));
            observed.apply(&op);
            let once = observed.clone();
            observed.apply(&op);
            assert_eq!(*observed, once, "{op} is not idempotent");
            done.push(op);
        }
    };
    let all = wanted(numbers, observed);
    carry_out(device_if_gone(&all, observed), observed);
    for own in &all {
        if own.link(observed).is_none() {
            carry_out(vec![Op::MakeDeviceIf(Box::new(own.clone()))], observed);
        }
        let link = own.link(observed).expect("made").clone();
        let (ops, routes) = own.steps(&link, observed);
        carry_out(ops, observed);
        carry_out(routes, observed);
        let left = own.steps(own.link(observed).expect("there"), observed);
        assert_eq!(left, (Vec::new(), Vec::new()), "there is nothing left to do");
    }
    if !done.iter().any(|op| matches!(op, Op::DeleteLink { .. })) {
        let (mut now, mut before) = (observed.clone(), before);
        back.into_iter().rev().flatten().for_each(|op| now.apply(&op));
        for state in [&mut now, &mut before] {
            state.addresses.sort_by_key(|a| (a.link, a.address));
        }
        assert_eq!(now, before, "not undone");
    }
    done.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn it_comes_with_the_first_container_and_goes_with_the_last() {
    let mut observed = device(&["10.0.3.1/24", "192.0.2.1/24", "2001:db8::1/64"]);
    assert_eq!(follow(&[], &mut observed), "");
    let before = observed.clone();
    let made = follow(&[7], &mut observed);
    let name = wanted(&[7], &observed)[0].name.clone();
    let want = "\
NAME made, the device's interface on wan0
net.ipv4.conf.NAME.forwarding = 0
net.ipv6.conf.NAME.forwarding = 0
net.ipv6.conf.NAME.accept_ra = 0
net.ipv6.conf.NAME.autoconf = 0
net.ipv6.conf.NAME.accept_dad = 0
net.ipv6.conf.NAME.dad_transmits = 0
net.ipv6.conf.NAME.addr_gen_mode = 0
net.ipv6.conf.NAME.disable_ipv6 = 0
interface 6 (NAME) guarded
programs on the device's interface NAME
NAME address 2001:db8::1/128 added
NAME up
NAME route to 10.0.3.7 from 10.0.3.1 added
NAME route to 2001:db8::7 from 2001:db8::1 added";
    assert_eq!(made.replace(name.as_str(), "NAME"), want);
    let more = follow(&[7, 8], &mut observed).replace(name.as_str(), "NAME");
    assert_eq!(more.lines().count(), 2, "{more}");
    let gone = follow(&[], &mut observed).replace(name.as_str(), "NAME");
    let want = "NAME deleted\ninterface 6 removed\nprograms on the device's interface NAME removed";
    assert_eq!(gone, want);
    assert_eq!((observed.links, observed.interfaces), (before.links, before.interfaces));
}

#[test]
fn it_follows_the_parents_addresses() {
    let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
    follow(&[7], &mut observed);
    let name = wanted(&[7], &observed)[0].name.clone();
    observed.addresses.retain(|a| a.link != 5);
    observed.addresses.push(Address::usual(5, "10.0.3.2/24".parse().expect("address")));
    // Of a deprecated address, a temporary one and one that is not usable yet there is no copy.
    let of = |text: &str| Address::usual(5, text.parse().expect("address"));
    observed.addresses.push(Address { avoided: true, ..of("2001:db8::2/64") });
    observed.addresses.push(Address { secondary: true, ..of("2001:db8::3/64") });
    observed.addresses.push(Address { unusable: true, ..of("2001:db8::4/64") });
    let want = "\
net.ipv6.conf.NAME.addr_gen_mode = 1
NAME route to 10.0.3.7 from 10.0.3.1 removed
NAME route to 2001:db8::7 from 2001:db8::1 removed
NAME address 2001:db8::1/128 removed
NAME route to 10.0.3.7 from 10.0.3.2 added";
    assert_eq!(follow(&[7], &mut observed).replace(name.as_str(), "NAME"), want);
}

#[test]
fn a_route_that_has_lost_its_source_goes() {
    let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
    follow(&[7], &mut observed);
    let name = wanted(&[7], &observed)[0].name.clone();
    // As it is when the address was removed, and the daemon was killed then.
    let (mine, others): (BTreeSet<HostRoute>, _) = observed.host_routes.iter().partition(|r| r.to.is_ipv6());
    observed.host_routes = others;
    observed.host_routes.extend(mine.into_iter().map(|route| HostRoute { from: None, ..route }));
    let want = "\
NAME route to 2001:db8::7 removed
NAME route to 2001:db8::7 from 2001:db8::1 added";
    assert_eq!(follow(&[7], &mut observed).replace(name.as_str(), "NAME"), want);
}

#[test]
fn without_ipv6_of_the_parent_there_is_none() {
    let mut observed = device(&["10.0.3.1/24"]);
    let steps = follow(&[7], &mut observed);
    assert!(!steps.contains("addr_gen_mode") && !steps.contains("disable_ipv6"), "{steps}");
    let none = observed.sysctls.iter().filter(|(sysctl, value)| sysctl.key == "addr_gen_mode" && *value == "1");
    assert_eq!(none.count(), 1);
    observed.addresses.push(Address::usual(5, "2001:db8::1/64".parse().expect("address")));
    let steps = follow(&[7], &mut observed);
    assert!(steps.contains("addr_gen_mode = 0") && steps.contains("disable_ipv6 = 0"), "{steps}");
}

#[test]
fn a_copy_of_an_address_is_not_preferred() {
    let mut observed = device(&["2001:db8::1/64"]);
    follow(&[7], &mut observed);
    let copy = observed.addresses.iter_mut().find(|a| a.link != 5).expect("a copy");
    assert!(copy.avoided, "{copy:?}");
    copy.avoided = false;
    let steps = follow(&[7], &mut observed);
    assert_eq!(steps.lines().count(), 2, "{steps}");
}

#[test]
fn one_that_is_open_without_its_programs_is_set_down_first() {
    let mut observed = device(&["10.0.3.1/24"]);
    follow(&[7], &mut observed);
    observed.hooked.clear();
    let steps = follow(&[7], &mut observed);
    let at = |what: &str| steps.lines().position(|line| line.contains(what)).expect("a step");
    assert!(at(" down") < at("programs") && at("programs") < at(" up") && at(" up") < at("route"), "{steps}");
}
