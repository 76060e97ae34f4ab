//! Limits on what one input may cost.

use nix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

/// Most CPU time for an input. Inputs have at most [`crate::hunt::MAX_LEN`] bytes, so code that takes this long, even
/// barely optimised, grows too fast with its input.
pub const TIME: Duration = Duration::from_secs(2);

/// Most memory at a time, bytes. Nothing may be allocated for a length that an input only claims to have.
pub const MEMORY: usize = 64 << 20;

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn add(bytes: usize) {
    // This thread may free memory that another one allocated.
    LIVE.set(LIVE.get().wrapping_add(bytes));
    if LIVE.get() as isize > PEAK.get() as isize {
        PEAK.set(LIVE.get());
    }
}

// SAFETY: everything is left to `System`; the cells have no destructor and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `check` on `input`.
///
/// # Panics
/// When `check` does, or takes more than an input may.
pub fn enforce(check: fn(&[u8]), input: &[u8]) {
    let (start, before) = (cpu_time(), LIVE.get());
    PEAK.set(before);
    check(input);
    let (took, peak) = (cpu_time().saturating_sub(start), PEAK.get().wrapping_sub(before));
    assert!(took <= TIME, "{} bytes took {took:?} of CPU time, and {TIME:?} is the most", input.len());
    assert!(peak <= MEMORY, "{} bytes took {peak} bytes of memory, and {MEMORY} is the most", input.len());
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::{MEMORY, enforce};

    #[test]
    fn memory_is_counted() {
        enforce(|_| drop(std::hint::black_box(vec![0u8; MEMORY / 2])), &[]);
        let large = || enforce(|_| drop(std::hint::black_box(vec![0u8; MEMORY * 2])), &[]);
        assert!(std::panic::catch_unwind(large).is_err());
    }
}
