//! Measures how long exchanges take, one after the other.

use super::Outcome;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Runs `one` repeatedly for `time`, each time with the next number, and gives the rate and the latencies.
pub fn run(time: Duration, mut one: impl FnMut(u64) -> Result<()>) -> Result<Outcome> {
    let mut times = Histogram::new();
    let mut count = 0u64;
    let start = Instant::now();
    let mut last = start;
    while last - start < time {
        one(count)?;
        let now = Instant::now();
        times.add(now - last);
        last = now;
        count += 1;
    }
    let rate = count as f64 / (last - start).as_secs_f64();
    let (p50_us, p99_us) = (times.quantile_us(0.5), times.quantile_us(0.99));
    Ok(Outcome { rate, count, p50_us, p99_us, ..Outcome::default() })
}

/// Latencies in buckets; each bucket is 1/16 of its power of two wide.
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    const STEPS: u64 = 16;

    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: vec![0; 64 * Self::STEPS as usize], count: 0 }
    }

    /// Adds one latency.
    pub fn add(&mut self, time: Duration) {
        let nanos = (time.as_nanos() as u64).max(Self::STEPS);
        let power = u64::from(nanos.ilog2());
        let step = (nanos >> (power - 4)) & (Self::STEPS - 1);
        self.buckets[(power * Self::STEPS + step) as usize] += 1;
        self.count += 1;
    }

    /// The latency that the given share of exchanges does not exceed, in microseconds.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let want = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|n| {
            seen += n;
            seen >= want
        })? as u64;
        let (power, step) = (bucket / Self::STEPS, bucket % Self::STEPS);
        Some(((Self::STEPS + step) << power) as f64 / Self::STEPS as f64 / 1000.0)
    }
}
