//! `cargo xtask vm --power-cut N`: a machine whose power is cut N times while clients are given leases. Each is killed
//! as it is, and the next one has the same disk: with all that the guest has written to it, flushed or not, and without
//! what it had in memory alone. No lease that a client was acknowledged may be missing afterwards, and no address may
//! be given to two clients.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::apt::said;
use super::arch::Arch;
use super::kernel::Kernel;
use super::qemu::{self, Boot, Ended, Then};
use super::wire::Wire;
use super::{LIMIT, MEMORY, SLOW, Scratch, guest};
use crate::run::find;

/// Size of the disk, bytes. Only what is written takes space.
const DISK: u64 = 64 << 20;
/// The power is cut when at most so many clients have been acknowledged in a round,
const MOST_ACKED: u64 = 150;
/// and at most so much later: anywhere within a write.
const MOST_LATER_US: u64 = 30_000;
/// So many faults are told; where one lease is lost, others are.
const MOST_TOLD: usize = 3;

/// What was promised to clients.
#[derive(Debug, Default)]
struct Promised {
    /// Clients by their address.
    all: BTreeMap<Ipv4Addr, String>,
    /// Those that the daemon of this round knew after its start.
    kept: BTreeMap<Ipv4Addr, String>,
    acked: u64,
    wrong: Vec<String>,
}

impl Promised {
    /// Takes a line of the console. Returns whether the daemon has told all that it knew.
    fn hear(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let (Some(what), address, mac) = (words.next(), words.next(), words.next()) else { return false };
        if what == "FAIL" {
            self.wrong.push(line.to_owned());
        }
        if what == "ready" && address.is_none() {
            self.compare();
            return true;
        }
        // The last line of a machine may be incomplete.
        let mac = mac.filter(|mac| mac.len() == "00:00:00:00:00:00".len());
        let (Some(Ok(address)), Some(mac)) = (address.map(str::parse::<Ipv4Addr>), mac) else { return false };
        match what {
            "lease" => drop(self.kept.insert(address, mac.to_owned())),
            "acked" => {
                self.acked += 1;
                if let Some(other) = self.all.insert(address, mac.to_owned()).filter(|other| other != mac) {
                    self.wrong.push(format!("{address} was given to {other}, and then to {mac}"));
                }
            }
            _ => {}
        }
        false
    }

    /// Whatever was acknowledged must have been kept. What was kept without that is promised from now on: its client may
    /// have heard the acknowledgement when the power went.
    fn compare(&mut self) {
        for (address, mac) in &self.all {
            match self.kept.get(address) {
                Some(kept) if kept == mac => {}
                Some(kept) => self.wrong.push(format!("{address} was acknowledged to {mac}, and is that of {kept}")),
                None => self.wrong.push(format!("{address} was acknowledged to {mac}, and its lease is lost")),
            }
        }
        self.all.append(&mut self.kept);
    }
}

/// Cuts the power of a machine `times` times.
pub fn run(times: u32, arch: Arch, cache: &Path, kernel: &Kernel, program: &Path) -> Result<()> {
    let scratch = |end: &str| Scratch(cache.join(format!("power-cut-{}.{end}", std::process::id())));
    let (initramfs, disk) = (scratch("cpio"), scratch("disk"));
    guest::initramfs(program, kernel, &initramfs.0, true)?;
    make(&disk.0)?;
    let wire = Wire::lay();
    let log = cache.join("logs").join("power-cut.log");
    std::fs::create_dir_all(cache.join("logs"))?;
    let mut promised = Promised::default();
    // One more, which only says what it knows.
    for round in 0..=times {
        let boot = Boot {
            arch,
            image: &kernel.image,
            initramfs: &initramfs.0,
            memory: MEMORY,
            wire: &wire,
            disk: Some(&disk.0),
            words: &format!("PV_NET_BIN=/pv-net PV_NET_SLOW={SLOW} PV_NET_GUEST=power-cut PV_NET_ROUND={round}"),
            log: &log,
            limit: LIMIT,
        };
        promised.acked = 0;
        let until = if round == times { 0 } else { 1 + random(MOST_ACKED) };
        let mut is_ready = false;
        let ended = qemu::run(&boot, |line| {
            is_ready |= promised.hear(line);
            if is_ready && (promised.acked >= until || !promised.wrong.is_empty()) {
                Then::Cut(Duration::from_micros(random(MOST_LATER_US)))
            } else {
                Then::Go
            }
        })?;
        if ended != Ended::Cut {
            promised.wrong.push(format!("it ended before its power was cut: {ended:?}"));
        }
        if !promised.wrong.is_empty() {
            let (all, told) =
                (promised.wrong.len(), promised.wrong.iter().take(MOST_TOLD).cloned().collect::<Vec<_>>());
            let (told, console) = (told.join("; "), log.display());
            bail!("power cut {round}: {all} faults: {told}\nhelp: the console is in {console}");
        }
        println!("vm: power cut {round}: {} leases kept, {} more acknowledged", promised.all.len(), promised.acked);
    }
    ensure!(!promised.all.is_empty(), "no client was given a lease");
    println!("vm: passed {}: the power was cut {times} times, {} leases", kernel.release, promised.all.len());
    Ok(())
}

/// A file with an empty file system.
fn make(disk: &Path) -> Result<()> {
    let file = std::fs::File::create(disk).with_context(|| disk.display().to_string())?;
    file.set_len(DISK)?;
    let program =
        find("mkfs.ext4").context("mkfs.ext4: not found\nhelp: install Debian's e2fsprogs, or what has it here")?;
    said(Command::new(program).args(["-q", "-F"]).arg(disk)).map(drop)
}

/// A number below `end`.
fn random(end: u64) -> u64 {
    RandomState::new().build_hasher().finish() % end
}

#[cfg(test)]
mod tests {
    use super::Promised;

    /// What is wrong after these lines, of which each inner list is one machine's.
    fn wrong(rounds: &[&[&str]]) -> Vec<String> {
        let mut promised = Promised::default();
        for line in rounds.concat() {
            promised.hear(line);
        }
        promised.wrong
    }

    #[test]
    fn what_was_acknowledged_must_be_there_again_and_only_once() {
        let (a, b) = ("10.1.0.0 02:99:00:00:00:01", "10.1.0.0 02:99:00:00:00:02");
        let [acked_a, acked_b] = [a, b].map(|lease| format!("acked {lease}"));
        let [lease_a, lease_b] = [a, b].map(|lease| format!("lease {lease}"));
        assert!(wrong(&[&["ready", &acked_a], &[&lease_a, "ready"], &[&lease_a, "ready"]]).is_empty());
        assert!(wrong(&[&["ready", "acked 10.1.0.0 02:99:00"], &["ready"]]).is_empty(), "the line was not complete");
        assert_eq!(wrong(&[&["ready", &acked_a], &["ready"]]).len(), 1, "lost");
        assert_eq!(wrong(&[&["ready", &acked_a], &[&lease_b, "ready"]]).len(), 1, "another's");
        assert_eq!(wrong(&[&["ready", &acked_a, &acked_b]]).len(), 1, "twice");
        assert_eq!(wrong(&[&["ready"], &[&lease_a, "ready", &acked_b]]).len(), 1, "it was on disk, and given again");
        assert_eq!(wrong(&[&["FAIL power cut: why"]]).len(), 1);
    }
}
