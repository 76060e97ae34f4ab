//! Golden plans for the routes inside a container.

use super::*;
use proptest::prelude::*;

fn leg(link: u32, n: u8, default4: bool, default6: bool) -> Leg {
    let net = |text: String| text.parse().expect("network");
    Leg {
        link,
        addresses: vec![net(format!("10.0.{n}.2/24")), net(format!("fd00:{n}::2/64"))],
        gateways: vec![IpAddr::from([10, 0, n, 1]), format!("fd00:{n}::1").parse().expect("gateway")],
        default4,
        default6,
    }
}

fn text(steps: &[InsideStep]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

/// What a namespace has after `steps`.
fn after(mut inside: Inside, steps: &[InsideStep]) -> Inside {
    for step in steps {
        match step {
            InsideStep::AddRoute(route) => inside.routes.push(*route),
            InsideStep::RemoveRoute(route) => inside.routes.retain(|r| r != route),
            InsideStep::AddRule(rule) => inside.rules.push(*rule),
            InsideStep::RemoveRule(rule) => inside.rules.retain(|r| r != rule),
        }
    }
    inside
}

const ONE: &str = "\
add route 0.0.0.0/0 via 10.0.3.1 link 2
add route ::/0 via fd00:3::1 link 2
";

const TWO: &str = "\
add route 10.0.3.0/24 link 2 table 20002
add route fd00:3::/64 link 2 table 20002
add route 0.0.0.0/0 via 10.0.3.1 link 2 table 20002
add route ::/0 via fd00:3::1 link 2 table 20002
add route 10.0.4.0/24 link 3 table 20003
add route fd00:4::/64 link 3 table 20003
add route 0.0.0.0/0 via 10.0.4.1 link 3 table 20003
add route ::/0 via fd00:4::1 link 3 table 20003
add rule from 10.0.3.2 lookup 20002
add rule from fd00:3::2 lookup 20002
add rule from 10.0.4.2 lookup 20003
add rule from fd00:4::2 lookup 20003
";

#[test]
fn one_interface_needs_no_rule() {
    assert_eq!(text(&inside_steps(&[leg(2, 3, true, true)], &Inside::default())), ONE);
}

#[test]
fn each_of_two_interfaces_has_a_table() {
    let legs = [leg(2, 3, true, true), leg(3, 4, false, false)];
    assert_eq!(text(&inside_steps(&legs, &Inside::default())), format!("{TWO}{ONE}"));
}

#[test]
fn the_second_interface_goes_and_takes_all_rules_along() {
    let legs = [leg(2, 3, false, true), leg(3, 4, true, false)];
    let mut inside = after(Inside::default(), &inside_steps(&legs, &Inside::default()));
    // The kernel removes a link's routes with the link.
    inside.routes.retain(|r| r.link != 3);
    let want = "\
add route 0.0.0.0/0 via 10.0.3.1 link 2
remove rule from 10.0.3.2 lookup 20002
remove rule from fd00:3::2 lookup 20002
remove rule from 10.0.4.2 lookup 20003
remove rule from fd00:4::2 lookup 20003
remove route 10.0.3.0/24 link 2 table 20002
remove route fd00:3::/64 link 2 table 20002
remove route 0.0.0.0/0 via 10.0.3.1 link 2 table 20002
remove route ::/0 via fd00:3::1 link 2 table 20002
";
    assert_eq!(text(&inside_steps(&[leg(2, 3, true, true)], &inside)), want);
}

#[test]
fn a_default_route_moves() {
    let before = after(Inside::default(), &inside_steps(&[leg(2, 3, true, true)], &Inside::default()));
    let steps = inside_steps(&[leg(2, 3, false, true), leg(3, 4, true, false)], &before);
    let want = format!("{TWO}remove route 0.0.0.0/0 via 10.0.3.1 link 2\nadd route 0.0.0.0/0 via 10.0.4.1 link 3\n");
    assert_eq!(text(&steps), want);
}

#[test]
fn a_container_with_rules_of_its_own_gets_none_in_that_family() {
    let own = Inside { keeps_out4: true, ..Inside::default() };
    let steps = text(&inside_steps(&[leg(2, 3, true, true), leg(3, 4, false, false)], &own));
    assert!(!steps.contains("rule from 10.") && !steps.contains("10.0.4.0/24"), "{steps}");
    assert!(steps.contains("add rule from fd00:4::2 lookup 20003"), "{steps}");
    assert!(steps.contains("add route 0.0.0.0/0 via 10.0.3.1 link 2\n"), "{steps}");
}

proptest! {
    /// Whatever a namespace has, the steps lead to what the legs need, and there is nothing to do then.
    #[test]
    fn steps_lead_there(before in 0usize..4, now in 0usize..4, first: bool) {
        let legs = |count: usize, main: usize| -> Vec<Leg> {
            (0..count).map(|i| leg(i as u32 + 2, i as u8 + 3, i == main, i == 0)).collect()
        };
        let was = legs(before, 0);
        let mut inside = after(Inside::default(), &inside_steps(&was, &Inside::default()));
        inside.routes.retain(|r| r.link < now as u32 + 2);
        let wanted = legs(now, usize::from(!first && now > 1));
        let there = after(inside.clone(), &inside_steps(&wanted, &inside));
        prop_assert_eq!(text(&inside_steps(&wanted, &there)), "");
        let fresh = after(Inside::default(), &inside_steps(&wanted, &Inside::default()));
        let sorted = |inside: &Inside| {
            let mut all: Vec<String> = inside.routes.iter().map(ToString::to_string).collect();
            all.extend(inside.rules.iter().map(ToString::to_string));
            all.sort();
            all
        };
        prop_assert_eq!(sorted(&there), sorted(&fresh));
    }
}
