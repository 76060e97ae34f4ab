//! Ctrl-C ends the run as an error does, so that all namespaces go away.

use crate::fault::failure;
use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    ASKED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set a flag.
///
/// # Errors
/// When a handler cannot be installed.
pub fn catch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Fails once a signal has come.
///
/// # Errors
/// When one has come: the user wants the run to end.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) {
        return Err(failure("ended by a signal", "what it made is gone; cases that were through have their files"));
    }
    Ok(())
}
