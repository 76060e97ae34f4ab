//! Priority tags (VLAN 0) in front of packets: filters must look behind them, and the rate limit must count the source.

use crate::lab::{self, Lab, PORT, PUBLISHED, WEB, both, host, uplink};
use crate::trial::{Proto, Trial};
use anyhow::{Result, ensure};
use harness::ear::Ear;
use harness::wrap::{SERVICE_VLAN, VLAN, tagged};
use harness::{SOON, eventually};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Tags that contain only a priority.
const TAGS: [(&str, &[(u16, u16)]); 6] = [
    ("no tag", &[]),
    ("one", &[(VLAN, 0)]),
    ("one with a priority", &[(VLAN, 0xe000)]),
    ("two", &[(VLAN, 0), (VLAN, 0)]),
    ("a service tag", &[(SERVICE_VLAN, 0)]),
    ("a service tag and another", &[(SERVICE_VLAN, 0), (VLAN, 0x2000)]),
];

fn filter(xdp: &str, limit: Option<u32>) -> impl FnOnce(&mut Value) {
    let mut filter = json!({"deny": ["192.0.2.64/28", "2001:db8:1::60/124"], "xdp": xdp});
    if let Some(burst) = limit {
        filter["rate_limit"] = json!({"packets_per_second": 1, "burst": burst});
    }
    move |config| config["network"]["uplink_filter"] = filter
}

fn ears(lab: &Lab) -> Result<Vec<Ear>> {
    Ok(vec![Ear::stack(&lab.device.ns)?, Ear::link(&lab.a.ns, "eth0")?])
}

/// IEEE 802.1Q section 6.9.1: a frame with a priority tag is handled as an untagged one. The kernel accepts up to two
/// tags (`__netif_receive_skb_core`).
fn behind_priority_tags(xdp: &str) -> Result<()> {
    let lab = lab::published(filter(xdp, None))?;
    let out = lab.outsider()?;
    let mut trial = Trial::new(&lab.device, ears(&lab)?);
    let denied = both("192.0.2.66", "2001:db8:1::66");
    let listed: &[&str] = if xdp == "off" { &[] } else { &["deny-listed"] };
    let mut port = 10_000;
    for (what, tags) in TAGS {
        for family in [0, 1] {
            let (to, honest) = (uplink()[family], host()[family]);
            let insider = lab.b.addresses()[family];
            for (whom, to, dport) in [("the device", to, PORT), ("a published port", to, PUBLISHED)] {
                for proto in [Proto::Syn, Proto::Udp] {
                    port += 1;
                    let from = |src: IpAddr, mark: &[u8]| {
                        out.socket.send(&tagged(&out.frame(&proto.packet((src, port), (to, dport), mark)), tags))
                    };
                    let what = format!("{what}, {proto:?} to {whom} at {to}");
                    if !listed.is_empty() {
                        trial.refused(format!("{what}: denied"), listed, |twin, mark| {
                            from(twin.pick(denied[family], honest), mark)
                        })?;
                    }
                    trial.refused(format!("{what}: forged"), &["forged-source", "spoofed-pool"], |twin, mark| {
                        from(twin.pick(insider, honest), mark)
                    })?;
                }
            }
            if let [(kind, id)] = *tags {
                // VLAN 7 does not exist here.
                trial.dropped(format!("{what}, but of VLAN 7"), &[], |mark| {
                    let packet = Proto::Udp.packet((honest, port), (to, PUBLISHED), mark);
                    out.socket.send(&tagged(&out.frame(&packet), &[(kind, id | 7)]))
                })?;
            }
        }
    }
    trial.finish()
}

#[test]
fn priority_tags_hide_no_source_from_native_xdp() -> Result<()> {
    behind_priority_tags("auto")
}

#[test]
fn priority_tags_hide_no_source_from_generic_xdp() -> Result<()> {
    behind_priority_tags("generic")
}

#[test]
fn priority_tags_hide_no_source_without_a_filter() -> Result<()> {
    behind_priority_tags("off")
}

/// How many of the datagrams from these sources reach the device.
fn heard(lab: &Lab, sources: &[IpAddr], tags: &[(u16, u16)]) -> Result<usize> {
    let (out, ear) = (lab.outsider()?, Ear::stack(&lab.device.ns)?);
    let to = uplink()[usize::from(sources[0].is_ipv6())];
    for src in sources {
        let packet = Proto::Udp.packet((*src, 9), (to, PORT), b"one of many");
        out.socket.send(&tagged(&out.frame(&packet), tags))?;
    }
    let last = b"behind the others";
    let honest = host()[usize::from(to.is_ipv6())];
    let mut count = 0;
    // As many packets as one source may send; one that arrives is enough.
    eventually(SOON, || {
        out.send(&Proto::Udp.packet((honest, 9), (to, PORT), last))?;
        let heard = ear.heard()?;
        let is = |packet: &&Vec<u8>, mark: &[u8]| packet.windows(mark.len()).any(|part| part == mark);
        count += heard.iter().filter(|p| is(p, b"one of many")).count();
        ensure!(heard.iter().any(|p| is(&p, last)), "an honest datagram is not heard");
        Ok(())
    })?;
    Ok(count)
}

