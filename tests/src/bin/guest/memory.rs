//! Memory that is taken away, so that what is left is as little as a small device has.

use anyhow::{Context, Result, ensure};

const MIB: u64 = 1024 * 1024;

/// Bytes that programs can still have without swapping, by the kernel's own estimate.
pub fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("MemAvailable")?;
    Ok(kib * 1024)
}

/// Takes memory until `left` bytes are available. It is never given back.
pub fn leave(left: u64) -> Result<()> {
    // What is written stays: there is no swap. The estimate moves while memory is taken, so it is done in steps.
    while available()? > left + MIB {
        let step = (available()? - left).min(4 * MIB);
        let taken = vec![0x5au8; usize::try_from(step)?];
        std::hint::black_box(taken.leak());
    }
    let now = available()?;
    ensure!(now + 8 * MIB > left, "{} MiB are available, {} MiB were to be left", now / MIB, left / MIB);
    Ok(())
}
