//! How glibc is told to keep little memory.

/// Tables of this size and more are mapped by themselves, and unmapped when they are dropped. Without a fixed size glibc
/// raises it with the first large table, and from then on keeps them between small pieces that live longer.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 * 1024;

/// Sets what must be set before the second thread starts. glibc gives each thread its own heap, and each keeps the memory
/// that it once had. Two are enough here: one for the controller and one for all other threads.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the calls take two numbers each, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// Gives back the memory that is not in use: a start, and many attaches in a row, need more than what follows.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and may be made at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