const BURST: usize = 5;

/// Each source has one bucket, with any tags.
#[test]
fn priority_tags_do_not_lift_the_rate_limit() -> Result<()> {
    for xdp in ["auto", "generic"] {
        let lab = lab::lab(filter(xdp, Some(u32::try_from(BURST)?)))?;
        for (n, (what, tags)) in TAGS.into_iter().enumerate() {
            for source in both(&format!("203.0.113.{}", n + 1), &format!("2001:db8:77:{n}::1")) {
                let mut count = 0;
                let grown = lab::grown(&lab.device, || {
                    count = heard(&lab, &vec![source; 50], tags)?;
                    Ok(())
                })?;
                ensure!((BURST..BURST * 4).contains(&count), "{xdp}, {what}: {count} of 50 got in from {source}");
                ensure!(lab::count(&grown, "rate-limited") >= 30, "{xdp}, {what}, {source}: {grown:?}");
            }
        }
    }
    Ok(())
}

/// RFC 4291 section 2.5.1 and RFC 8981: a host with a /64 can use all of its addresses, so the /64 has one rate.
#[test]
fn a_whole_prefix_has_one_rate() -> Result<()> {
    for xdp in ["auto", "generic"] {
        let lab = lab::lab(filter(xdp, Some(u32::try_from(BURST)?)))?;
        let six = |text: String| text.parse::<IpAddr>();
        let of_one: Vec<IpAddr> = (1..=60).map(|n| six(format!("2001:db8:77:1::{n:x}"))).collect::<Result<_, _>>()?;
        let count = heard(&lab, &of_one, &[])?;
        ensure!((BURST..BURST * 4).contains(&count), "{xdp}: {count} of 60 addresses of one /64 got in");
        // Other prefixes, and single IPv4 addresses, have rates of their own.
        let of_many: Vec<IpAddr> = (1..=60).map(|n| six(format!("2001:db8:78:{n:x}::1"))).collect::<Result<_, _>>()?;
        ensure!(heard(&lab, &of_many, &[])? == 60, "{xdp}: one /64 takes from another");
        let four: Vec<IpAddr> = (1..=60).map(|n| IpAddr::from([203, 0, 113, n])).collect();
        ensure!(heard(&lab, &four, &[])? == 60, "{xdp}: one IPv4 address takes from another");
    }
    Ok(())
}

/// IEEE 802.1Q: a tag from a container could lead into another VLAN of the bridge, and a tag towards a container hides
/// a packet.
#[test]
fn no_tag_passes_between_a_container_and_its_bridge() -> Result<()> {
    let (lab, host) = lab::prepared(
        |_| (),
        |device| lab::lan_port(device, "pvbr3", "lan0", &["10.0.3.200/24", "fd00:5056:0:3::c8/64"]),
        &[],
    )?;
    let lan = lab.sender(&host, "pvbr3")?;
    let a = lab.sender(&lab.a.ns, "pvbr3")?;
    let mut into = Trial::new(&lab.device, vec![Ear::link(&lab.a.ns, "eth0")?]);
    let mut from = Trial::new(&lab.device, vec![Ear::stack(&lab.device.ns)?, Ear::link(&host, "eth0")?]);
    let own = both("10.0.3.200", "fd00:5056:0:3::c8");
    for (what, tags) in [("VLAN 7", &[(VLAN, 7)][..]), ("a service tag", &[(SERVICE_VLAN, 7)])].iter().chain(&TAGS[1..])
    {
        for family in [0, 1] {
            let (inner, outer) = (lab.a.addresses()[family], own[family]);
            into.refused(format!("{what} to {inner}"), &["vlan-tag"], |twin, mark| {
                let frame = lan.frame_to(a.mac, &Proto::Udp.packet((outer, 9), (inner, WEB), mark));
                lan.socket.send(&tagged(&frame, twin.pick(tags, &[])))
            })?;
            from.refused(format!("{what} from {inner}"), &["vlan-tag"], |twin, mark| {
                let frame = a.frame_to(lan.mac, &Proto::Udp.packet((inner, 9), (outer, WEB), mark));
                a.socket.send(&tagged(&frame, twin.pick(tags, &[])))
            })?;
        }
    }
    into.finish()?;
    from.finish()
}
