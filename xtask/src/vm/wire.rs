//! A guest's network cards and the wire between them: taps on a bridge, in a network namespace of the machine.
//!
//! A tap supports the offloads that a card leaves to be done, checksums and segmentation. If the receiving card's
//! driver supports them too, it gets packets with them; else it gets what a real wire would carry, which the host's
//! kernel makes of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use super::apt::said;
use crate::run::find;

/// A card: the name in QEMU and of its tap, its model, and the number of queues.
///
/// The MAC of a card ends in its number here; `tests/src/bin/guest/cards.rs` recognises cards by that.
struct Card {
    tap: &'static str,
    model: &'static str,
    queues: u8,
}

/// Two cards for the device's uplinks, and one for the host beyond.
///
/// Virtio has a pair of queues for each processor, and as many again for XDP; without those, kernels before 5.13 refuse
/// XDP. The host's card accepts only what a wire carries: complete checksums, and no packet larger than the MTU.
const CARDS: [Card; 3] = [
    Card { tap: "virtio0", model: "virtio-net-pci,mq=on,vectors=10", queues: 4 },
    Card { tap: "e1000e0", model: "e1000e", queues: 1 },
    Card {
        tap: "beyond0",
        model: "virtio-net-pci,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
        queues: 1,
    },
];

/// What connects the cards.
pub enum Wire {
    /// Taps, which support checksum and segmentation offloads.
    Taps,
    /// QEMU's own hub, which supports no offloads, and why no tap could be made.
    Hub(anyhow::Error),
}

impl Wire {
    /// Makes the wire, and leaves the calling thread in its namespace, from which the emulator must be started. The
    /// namespace ends with thread and emulator, or with the next wire.
    pub fn lay() -> Self {
        taps().map_or_else(Self::Hub, |()| Self::Taps)
    }

    /// The wire's name for the guest.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Taps => "taps",
            Self::Hub(_) => "hub",
        }
    }

    /// Adds the cards to a machine's command line.
    pub fn connect(&self, machine: &mut Command) {
        for (number, Card { tap, model, queues }) in CARDS.iter().enumerate() {
            let end = match self {
                Self::Taps => format!("tap,id={tap},ifname={tap},script=no,downscript=no,vhost=off,queues={queues}"),
                Self::Hub(_) => format!("hubport,id={tap},hubid=0"),
            };
            // A card's boot firmware would only delay the machine's start.
            let card = format!("{model},netdev={tap},mac=02:50:56:00:00:{:02x},romfile=", number + 1);
            machine.args(["-netdev", &end, "-device", &card]);
        }
    }
}

fn taps() -> Result<()> {
    const BRIDGE: &str = "wire";
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    // The host must send nothing of its own on the wire.
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
