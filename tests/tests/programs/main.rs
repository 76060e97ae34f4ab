//! Runs the eBPF programs alone: frames in memory go in, a verdict and a frame come out, and the counters tell the
//! reason.

mod answers;
mod lab;
mod malformed;
mod translated;

use anyhow::{Result, ensure};
use harness::frame;
use lab::{FAMILIES, Family, Lab, PASS, REDIRECT, SHOT, UDP, between, fix_ipv4, lab};
use pv_net::kernel::bpf::FlowState;
use pv_net_common::DropReason;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[test]
fn a_flow_begins_on_the_slow_path_and_goes_on_on_the_fast_one() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for family in FAMILIES {
            let (client, server) = ((a.ip(family), 4000), (b.ip(family), 80));
            let there = |flags| between(&a, b.mac, &frame::tcp(client, server, flags, b""));
            let back = |flags| between(&b, a.mac, &frame::tcp(server, client, flags, b""));
            for (what, from, frame, path) in [
                ("SYN", &a, there(SYN), &["slow-path"][..]),
                ("SYN and ACK", &b, back(SYN | ACK), &["flows-created", "slow-path"]),
                ("ACK", &a, there(ACK), &["fast-path"]),
                ("data back", &b, back(ACK), &["fast-path"]),
            ] {
                let (ran, grown) = lab.counted(from, &frame)?;
                ensure!(ran.verdict == REDIRECT && grown == path, "{family:?} {what}: {} {grown:?}", ran.verdict);
                ensure!(ran.frame == frame, "{family:?} {what}: the frame changed");
            }
            // The flow table's entry has no source MAC, so the MAC must be checked for known flows too.
            let mut forged = there(ACK);
            forged[11] ^= 1;
            lab.drops("another MAC on a known flow", &a, &forged, "spoofed-mac")?;
        }
        Ok(())
    })
}

