//! The random attacker on this machine's kernel: `PV_NET_SEED` repeats a run, `PV_NET_FRAMES` makes a longer one, and
//! `PV_NET_SHOT` begins where another run has failed.

use anyhow::Result;
use harness::attacker::{Campaign, Link, Mode};

#[test]
fn nobody_gets_round_it() -> Result<()> {
    Campaign::of(Link::Bridge, 100_000).run(|line| println!("{line}"))
}

#[test]
fn nobody_gets_round_it_on_a_lan() -> Result<()> {
    Campaign::of(Link::Macvlan(Mode::Bridge), 30_000).run(|line| println!("{line}"))
}

#[test]
fn nobody_gets_round_it_in_mode_private() -> Result<()> {
    Campaign::of(Link::Macvlan(Mode::Private), 9_000).run(|line| println!("{line}"))
}

#[test]
fn nobody_gets_round_it_in_mode_vepa() -> Result<()> {
    Campaign::of(Link::Macvlan(Mode::Vepa), 9_000).run(|line| println!("{line}"))
}
