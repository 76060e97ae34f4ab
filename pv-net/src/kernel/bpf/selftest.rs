//! The self-test of newly loaded programs, before any link has them: do they run on this kernel, and do they drop what
//! they must?
//!
//! Frames are run through them (`BPF_PROG_TEST_RUN`) as if they had come in on the loopback device, which never belongs
//! to a container.

use super::BpfError;
use super::frame;
use super::programs::Programs;
use super::set::MapSet;
use super::table::{self, Access, Single, Table, map_error, pinned};
use aya::maps::RingBuf;
use pv_net_common::{DropReason, GlobalConfig, InterfaceInfo, Ip, Stat, names};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Index of the loopback device in every namespace (the kernel's `LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
const ACT_OK: i32 = 0;
const ACT_SHOT: i32 = 2;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Documentation addresses (RFC 5737, RFC 3849).
const OWN4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn ethernet(src: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &src, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(MAC, ARP, &[&head[..], &mac, &sender.octets(), &[0; 6], &OTHER4.octets()].concat())
}

fn udp4(src: Ipv4Addr) -> Vec<u8> {
    let header = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0];
    let datagram = [0, 9, 0, 9, 0, 8, 0, 0];
    ethernet(MAC, IPV4, &[&header[..], &src.octets(), &OTHER4.octets(), &datagram].concat())
}

fn ipv6(src: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
    let header = [0x60, 0, 0, 0, 0, length, next, 255];
    ethernet(MAC, IPV6, &[&header[..], &src.octets(), &OTHER6.octets(), payload].concat())
}

fn udp6(src: Ipv6Addr) -> Vec<u8> {
    ipv6(src, UDP, &[0, 9, 0, 9, 0, 8, 0, 0])
}

fn advertisement(src: Ipv6Addr) -> Vec<u8> {
    ipv6(src, ICMPV6, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// A description, the frame, and whether it must be dropped.
type Trial = (&'static str, Vec<u8>, bool);

/// Frames from a link that is no container's: none may pass.
fn of_nobody() -> [Trial; 3] {
    [
        ("ARP of an unknown link", arp(MAC, OWN4), true),
        ("IPv4 of an unknown link", udp4(OWN4), true),
        ("IPv6 of an unknown link", udp6(OWN6), true),
    ]
}

/// Frames from a container's link.
fn of_container() -> [Trial; 6] {
    [
        ("ARP of a container for itself", arp(MAC, OWN4), false),
        ("ARP for another address", arp(MAC, OTHER4), true),
        ("ARP for another MAC", arp(OTHER_MAC, OWN4), true),
        ("IPv4 with another source", udp4(OTHER4), true),
        ("IPv6 with another source", udp6(OTHER6), true),
        ("a router advertisement", advertisement(OWN6), true),
    ]
}

/// Runs the self-test. Afterwards the maps in `set` are as before, except that counters and events of kept maps may
/// have grown.
///
/// # Errors
/// [`BpfError::SelfTest`] when a frame was treated wrongly, or the error when the kernel does not run a program.
pub(super) fn run(programs: &mut Programs, set: &MapSet) -> Result<(), BpfError> {
    let maps = &set.dir;
    let mut interfaces = Table::<u32, InterfaceInfo>::open(maps, names::MAP_INTERFACES, Access::Write)?;
    // A start that was killed during its self-test may have left this entry.
    interfaces.remove(&LOOPBACK)?;
    for name in [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER] {
        try_all(programs, name, &of_nobody())?;
    }
    let container = InterfaceInfo {
        addr4: OWN4.into(),
        addr6: OWN6.into(),
        link_local: Ip::link_local(MAC),
        mac: MAC,
        mtu: 1500,
        ..InterfaceInfo::default()
    };
    interfaces.set(&LOOPBACK, &container)?;
    let passed = try_all(programs, names::PROG_FROM_CONTAINER, &of_container());
    interfaces.remove(&LOOPBACK)?;
    passed?;
    frame::run(&programs.pinned_one(names::PROG_CLOCK)?, names::PROG_CLOCK, LOOPBACK, &arp(MAC, OWN4))?;
    let config = Single::<GlobalConfig>::open(maps, names::MAP_CONFIG, Access::Read)?;
    if config.get()?.jiffies == 0 {
        return Err(BpfError::SelfTest(format!("{}: the time is not told", names::PROG_CLOCK)));
    }
    if set.is_anew(names::MAP_DROPS) {
        table::clear(maps, names::MAP_DROPS, DropReason::ALL.iter().map(|r| *r as u32))?;
    }
    if set.is_anew(names::MAP_STATS) {
        table::clear(maps, names::MAP_STATS, Stat::ALL.iter().map(|s| *s as u32))?;
    }
    if set.is_anew(names::MAP_EVENTS) {
        let name = names::MAP_EVENTS;
        let mut events = RingBuf::try_from(pinned(maps, name)?).map_err(map_error("open", name))?;
        while events.next().is_some() {}
    }
    Ok(())
}

fn try_all(programs: &mut Programs, name: &'static str, trials: &[Trial]) -> Result<(), BpfError> {
    for (what, frame, dropped) in trials {
        let ran = frame::run(programs.entry(name)?, name, LOOPBACK, frame)?;
        judge(name, what, *dropped, ran.verdict)?;
    }
    Ok(())
}

fn judge(name: &str, what: &str, dropped: bool, verdict: i32) -> Result<(), BpfError> {
    let wanted = if dropped { ACT_SHOT } else { ACT_OK };
    if verdict == wanted {
        return Ok(());
    }
    let done = if dropped { "was not dropped" } else { "did not pass" };
    Err(BpfError::SelfTest(format!("{name}: {what} {done} (verdict {verdict}, not {wanted})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_verdict_than_the_wanted_one_is_an_error() {
        assert!(judge("p", "x", true, ACT_SHOT).is_ok());
        assert!(judge("p", "x", false, ACT_OK).is_ok());
        for (dropped, verdict) in [(true, ACT_OK), (true, 7), (true, -1), (false, ACT_SHOT), (false, 7)] {
            let error = judge("p", "x", dropped, verdict).expect_err("an error");
            assert!(error.help().is_some(), "{error}");
        }
    }

    #[test]
    fn frames_are_long_enough_for_the_kernel() {
        for (what, frame, _) in of_nobody().into_iter().chain(of_container()) {
            assert!(frame.len() >= 60, "{what}");
        }
    }
}
