//! Plans carried out by a kernel in memory, in which each step fails once.

use super::*;
use crate::kernel::fake::Fake;
use crate::plan::fixture::{desired, links, whole};
use crate::plan::{diff, endpoint_ops};
use proptest::prelude::*;

fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
}

#[test]
fn one_bad_link_stops_neither_the_others_nor_the_start() {
    let mut kernel = Fake::new(links(&[7, 8], false));
    let ops = diff(&desired(&[7, 8], true), &kernel.holds);
    // The second step attaches the programs of the first link.
    kernel.refuse_after = Some(1);
    let failed = now(carry_out(&mut kernel, &ops));
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].link, Some(107));
    assert_eq!(failed[0].why, "programs on pv7: refused by a test: programs on pv7: its traffic is stopped");
    assert_eq!(
        kernel.to_string(),
        "link 107 pv7: down\nlink 108 pv8: up, port of 2, guarded\n\
         interface 107: identity 7, pool 1\ninterface 108: identity 8, pool 1\n\
         endpoint 10.0.3.8 at 108\nendpoint fe80::1:0:aff:fe00:308 at 108\n"
    );
}

#[test]
fn what_cannot_be_closed_is_deleted() {
    let mut holds = whole(&[7], true);
    holds.hooks = Some([].into());
    let mut kernel = Fake::new(holds);
    // The link can be set down neither by its step nor when it is closed because its programs were refused.
    kernel.refuse = vec!["pv7 down".to_owned(), "programs on pv7".to_owned(), "107 down".to_owned()];
    let ops = diff(&desired(&[7], true), &kernel.holds);
    let failed = now(carry_out(&mut kernel, &ops));
    assert_eq!(failed.len(), 2);
    assert!(kernel.holds.links.is_empty(), "{kernel}");
}

#[test]
fn a_failure_while_undoing_is_told_after_the_first_cause() {
    let mut kernel = Fake::new(links(&[7], false));
    let before = kernel.holds.clone();
    let want = desired(&[7], true);
    let endpoint = want.endpoints.values().next().expect("one");
    let ops = endpoint_ops(endpoint, &before.links["pv7"], &before);
    kernel.refuse = vec!["pv7 up".to_owned(), "pv7 port of no bridge".to_owned()];
    let failure = now(all_or_nothing(&mut kernel, &ops, &before)).expect_err("it cannot go up");
    let said: Vec<&str> = failure.messages.iter().map(|m| m.error.as_str()).collect();
    assert_eq!(
        said,
        [
            "refused by a test: pv7 up",
            "and not put back as it was: pv7 port of no bridge: refused by a test: pv7 port of no bridge"
        ]
    );
}

/// A subset of the containers.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::btree_set(2u8..12, 0..6).prop_map(|set| set.into_iter().collect())
}

proptest! {
    /// When any step fails once, no link is ever open without its guard, other containers are complete, and a second
    /// try succeeds.
    #[test]
    fn a_step_that_fails_leaves_nothing_open(
        before in numbers(),
        there in numbers(),
        after in numbers(),
        isolated: bool,
        at in 0usize..40,
    ) {
        let mut holds = whole(&before, true);
        for (name, link) in links(&there, false).links {
            holds.links.entry(name).or_insert(link);
        }
        let mut kernel = Fake::new(holds);
        let want = desired(&after, isolated);
        let ops = diff(&want, &kernel.holds);
        kernel.refuse_after = Some(at);
        let failed = now(carry_out(&mut kernel, &ops));
        prop_assert_eq!(failed.len(), usize::from(at < ops.len()));
        prop_assert_eq!(&kernel.ever_unguarded, &Vec::<String>::new());
        let left: Vec<_> = diff(&want, &kernel.holds).iter().filter_map(Op::opens).collect();
        let concerned: Vec<_> = failed.iter().filter_map(|f| f.link).collect();
        prop_assert!(left.iter().all(|link| concerned.contains(link)), "{left:?} {concerned:?}");
        for link in concerned {
            prop_assert!(kernel.holds.link(link).is_none_or(|l| !l.up));
        }
        kernel.refuse_after = None;
        let ops = diff(&want, &kernel.holds);
        prop_assert_eq!(now(carry_out(&mut kernel, &ops)).len(), 0);
        prop_assert_eq!(diff(&want, &kernel.holds), vec![]);
    }

    /// A transaction is done completely, or leaves the state before it.
    #[test]
    fn a_transaction_is_whole_or_nothing(after in numbers(), isolated: bool, at in 0usize..40) {
        let mut kernel = Fake::new(whole(&after, true));
        let before = kernel.holds.clone();
        let want = desired(&after, isolated);
        let ops = diff(&want, &before);
        kernel.refuse_after = Some(at);
        match now(all_or_nothing(&mut kernel, &ops, &before)) {
            Ok(()) => prop_assert_eq!(diff(&want, &kernel.holds), vec![]),
            Err(_) => prop_assert_eq!(&kernel.holds, &before),
        }
        prop_assert_eq!(&kernel.ever_unguarded, &Vec::<String>::new());
    }
}
