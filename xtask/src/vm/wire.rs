//! A guest's network cards, and the wire between them: a bridge of taps, in a network namespace of the machine's own.
//!
//! A tap takes over what a card leaves to be done: checksums, and segmentation. The next card gets the same when its
//! driver wants it so, and else what a wire would carry, that the host's kernel makes of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use super::apt::said;
use crate::run::find;

/// A card: its name in QEMU and of its tap, its driver's name in Linux, its model, and what that is told.
///
/// Their MACs end in their number here: `tests/src/bin/guest/cards.rs` knows them by these.
struct Card {
    tap: &'static str,
    model: &'static str,
    queues: u8,
}

/// The two that a device may have for an uplink, and that of the host beyond it.
///
/// Virtio has a pair of queues for each processor, and as many for XDP, without which kernels before 5.13 refuse that.
/// The host's takes nothing but what a wire carries: whole checksums, and no packet larger than the MTU.
const CARDS: [Card; 3] = [
    Card { tap: "virtio0", model: "virtio-net-pci,mq=on,vectors=10", queues: 4 },
    Card { tap: "e1000e0", model: "e1000e", queues: 1 },
    Card {
        tap: "beyond0",
        model: "virtio-net-pci,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
        queues: 1,
    },
];

/// What the cards are connected by.
pub enum Wire {
    /// Taps, that know of checksums and segmentation.
    Taps,
    /// QEMU's own hub, that does not: no tap could be made, and why.
    Hub(anyhow::Error),
}

impl Wire {
    /// Lays the wire, and leaves the calling thread in its namespace: the emulator must be started from there. The
    /// namespace is gone when thread and emulator are, or when the next wire is laid.
    pub fn lay() -> Self {
        taps().map_or_else(Self::Hub, |()| Self::Taps)
    }

    /// What the guest is told of it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Taps => "taps",
            Self::Hub(_) => "hub",
        }
    }

    /// Adds the cards to a machine.
    pub fn connect(&self, machine: &mut Command) {
        for (number, Card { tap, model, queues }) in CARDS.iter().enumerate() {
            let end = match self {
                Self::Taps => format!("tap,id={tap},ifname={tap},script=no,downscript=no,vhost=off,queues={queues}"),
                Self::Hub(_) => format!("hubport,id={tap},hubid=0"),
            };
            // A card's own firmware would only make the machine start later.
            let card = format!("{model},netdev={tap},mac=02:50:56:00:00:{:02x},romfile=", number + 1);
            machine.args(["-netdev", &end, "-device", &card]);
        }
    }
}

fn taps() -> Result<()> {
    const BRIDGE: &str = "wire";
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    // The host says nothing on the wire by itself.
    let quiet = Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    if quiet.exists() {
        std::fs::write(quiet, "1").with_context(|| quiet.display().to_string())?;
    }
    let program = find("ip").context("ip: not found")?;
    let ip = |line: &str| said(Command::new(&program).args(line.split_whitespace())).map(drop);
    ip(&format!("link add {BRIDGE} type bridge mcast_snooping 0"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for Card { tap, queues, .. } in CARDS {
        let many = if queues > 1 { "multi_queue" } else { "" };
        ip(&format!("tuntap add dev {tap} mode tap vnet_hdr {many}"))?;
        ip(&format!("link set {tap} master {BRIDGE} up"))?;
    }
    Ok(())
}
