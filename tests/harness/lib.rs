//! What the end-to-end tests, the demo and the benchmarks are made of: a device, containers and hosts as network
//! namespaces, that go away with the value that made them.

mod container;
mod device;
mod kind;
mod link;
mod netns;
mod process;
mod snapshot;

pub mod attacker;
pub mod capture;
pub mod configs;
pub mod dhcp;
pub mod ear;
pub mod echo;
pub mod forger;
pub mod frame;
pub mod groups;
pub mod occupied;
pub mod other_layout;
pub mod raw;
pub mod testrun;
pub mod unix_http;
pub mod verify;
pub mod wrap;

pub use container::Container;
pub use device::{Device, Reply, binary, counted, counters};
pub use ear::Ear;
pub use kind::{Beyond, Kind, TRUNK, VRF, bridge_in_vrf};
pub use netns::Namespace;
pub use process::{Process, output};
pub use snapshot::Snapshot;

use std::io::Write;
use std::time::{Duration, Instant};

/// Notes that a test could not run here; the test returns after it. `cargo xtask test` counts and prints these.
///
/// # Panics
/// When the note cannot be written: a skip that nobody sees would look like a pass.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
    if let Some(path) = std::env::var_os("PV_NET_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).open(path);
        file.and_then(|mut f| writeln!(f, "{test}: {reason}")).expect("the list of skipped tests");
    }
}

/// A time-out as long as this machine needs: `PV_NET_SLOW` says how many times slower than a usual one it is.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    let factor = std::env::var("PV_NET_SLOW").ok().and_then(|text| text.parse::<u32>().ok());
    usual * factor.unwrap_or(1)
}

/// How long something may take that happens in a moment on an idle machine: tests run beside each other, and one that
/// passes does not wait.
pub const SOON: Duration = Duration::from_secs(60);

/// Below this an answer is one to the first segment of a connection: TCP sends it again after a second (RFC 6298).
pub const AT_ONCE: Duration = Duration::from_millis(950);

/// Asks again and again until `check` gives a value; its last error when `patience` is over.
///
/// # Errors
/// The last answer's.
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
