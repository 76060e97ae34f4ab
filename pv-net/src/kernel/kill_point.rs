//! Where the daemon can be made to die: before each write to the kernel or to the disk.
//!
//! `PV_NET_KILL_AT=attach:7` ends it by SIGKILL before the seventh write of an attach. Tests walk through all of them.
//! The list of points is the code itself, so a new write is a new point. Who can set the daemon's environment can end it
//! anyway, so this is in every build: what is tested is what is shipped.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The variable.
const VARIABLE: &str = "PV_NET_KILL_AT";

static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
static COUNTS: AtomicBool = AtomicBool::new(false);
static PASSED: AtomicU64 = AtomicU64::new(0);

/// The operation and the number in the variable's text; none when it is not of that form.
fn parse(text: &str) -> Option<(String, u64)> {
    let (operation, number) = text.split_once(':')?;
    Some((operation.to_owned(), number.parse().ok()?))
}

fn wanted() -> Option<&'static (String, u64)> {
    WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?)).as_ref()
}

/// An operation, for as long as this is there.
#[must_use]
pub struct Operation(());

/// An operation begins: `start`, `attach`, `detach`, `reload` or `down`. Points are counted from here.
pub fn begin(operation: &str) -> Operation {
    if let Some((at, _)) = wanted() {
        PASSED.store(0, Ordering::Relaxed);
        COUNTS.store(at == operation, Ordering::Relaxed);
    }
    Operation(())
}

impl Drop for Operation {
    fn drop(&mut self) {
        COUNTS.store(false, Ordering::Relaxed);
    }
}

/// A write is about to be made.
pub fn pass() {
    let Some((_, number)) = wanted() else { return };
    if COUNTS.load(Ordering::Relaxed) && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *number {
        // Neither destructors nor handlers run: as by the kernel when memory runs out.
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
