use super::share_all;
use std::sync::Arc;
use std::time::Instant;

fn list(before: &Arc<[Arc<(u32, u32)>]>, now: &[(u32, u32)]) -> Arc<[Arc<(u32, u32)>]> {
    share_all(before, now, |old, new| old.0.cmp(&new.0), |old, new| old == *new, |new| *new)
}

#[test]
fn what_stays_the_same_is_shared() {
    let before = list(&Arc::default(), &[(1, 10), (2, 20), (4, 40)]);
    assert!(Arc::ptr_eq(&before, &list(&before, &[(1, 10), (2, 20), (4, 40)])));
    // One part is gone, one has changed, and two are new.
    let now = list(&before, &[(0, 0), (2, 21), (3, 30), (4, 40)]);
    assert_eq!(now.iter().map(|part| **part).collect::<Vec<_>>(), [(0, 0), (2, 21), (3, 30), (4, 40)]);
    assert!(Arc::ptr_eq(&before[2], &now[3]));
    assert!(list(&now, &[]).is_empty());
    assert_eq!(list(&before, &[(1, 10)]).len(), 1);
}

#[test]
fn one_more_of_a_thousand_makes_one_part() {
    let thousand: Vec<(u32, u32)> = (0..1000).map(|n| (n * 2, n)).collect();
    let before = list(&Arc::default(), &thousand);
    let mut more = thousand;
    more.insert(501, (1001, 7));
    let begun = Instant::now();
    let now = list(&before, &more);
    let took = begun.elapsed();
    let shared = now.iter().filter(|part| before.iter().any(|old| Arc::ptr_eq(old, part))).count();
    assert_eq!((now.len(), shared), (1001, 1000));
    // In a release build it takes some microseconds; this only checks that it neither copies nor looks up each part.
    assert!(took.as_millis() < 50, "{took:?}");
}
