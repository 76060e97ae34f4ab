//! Lets tests make a service panic when it starts.
//!
//! `PV_NET_PANIC_AT=sweep:2` makes `sweep` panic at each of its first two starts. As with
//! [`kill_point`](super::kill_point), whoever can set the daemon's environment can end it anyway, so this is in every
//! build.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable.
const VARIABLE: &str = "PV_NET_PANIC_AT";

static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
static STARTS: AtomicU64 = AtomicU64::new(0);

/// The service and the number in the variable's value; `None` when it has another form.
fn parse(text: &str) -> Option<(String, u64)> {
    let (service, number) = text.split_once(':')?;
    Some((service.to_owned(), number.parse().ok()?))
}

/// Called when a service starts.
///
/// # Panics
/// When the environment variable asks for it.
pub fn pass(service: &str) {
    let wanted = WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let Some((at, times)) = wanted else { return };
    if at == service && STARTS.fetch_add(1, Ordering::Relaxed) < *times {
        panic!("{VARIABLE} asks for it");
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_variable_names_a_service_and_a_number() {
        assert_eq!(parse("sweep:2"), Some(("sweep".to_owned(), 2)));
        assert_eq!((parse("sweep"), parse("sweep:x"), parse("")), (None, None, None));
    }
}
