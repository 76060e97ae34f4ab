//! Golden plans, and properties of every plan.

use super::fixture::{desired, links, whole};
use super::*;
use proptest::prelude::*;
use pv_net_common::Ip;
use std::net::Ipv4Addr;

fn text(ops: &[Op]) -> String {
    ops.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn after(mut observed: Observed, ops: &[Op]) -> Observed {
    ops.iter().for_each(|op| observed.apply(op));
    observed
}

#[test]
fn the_guard_is_there_before_the_link_is_up() {
    let plan = text(&diff(&desired(&[7], true), &links(&[7], false)));
    let want = "interface 107 (pv7) guarded\nprograms on pv7\npv7 port of bridge 2\npv7 up\nendpoint 10.0.3.7 at 107\n\
                endpoint fe80::1:0:aff:fe00:307 at 107";
    assert_eq!(plan, want);
}

#[test]
fn a_link_without_its_guard_is_set_down_first() {
    let mut now = whole(&[7], true);
    now.hooks = Some([].into());
    assert_eq!(text(&diff(&desired(&[7], true), &now)), "pv7 down\nprograms on pv7\npv7 up");
}

#[test]
fn what_is_gone_is_removed_last() {
    let mut now = whole(&[7, 8], true);
    now.links.remove("pv8");
    let plan = text(&diff(&desired(&[7, 8], true), &now));
    assert_eq!(
        plan,
        "endpoint 10.0.3.8 removed\nendpoint fe80::1:0:aff:fe00:308 removed\n\
         interface 108 removed\nprograms of link 108 forgotten\nflows of 10.0.3.8, fe80::aff:fe00:308 ended"
    );
}

#[test]
fn a_link_that_nothing_is_known_of_is_held_with_its_guard() {
    let plan = diff(&desired(&[7], true), &whole(&[7, 8], true));
    assert_eq!(
        text(&plan),
        "pv8 down\ninterface 108 removed\nendpoint 10.0.3.8 removed\nendpoint fe80::1:0:aff:fe00:308 removed\n\
         flows of 10.0.3.8, fe80::aff:fe00:308 ended"
    );
    let held = after(whole(&[7, 8], true), &plan);
    assert!(held.is_guarded(108) && !held.links["pv8"].up);
    assert_eq!(diff(&desired(&[7], true), &held), []);
    // The container's pool exists again.
    let plan = text(&diff(&desired(&[7, 8], true), &held));
    let want = "interface 108 (pv8) guarded\npv8 up\nendpoint 10.0.3.8 at 108\nendpoint fe80::1:0:aff:fe00:308 at 108";
    assert_eq!(plan, want);
}

#[test]
fn a_pool_that_opens_changes_entries_only() {
    let plan = text(&diff(&desired(&[7], false), &whole(&[7], true)));
    assert_eq!(plan, "interface 107 (pv7) guarded\nendpoint 10.0.3.7 at 107\nendpoint fe80::1:0:aff:fe00:307 at 107");
}

#[test]
fn an_interface_is_not_put_into_a_pool_with_other_networks() {
    let (attachment, mut pool) = (fixture::attachment(7), fixture::pool(true));
    assert_eq!(misplaced(&attachment, &pool), None);
    pool.v4.as_mut().expect("has one").net = "10.0.4.0/24".parse().expect("net");
    assert_eq!(misplaced(&attachment, &pool).as_deref(), Some("pool internal has other networks than 10.0.3.7"));
    pool.v4 = None;
    assert!(misplaced(&attachment, &pool).is_some());
}

/// Else the rehearsal would take what is known of the deleted bridge for the new one's.
#[test]
fn a_deleted_bridge_takes_all_with_it_and_its_index_is_not_given_again() {
    let of = bridge(&fixture::pool(true), 1500).expect("a bridge");
    let mut now = after(links(&[7], false), &[Op::MakeBridge(Box::new(of.clone()))]);
    let first = now.links["pvbr0"].index;
    assert_eq!(first, 108);
    let link = || "pvbr0".to_owned();
    let address = "10.0.3.1/24".parse().expect("address");
    let before = links(&[7], false);
    for op in [
        Op::AddAddress { link: link(), index: first, address, deprecated: false },
        Op::Hook { at: HookPoint::Bridge, link: of.name.clone(), index: first },
        Op::Enslave { host_if: "pv7".parse().expect("name"), index: 107, bridge: first, mac: of.mac },
    ] {
        now.apply(&op);
    }
    now.apply(&Op::DeleteLink { link: link(), index: first });
    assert_eq!(now, before);
    now.apply(&Op::MakeBridge(Box::new(of)));
    assert_eq!(now.links["pvbr0"].index, first + 1);
    assert!(!now.is_hooked(HookPoint::Bridge, first + 1) && !now.has_address(first + 1, address));
}

/// A subset of the containers.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::btree_set(2u8..20, 0..8).prop_map(|set| set.into_iter().collect())
}

