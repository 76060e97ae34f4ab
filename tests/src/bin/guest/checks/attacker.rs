//! The random attacker, in a lab of its own beside the machine's.

use crate::console;
use crate::lab::Lab;
use anyhow::Result;
use harness::attacker::Campaign;

/// Frames: an emulated machine is slow, and another kernel needs no other frames.
const FRAMES: usize = 6000;

/// Nothing arrives where the model says no, and what it allows does.
pub fn nobody_gets_round_it(_: &mut Lab) -> Result<()> {
    Campaign::of(FRAMES).run(console::fact)
}
