//! The random attacker, in a lab of its own besides the machine's.

use crate::console;
use crate::lab::Lab;
use anyhow::Result;
use harness::attacker::{Campaign, Link};

/// How many frames are sent: few, since an emulated machine is slow, and the attack is the same on each kernel.
const FRAMES: usize = 6000;

/// Frames arrive where the model allows them, and nowhere else.
pub fn nobody_gets_round_it(_: &mut Lab) -> Result<()> {
    Campaign::of(Link::Bridge, FRAMES).run(console::fact)
}