/// A state of the kernel: some containers are complete, some have only a link, some lack programs or map entries.
fn observed() -> impl Strategy<Value = Observed> {
    (numbers(), numbers(), numbers(), numbers(), any::<bool>()).prop_map(|(is_whole, there, bare, lost, isolated)| {
        let mut observed = whole(&is_whole, isolated);
        for (name, link) in links(&there, true).links {
            observed.links.entry(name).or_insert(link);
        }
        for n in bare {
            observed.hooks.as_mut().expect("known").remove(&(100 + u32::from(n)));
        }
        for n in lost {
            observed.interfaces.remove(&(100 + u32::from(n)));
            observed.endpoints.remove(&Ip::from(Ipv4Addr::new(10, 0, 3, n)));
        }
        observed
    })
}

proptest! {
    /// A plan leads from any state to any other, and leaves nothing to do. No step takes the guard from a link that has
    /// one, and after the plan every link has one.
    #[test]
    fn every_transition_lands(now in observed(), want in numbers(), isolated: bool) {
        let want = desired(&want, isolated);
        let open_before: Vec<String> = now.unguarded().into_iter().map(ToOwned::to_owned).collect();
        let mut then = now.clone();
        for op in diff(&want, &now) {
            then.apply(&op);
            prop_assert!(then.unguarded().iter().all(|name| open_before.iter().any(|open| open == name)), "{op}");
        }
        prop_assert_eq!(then.unguarded(), Vec::<&str>::new());
        prop_assert_eq!(diff(&want, &then), vec![]);
        let there = |name: &str| then.links.contains_key(name);
        let whole: Vec<_> = want.endpoints.values().filter(|e| there(e.host_if.as_str())).collect();
        prop_assert_eq!(then.interfaces.len(), whole.len());
        prop_assert_eq!(then.endpoints.len(), 2 * whole.len());
        for endpoint in whole {
            let link = &then.links[endpoint.host_if.as_str()];
            prop_assert!(link.up && link.controller == Some(2));
            prop_assert_eq!(then.interfaces[&link.index], endpoint.info);
        }
    }

    /// A step that is carried out twice has the same result as once, and undoing a step restores the state before.
    /// Exceptions are deleted links, programs of a link that is up, and links that were open without their guard.
    #[test]
    fn a_step_can_be_repeated_and_undone(now in observed(), want in numbers(), isolated: bool) {
        let mut before = now;
        for op in diff(&desired(&want, isolated), &before) {
            let once = after(before.clone(), std::slice::from_ref(&op));
            prop_assert_eq!(&after(once.clone(), std::slice::from_ref(&op)), &once, "{}", op);
            let back = after(once.clone(), &op.undo(&before));
            // A link that was open without its guard stays closed.
            let was_open = matches!(&op, Op::SetDown { link, .. } if before.unguarded().contains(&link.as_str()));
            prop_assert_eq!(&back, if was_open { &once } else { &before }, "{}", op);
            before = once;
        }
    }
}
