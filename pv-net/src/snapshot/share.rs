//! Keeping what stayed the same.

use std::cmp::Ordering;
use std::sync::Arc;

/// `now`, or `before` where both are the same.
#[must_use]
pub fn share<T: PartialEq>(before: &Arc<T>, now: T) -> Arc<T> {
    if **before == now { before.clone() } else { Arc::new(now) }
}

/// The list that `now` describes, with the parts of `before` that stayed the same; `before` itself when all of them did.
///
/// Both are in the order of their keys, by which `order` compares. `same` says whether a part is still what it was, and
/// `make` makes one anew: only for what changed.
pub fn share_all<T, N>(
    before: &Arc<[Arc<T>]>,
    now: impl IntoIterator<Item = N>,
    order: impl Fn(&T, &N) -> Ordering,
    same: impl Fn(&T, &N) -> bool,
    make: impl Fn(N) -> T,
) -> Arc<[Arc<T>]> {
    let mut old = before.iter().peekable();
    let part = |n: N| {
        while old.next_if(|t| order(t, &n).is_lt()).is_some() {}
        match old.next_if(|t| order(t, &n).is_eq()) {
            Some(t) if same(t, &n) => t.clone(),
            _ => Arc::new(make(n)),
        }
    };
    let parts: Vec<Arc<T>> = now.into_iter().map(part).collect();
    let unchanged = parts.len() == before.len() && parts.iter().zip(&**before).all(|(new, old)| Arc::ptr_eq(new, old));
    if unchanged { before.clone() } else { parts.into() }
}
