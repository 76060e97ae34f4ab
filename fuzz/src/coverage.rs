//! Which code an input reaches: LLVM's SanitizerCoverage (inline 8-bit counters), that a stable compiler has.
//!
//! `cargo xtask fuzz` builds with its flags. Then a counter for each edge is raised wherever the program goes, and the
//! function below is told where they are. In other builds there are none.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

static FIRST: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Called before `main` by each instrumented unit; the linker has put the counters of all in one place.
// SAFETY: the name is LLVM's, and nothing else defines it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(first: *mut u8, end: *mut u8) {
    FIRST.store(first, Ordering::Relaxed);
    COUNT.store((end as usize).saturating_sub(first as usize), Ordering::Relaxed);
}

/// What was reached so far.
pub struct Coverage {
    /// The counters after the last input.
    now: Vec<u8>,
    /// For each counter the magnitudes that were seen, as bits.
    seen: Vec<u8>,
}

impl Coverage {
    /// Nothing reached.
    #[must_use]
    pub fn new() -> Self {
        let count = COUNT.load(Ordering::Relaxed);
        Self { now: vec![0; count], seen: vec![0; count] }
    }

    /// Runs `run`; the second value says whether something was reached that was not before.
    pub fn of<T>(&mut self, run: impl FnOnce() -> T) -> (T, bool) {
        let first = FIRST.load(Ordering::Relaxed);
        // SAFETY: the counters are bytes that live as long as the program; other threads of it only wait.
        unsafe { first.write_bytes(0, self.now.len()) };
        let value = run();
        // SAFETY: as above. Copied before anything else: the code of this crate has counters too.
        unsafe { self.now.as_mut_ptr().copy_from_nonoverlapping(first, self.now.len()) };
        (value, self.add())
    }

    fn add(&mut self) -> bool {
        let mut new = false;
        for (now, seen) in self.now.chunks(8).zip(self.seen.chunks_mut(8)) {
            // Most are zero.
            if now.try_into().is_ok_and(|now| u64::from_ne_bytes(now) == 0) {
                continue;
            }
            for (now, seen) in now.iter().zip(seen) {
                let bit = magnitude(*now);
                new |= *seen & bit != bit;
                *seen |= bit;
            }
        }
        new
    }

    /// Counters that were raised at all, and how many there are.
    #[must_use]
    pub fn reached(&self) -> (usize, usize) {
        (self.seen.iter().filter(|s| **s != 0).count(), self.seen.len())
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self::new()
    }
}

/// Once, twice and many times are different things; seven and eight times are not.
fn magnitude(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..8 => 8,
        8..16 => 16,
        16..32 => 32,
        32..128 => 64,
        _ => 128,
    }
}
