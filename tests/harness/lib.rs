//! The parts of the end-to-end tests, the demo and the benchmarks: a device, containers and hosts as network
//! namespaces. Each is removed when its value is dropped.

mod container;
mod device;
mod kind;
mod link;
mod netns;
mod process;
mod snapshot;

pub mod attacker;
pub mod capture;
pub mod certificates;
pub mod configs;
pub mod dhcp;
pub mod dhcp_client;
pub mod ear;
pub mod echo;
pub mod forger;
pub mod frame;
pub mod groups;
pub mod nameserver;
pub mod networkd;
pub mod occupied;
pub mod other_layout;
pub mod raw;
pub mod stranger;
pub mod testrun;
pub mod unix_http;
pub mod verify;
pub mod wrap;

pub use container::Container;
pub use device::{Device, Reply, binary, counted, counters, with_binary};
pub use ear::Ear;
pub use kind::{Beyond, Kind, TRUNK, VRF, bridge_in_vrf};
pub use netns::Namespace;
pub use process::{Process, output};
pub use snapshot::Snapshot;

use std::io::Write;
use std::time::{Duration, Instant};

/// Records that a test could not run here; the test returns after this. `cargo xtask test` counts and prints the
/// records.
///
/// # Panics
/// When the record cannot be written: a skip that nobody sees would look like a pass.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
    if let Some(path) = std::env::var_os("PV_NET_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).open(path);
        file.and_then(|mut f| writeln!(f, "{test}: {reason}")).expect("the list of skipped tests");
    }
}

/// A time-out for this machine: `PV_NET_SLOW` is the factor by which the machine is slower than a usual one.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    let factor = std::env::var("PV_NET_SLOW").ok().and_then(|text| text.parse::<u32>().ok());
    usual * factor.unwrap_or(1)
}

/// A time-out for what takes a moment on an idle machine. It is long, since tests run beside each other; a test that
/// passes does not wait for it.
pub const SOON: Duration = Duration::from_secs(60);

/// An answer that takes less than this answers the first segment of a connection: TCP repeats the segment after one
/// second (RFC 6298).
pub const AT_ONCE: Duration = Duration::from_millis(950);

/// Calls `check` until it gives a value, for at most `patience`.
///
/// # Errors
/// The last error of `check`.
pub fn eventually<T>(patience: Duration, mut check: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let patience = self::patience(patience);
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(why) if start.elapsed() > patience => return Err(why),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
