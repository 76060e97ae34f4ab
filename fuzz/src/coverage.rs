//! Measures which code an input reaches, with LLVM's SanitizerCoverage (inline 8-bit counters), which a stable compiler
//! has.
//!
//! `cargo xtask fuzz` builds with the necessary flags. Then each edge that the program takes increments a counter, and
//! the function below is told where the counters are. Other builds have no counters.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

static FIRST: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Called before `main` by each instrumented unit. The linker has put all counters in one place.
// SAFETY: the name is LLVM's, and nothing else defines it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(first: *mut u8, end: *mut u8) {
    FIRST.store(first, Ordering::Relaxed);
    COUNT.store((end as usize).saturating_sub(first as usize), Ordering::Relaxed);
}

/// The code that was reached so far.
pub struct Coverage {
    /// The counters after the last input.
    now: Vec<u8>,
    /// For each counter, the magnitudes that occurred, as bits.
    seen: Vec<u8>,
}

impl Coverage {
    /// Nothing reached.
    #[must_use]
    pub fn new() -> Self {
        let count = COUNT.load(Ordering::Relaxed);
        Self { now: vec![0; count], seen: vec![0; count] }
    }

    /// Runs `run`. The second value says whether new code was reached.
    pub fn of<T>(&mut self, run: impl FnOnce() -> T) -> (T, bool) {
        let first = FIRST.load(Ordering::Relaxed);
        // SAFETY: the counters are bytes that live as long as the program; other threads of it only wait.
        unsafe { first.write_bytes(0, self.now.len()) };
        let value = run();
        // SAFETY: as above. The counters are copied before anything else, since this crate's own code is counted too.
        unsafe { self.now.as_mut_ptr().copy_from_nonoverlapping(first, self.now.len()) };
        (value, self.add())
    }

    fn add(&mut self) -> bool {
        let mut new = false;
        for (now, seen) in self.now.chunks(8).zip(self.seen.chunks_mut(8)) {
            // Most counters are zero, so eight at a time are skipped.
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

    /// How many counters were incremented, and how many there are.
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

/// The magnitude of a count: once, twice and many times differ, seven and eight times do not.
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
