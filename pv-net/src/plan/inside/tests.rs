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
        claims: false,
    }
}

fn text(steps: &[InsideStep]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

/// A namespace with its routes.
#[derive(Clone, Default)]
struct Namespace {
    inside: Inside,
    routes: Vec<LegRoute>,
}

impl Namespace {
    /// Carries out the steps as the kernel does: one that is done already changes nothing.
    fn arrange(&mut self, legs: &[Leg]) {
        for step in inside_steps(legs, &self.inside) {
            match step {
                InsideStep::AddRoute(route) if self.routes.contains(&route) => {}
                InsideStep::AddRoute(route) => self.routes.push(route),
                InsideStep::RemoveRoute(route) => self.routes.retain(|r| *r != route),
                InsideStep::AddRule(rule) => self.inside.rules.push(rule),
                InsideStep::RemoveRule(rule) => self.inside.rules.retain(|r| *r != rule),
            }
        }
    }

    /// The kernel removes a link's routes with the link.
    fn delete_links(&mut self, gone: impl Fn(u32) -> bool) {
        self.routes.retain(|r| !gone(r.link));
    }

    fn sorted(&self) -> Vec<String> {
        let mut all: Vec<String> = self.routes.iter().map(ToString::to_string).collect();
        all.extend(self.inside.rules.iter().map(ToString::to_string));
        all.sort();
        all
    }
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
add rule 20000: from 10.0.3.2 to 10.0.3.0/24 lookup 20002
add rule 20000: from 10.0.3.2 to 10.0.4.0/24 lookup 20002
add rule 20001: from 10.0.3.2 lookup main suppress_prefixlength 0
add rule 20002: from 10.0.3.2 lookup 20002
add rule 20000: from fd00:3::2 to fd00:3::/64 lookup 20002
add rule 20000: from fd00:3::2 to fd00:4::/64 lookup 20002
add rule 20001: from fd00:3::2 lookup main suppress_prefixlength 0
add rule 20002: from fd00:3::2 lookup 20002
add rule 20000: from 10.0.4.2 to 10.0.3.0/24 lookup 20003
add rule 20000: from 10.0.4.2 to 10.0.4.0/24 lookup 20003
add rule 20001: from 10.0.4.2 lookup main suppress_prefixlength 0
add rule 20002: from 10.0.4.2 lookup 20003
add rule 20000: from fd00:4::2 to fd00:3::/64 lookup 20003
add rule 20000: from fd00:4::2 to fd00:4::/64 lookup 20003
add rule 20001: from fd00:4::2 lookup main suppress_prefixlength 0
add rule 20002: from fd00:4::2 lookup 20003
";

#[test]
fn one_interface_needs_no_rule() {
    assert_eq!(text(&inside_steps(&[leg(2, 3, true, true)], &Inside::default())), ONE);
}

#[test]
fn each_of_two_interfaces_has_a_table() {
    let legs = [leg(2, 3, true, true), leg(3, 4, false, false)];
    let others = "remove route 0.0.0.0/0 via 10.0.4.1 link 3\nremove route ::/0 via fd00:4::1 link 3\n";
    assert_eq!(text(&inside_steps(&legs, &Inside::default())), format!("{TWO}{others}{ONE}"));
}

#[test]
fn the_second_interface_goes_and_takes_all_rules_along() {
    let mut namespace = Namespace::default();
    namespace.arrange(&[leg(2, 3, false, true), leg(3, 4, true, false)]);
    namespace.delete_links(|link| link == 3);
    namespace.arrange(&[leg(2, 3, true, true)]);
    assert_eq!(namespace.sorted(), ["0.0.0.0/0 via 10.0.3.1 link 2", "::/0 via fd00:3::1 link 2"]);
}

#[test]
fn a_default_route_moves() {
    let mut namespace = Namespace::default();
    namespace.arrange(&[leg(2, 3, true, true)]);
    let steps = inside_steps(&[leg(2, 3, false, true), leg(3, 4, true, false)], &namespace.inside);
    let want = "\
remove route 0.0.0.0/0 via 10.0.3.1 link 2
remove route ::/0 via fd00:4::1 link 3
add route ::/0 via fd00:3::1 link 2
add route 0.0.0.0/0 via 10.0.4.1 link 3
";
    assert_eq!(text(&steps), format!("{TWO}{want}"));
}

/// It comes before those of the container, in the main table only.
#[test]
fn a_claimed_default_route_comes_first() {
    let claims = Leg { claims: true, ..leg(3, 4, true, true) };
    let steps = text(&inside_steps(&[leg(2, 3, false, false), claims], &Inside::default()));
    let first: Vec<&str> = steps.lines().filter(|l| l.ends_with("first")).collect();
    assert_eq!(first, ["add route 0.0.0.0/0 via 10.0.4.1 link 3 first", "add route ::/0 via fd00:4::1 link 3 first"]);
}

/// Earlier versions had one rule for each address.
#[test]
fn rules_of_an_earlier_version_are_replaced() {
    let old = SourceRule { priority: 20_000, from: "10.0.3.2".parse().expect("address"), to: None, table: 20_002 };
    let mut namespace = Namespace { inside: Inside { rules: vec![old], ..Inside::default() }, routes: Vec::new() };
    let legs = [leg(2, 3, true, true), leg(3, 4, false, false)];
    let mut fresh = Namespace::default();
    namespace.arrange(&legs);
    fresh.arrange(&legs);
    assert_eq!(namespace.sorted(), fresh.sorted());
}

#[test]
fn a_container_with_rules_of_its_own_gets_none_in_that_family() {
    let own = Inside { keeps_out4: true, ..Inside::default() };
    let steps = text(&inside_steps(&[leg(2, 3, true, true), leg(3, 4, false, false)], &own));
    assert!(!steps.contains(": from 10.") && !steps.contains("10.0.4.0/24"), "{steps}");
    assert!(steps.contains("add rule 20002: from fd00:4::2 lookup 20003"), "{steps}");
    assert!(steps.contains("add route 0.0.0.0/0 via 10.0.3.1 link 2\n"), "{steps}");
}

proptest! {
    /// Whatever a namespace has, the steps lead to what the legs need, and the same steps again change nothing.
    #[test]
    fn steps_lead_there(before in 0usize..4, now in 0usize..4, first: bool) {
        let legs = |count: usize, main: usize| -> Vec<Leg> {
            (0..count).map(|i| leg(i as u32 + 2, i as u8 + 3, i == main, i == 0)).collect()
        };
        let mut there = Namespace::default();
        there.arrange(&legs(before, 0));
        there.delete_links(|link| link >= now as u32 + 2);
        let wanted = legs(now, usize::from(!first && now > 1));
        there.arrange(&wanted);
        let once = there.sorted();
        there.arrange(&wanted);
        prop_assert_eq!(&there.sorted(), &once);
        let mut fresh = Namespace::default();
        fresh.arrange(&wanted);
        prop_assert_eq!(once, fresh.sorted());
    }
}
