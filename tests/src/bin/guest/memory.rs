//! Occupies memory, so that only as much is left as a small device has.

use anyhow::{Context, Result, ensure};

const MIB: u64 = 1024 * 1024;

/// Bytes that programs can still get without swapping, by the kernel's estimate (`MemAvailable`).
pub fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("MemAvailable")?;
    Ok(kib * 1024)
}

/// Occupies memory until `left` bytes are available. The memory is never freed.
pub fn leave(left: u64) -> Result<()> {
    // Written pages stay in memory, since there is no swap. The estimate changes while memory is taken, so it is taken
    // in steps.
    while available()? > left + MIB {
        let step = (available()? - left).min(4 * MIB);
        let taken = vec![0x5au8; usize::try_from(step)?];
        std::hint::black_box(taken.leak());
    }
    let now = available()?;
    ensure!(now + 8 * MIB > left, "{} MiB are available, {} MiB were to be left", now / MIB, left / MIB);
    Ok(())
}
