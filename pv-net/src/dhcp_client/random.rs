//! Numbers that nobody needs to keep secret: transaction numbers, and pauses that are not the same for all.

use std::time::Duration;

/// SplitMix64.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Another source.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Any 32 bits.
    pub fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// `about`, up to a quarter more or less.
    pub fn near(&mut self, about: Duration) -> Duration {
        let quarter = about / 4;
        about - quarter + quarter.mul_f64(2.0 * f64::from(self.word()) / f64::from(u32::MAX))
    }
}
