//! Shares unchanged parts between snapshots.

use std::cmp::Ordering;
use std::sync::Arc;

/// `before` if it equals `now`, else `now`.
#[must_use]
pub fn share<T: PartialEq>(before: &Arc<T>, now: T) -> Arc<T> {
    if **before == now { before.clone() } else { Arc::new(now) }
}

/// A list made from `now` in which unchanged parts are taken from `before`; `before` itself when nothing has changed.
///
/// Both are sorted by their keys, which `order` compares. `same` tells whether a part is unchanged, and `make` makes a
/// new one where it is not.
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
