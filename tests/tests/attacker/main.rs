//! The random attacker on this machine's kernel: `PV_NET_SEED` repeats a run, `PV_NET_FRAMES` makes a longer one, and
//! `PV_NET_SHOT` begins where another run has failed.

use anyhow::Result;
use harness::attacker::Campaign;

#[test]
fn nobody_gets_round_it() -> Result<()> {
    Campaign::of(100_000).run(|line| println!("{line}"))
}
