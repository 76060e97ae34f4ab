//! Points at which tests can kill the daemon: before each write to the kernel or to the disk.
//!
//! `PV_NET_KILL_AT=attach:7` kills the daemon by SIGKILL before the seventh write of an attach; tests go through all
//! numbers. Every write calls [`pass`], so a new write is a new point. This is in release builds too, so that what is
//! tested is what is shipped. It is no risk, since whoever can set the daemon's environment can end it anyway.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The environment variable.
const VARIABLE: &str = "PV_NET_KILL_AT";

static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
static COUNTS: AtomicBool = AtomicBool::new(false);
static PASSED: AtomicU64 = AtomicU64::new(0);

/// The operation and the number in the variable's value; `None` when it has another form.
fn parse(text: &str) -> Option<(String, u64)> {
    let (operation, number) = text.split_once(':')?;
    Some((operation.to_owned(), number.parse().ok()?))
}

fn wanted() -> Option<&'static (String, u64)> {
    WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?)).as_ref()
}

/// An operation under way, until this is dropped.
#[must_use]
pub struct Operation {
    is_wanted: bool,
}

/// Begins an operation: `start`, `attach`, `detach`, `attach_interface`, `detach_interface`, `reload` or `down`, or
/// `take_over` within another one. Points are counted from here.
pub fn begin(operation: &str) -> Operation {
    let is_wanted = wanted().is_some_and(|(at, _)| at == operation);
    if is_wanted {
        PASSED.store(0, Ordering::Relaxed);
        COUNTS.store(true, Ordering::Relaxed);
    }
    Operation { is_wanted }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.is_wanted {
            COUNTS.store(false, Ordering::Relaxed);
        }
    }
}

/// Called before each write. Kills the process if this is the chosen point.
pub fn pass() {
    let Some((_, number)) = wanted() else { return };
    if COUNTS.load(Ordering::Relaxed) && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *number {
        // SIGKILL runs neither destructors nor handlers, as when the kernel is out of memory.
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_variable_names_an_operation_and_a_number() {
        assert_eq!(parse("attach:7"), Some(("attach".to_owned(), 7)));
        assert_eq!((parse("attach"), parse("attach:x"), parse("")), (None, None, None));
    }
}
