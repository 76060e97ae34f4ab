//! The kernel's tick counter (jiffies). Flows record their last use in ticks, and no system call tells the present
//! tick.

use super::BpfError;
use super::flows::Ticks;
use super::programs::Programs;
use super::table::Single;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use pv_net_common::{GlobalConfig, names};
use std::path::Path;
use std::time::{Duration, Instant};

/// The program that reads the counter, and the counter's value when the clock was opened.
pub(super) struct Clock {
    program: SchedClassifier,
    first: (Instant, u64),
}

impl Clock {
    /// Opens the program that is pinned with the maps under `root`; it writes the counter to the map `config`.
    ///
    /// # Errors
    /// When the program is not pinned, or the kernel does not run it.
    pub(super) fn open(root: &Path, config: &Single<GlobalConfig>) -> Result<Self, BpfError> {
        let program = Programs::clock(root)?;
        let now = read(&program, config)?;
        Ok(Self { program, first: (Instant::now(), now) })
    }

    /// The counter and its rate, measured since the clock was opened. Blocks until 100 ms have passed since then.
    ///
    /// # Errors
    /// When the kernel does not run the program, or `config` cannot be read.
    pub(super) fn ticks(&self, config: &Single<GlobalConfig>) -> Result<Ticks, BpfError> {
        /// Long enough to tell 250 from 300 ticks a second.
        const MEASURE: Duration = Duration::from_millis(100);
        let (start, first) = self.first;
        if let Some(rest) = MEASURE.checked_sub(start.elapsed()) {
            #[expect(clippy::disallowed_methods, reason = "the sweep calls it, on a thread that may block")]
            std::thread::sleep(rest);
        }
        let now = read(&self.program, config)?;
        Ok(Ticks { now, hz: Ticks::rate(now.saturating_sub(first), start.elapsed()) })
    }
}

/// Has the program write the counter to `config`, and reads it there.
fn read(program: &SchedClassifier, config: &Single<GlobalConfig>) -> Result<u64, BpfError> {
    // The kernel runs a program only on a frame that has at least an Ethernet header.
    let frame = [0u8; 64];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    program.test_run(options).map_err(|e| BpfError::Load(format!("{}: {}", names::PROG_CLOCK, BpfError::chain(&e))))?;
    Ok(config.get()?.jiffies)
}