#[test]
fn a_flow_says_how_far_it_is_and_when_it_was_used() -> Result<()> {
    use FlowState::{Closing, Established, Opening};
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        for family in FAMILIES {
            let (client, server) = ((a.ip(family), 4001), (b.ip(family), 80));
            let there = |flags| between(&a, b.mac, &frame::tcp(client, server, flags, b""));
            let back = |flags| between(&b, a.mac, &frame::tcp(server, client, flags, b""));
            for (what, from, frame, original, reply) in [
                ("SYN", &a, there(SYN), Some((Opening, true)), None),
                ("SYN and ACK", &b, back(SYN | ACK), Some((Established, true)), Some((Established, true))),
                ("data back", &b, back(ACK), Some((Established, true)), Some((Established, true))),
                ("FIN", &a, there(FIN | ACK), Some((Established, true)), Some((Established, true))),
                ("FIN back", &b, back(FIN | ACK), Some((Closing, true)), Some((Closing, true))),
                ("FIN once more", &b, back(FIN | ACK), Some((Closing, true)), Some((Closing, true))),
                ("the last word", &a, there(ACK), None, None),
                // A late segment opens no flow, and neither does its answer.
                ("a late FIN", &b, back(FIN | ACK), None, Some((Closing, true))),
                ("its answer", &a, there(ACK), None, Some((Closing, true))),
                ("SYN on the same ports", &a, there(SYN), Some((Opening, true)), Some((Closing, true))),
            ] {
                lab.run(from, &frame)?;
                let seen = [&a, &b].map(|from| lab.flow_state(from, from.ip(family)));
                let [seen_original, seen_reply] = seen;
                let seen = (seen_original?, seen_reply?);
                ensure!(seen == (original, reply), "{family:?} {what}: {seen:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn between_pools_macs_and_hops_change_and_nothing_else() -> Result<()> {
    lab(|lab| {
        let (d, e) = (lab.d, lab.e);
        for family in FAMILIES {
            let (client, server) = ((d.ip(family), 4000), (e.ip(family), 53));
            let request = between(&d, d.gateway_mac, &frame::udp(client, server, b"question"));
            let answer = between(&e, e.gateway_mac, &frame::udp(server, client, b"answer"));
            for (from, to, frame) in [(&d, &e, &request), (&e, &d, &answer), (&d, &e, &request)] {
                let (ran, _) = lab.counted(from, frame)?;
                let mut want = frame.clone();
                want[..6].copy_from_slice(&to.mac);
                want[6..12].copy_from_slice(&to.gateway_mac);
                if family == Family::V4 {
                    want[22] -= 1;
                    fix_ipv4(&mut want);
                } else {
                    want[21] -= 1;
                }
                ensure!(ran.verdict == REDIRECT && ran.frame == want, "{family:?}: {} {:02x?}", ran.verdict, ran.frame);
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_for_no_container_is_left_to_the_host() -> Result<()> {
    lab(|lab| {
        let a = lab.a;
        for (what, to) in [
            ("the gateway", a.gateway(Family::V4)),
            ("the gateway, IPv6", a.gateway(Family::V6)),
            ("all nodes", "ff02::1".parse()?),
            ("broadcast", [255; 4].into()),
        ] {
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            let frame = between(&a, a.gateway_mac, &frame::udp((a.ip(family), 4000), (to, 53), b"?"));
            let (ran, grown) = lab.counted(&a, &frame)?;
            ensure!(ran.verdict == PASS && grown == ["to-stack"] && ran.frame == frame, "{what}: {grown:?}");
        }
        // This device has no routes.
        let frame = between(&a, a.gateway_mac, &frame::udp((a.v4.into(), 4000), ([192, 0, 2, 1].into(), 53), b"?"));
        let (ran, grown) = lab.counted(&a, &frame)?;
        ensure!(ran.verdict == REDIRECT && grown == ["answered", "no-route"], "the world: {grown:?}");
        Ok(())
    })
}

#[test]
fn a_link_that_nobody_configured_passes_nothing() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.a, lab.b);
        let lo = lab::Host { ifindex: 0, ..a };
        for family in FAMILIES {
            let frame = between(&a, b.mac, &frame::udp((a.ip(family), 1), (b.ip(family), 2), b""));
            // Without an index the kernel runs it on the loopback link.
            lab.drops("IP", &lo, &frame, "unknown-interface")?;
        }
        let arp = frame::ethernet(a.mac, b.mac, frame::ARP, &frame::arp(1, (a.mac, a.v4), ([0; 6], b.v4)));
        lab.drops("ARP", &lo, &arp, "unknown-interface")
    })
}

/// Random numbers that are the same in every run, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

fn valid_frames(lab: &Lab) -> Vec<Vec<u8>> {
    let (a, b, c) = (lab.a, lab.b, lab.c);
    let mut all = vec![frame::ethernet(a.mac, b.mac, frame::ARP, &frame::arp(1, (a.mac, a.v4), ([0; 6], b.v4)))];
    for family in FAMILIES {
        let from = a.ip(family);
        for (to, mac) in [(b.ip(family), b.mac), (c.ip(family), a.gateway_mac)] {
            for flags in [SYN, ACK, SYN | ACK, 0x01 | ACK, 0x04] {
                all.push(between(&a, mac, &frame::tcp((from, 4000), (to, 80), flags, b"0123456789")));
            }
            all.push(between(&a, mac, &frame::udp((from, 4000), (to, 53), &[0x5a; 64])));
            all.push(between(&a, mac, &frame::echo(from, to, 7, 1)));
            all.push(between(&a, mac, &frame::ip(from, to, 132, &[0; 40])));
        }
    }
    let stranger = a.gateway6;
    all.push(between(&a, b.mac, &frame::neighbour(135, a.v6, b.v6, b.v6, a.mac)));
    all.push(between(&a, b.mac, &frame::neighbour(136, a.v6, stranger, a.v6, a.mac)));
    all.push(between(&a, b.mac, &frame::ipv6(a.v6, b.v6, 0, &malformed::chain(&[0, 60, 43, 44], UDP, &[0; 16]))));
    all
}

#[test]
fn twenty_thousand_mutations_are_all_accounted_for() -> Result<()> {
    lab(|lab| {
        let seeds = valid_frames(lab);
        let mut random = Random(0x5056_6e65_7431);
        let reasons: Vec<&str> = DropReason::ALL.iter().map(|r| r.label()).collect();
        let mut seen = [0u32; 3];
        let a = lab.a;
        let mut n = 0;
        while n < 20_000 {
            let mut frame = seeds[random.below(seeds.len())].clone();
            for _ in 0..=random.below(4) {
                let at = random.below(frame.len());
                match random.below(4) {
                    0 => frame[at] = random.below(256) as u8,
                    1 => frame[at] ^= 1 << random.below(8),
                    2 => frame.truncate(at.max(14)),
                    _ => frame.extend(std::iter::repeat_n(0xa5, random.below(40))),
                }
            }
            // Half of them have a right header checksum, as a real sender's packets would.
            if random.below(2) == 0 && frame.len() >= 14 + 60 && frame[12..14] == [8, 0] {
                fix_ipv4(&mut frame);
            }
            if lab::may_be_refused(&frame) {
                continue;
            }
            let (ran, grown) = lab.counted(&a, &frame)?;
            n += 1;
            let say = || format!("frame {n}: verdict {}, {grown:?}: {frame:02x?}", ran.verdict);
            let dropped = grown.iter().filter(|name| reasons.contains(name)).count();
            let answered = grown.contains(&"answered");
            match ran.verdict {
                SHOT => ensure!(dropped == 1 && !answered, "{}", say()),
                REDIRECT => ensure!(dropped == usize::from(answered), "{}", say()),
                PASS => ensure!(grown == ["to-stack"], "{}", say()),
                _ => anyhow::bail!("{}", say()),
            }
            seen[[PASS, REDIRECT, SHOT].iter().position(|v| *v == ran.verdict).unwrap_or(0)] += 1;
        }
        ensure!(seen.iter().all(|n| *n > 200), "the mutations are one-sided: {seen:?}");
        println!("passed, redirected, dropped: {seen:?}");
        Ok(())
    })
}
