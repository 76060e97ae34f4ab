//! Uplinks that are no network cards, as in pods and system containers: everything must work with each kind, and what
//! cannot work must be reported.

use super::{Absent, outside};
use crate::lab::{self, Lab, UPLINK};
use crate::programs;
use anyhow::{Context, Result, bail, ensure};
use harness::{Beyond, Kind, TRUNK, VRF, bridge_in_vrf, configs, echo};
use pv_net_common::names;
use serde_json::{Value, json};

/// The uplink.
const LINK: &str = "kind0";
/// Environment variable with the kinds of links that the kernel has, by its build configuration.
const KINDS: &str = "PV_NET_KINDS";

/// Whether the kernel has links of this kind, by its build configuration.
pub fn has(kind: &str) -> Result<bool> {
    Ok(std::env::var(KINDS).context(KINDS)?.split(',').any(|name| name == kind))
}

/// Makes a host behind [`LINK`]. Fails when the kernel and [`KINDS`] differ about whether it knows the kind.
fn connect(lab: &Lab, kind: Kind) -> Result<Beyond> {
    let expected = has(kind.name())?;
    match Beyond::of(kind, &lab.device, LINK)? {
        Some(beyond) if expected => Ok(beyond),
        None if !expected => Err(Absent.into()),
        Some(_) => bail!("the kernel has {}, and its configuration does not say so", kind.name()),
        None => bail!("the kernel's configuration has {}, and the kernel refuses it", kind.name()),
    }
}

/// The lab's configuration with [`LINK`] as a second uplink.
fn config(kind: Kind) -> Value {
    // A VLAN's parent is an uplink too: it sees the same frames before, with their tag.
    let below = (kind == Kind::Vlan).then_some(TRUNK);
    let mut config = lab::config();
    config["network"]["uplinks"] = json!([&[UPLINK, LINK], below.as_slice()].concat());
    config
}

/// Runs `check` with a host behind a link of this kind, which is a second uplink of the lab.
fn with(lab: &Lab, kind: Kind, check: impl FnOnce(&Beyond) -> Result<()>) -> Result<()> {
    let beyond = connect(lab, kind)?;
    let done = lab.reload(&config(kind)).and_then(|()| check(&beyond));
    // The next checks expect only the lab's own links.
    lab::delete_link(&lab.device.ns, LINK)?;
    for (of, other) in [(Kind::Vlan, TRUNK), (Kind::VrfPort, VRF)] {
        if kind == of {
            lab::delete_link(&lab.device.ns, other)?;
        }
    }
    lab.reload(&lab::config())?;
    done
}

/// Traffic out and in takes the fast path and `status` has no condition, with a filter before the stack too.
fn works(lab: &Lab, kind: Kind, port: u16) -> Result<()> {
    with(lab, kind, |beyond| {
        both_ways(lab, beyond, "off", port)?;
        let mut filtered = config(kind);
        filtered["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"], "xdp": "generic"});
        lab.reload(&filtered)?;
        // XDP on frames in several buffers came with kernel 5.18; older kernels get another program.
        let xdp = if lab::kernel()? >= (5, 18) { names::PROG_XDP_UPLINK } else { names::PROG_XDP_UPLINK_SINGLE };
        programs::are_loaded([xdp])?;
        programs::tell()?;
        both_ways(lab, beyond, "generic", port + 20).context("with uplink_filter")
    })
}

fn both_ways(lab: &Lab, beyond: &Beyond, xdp: &str, port: u16) -> Result<()> {
    let status = lab.get("/status")?;
    let said = status["conditions"].to_string();
    ensure!(!said.contains(LINK), "{said}");
    let uplinks = status["uplinks"].as_array().context("uplinks")?;
    ensure!(uplinks.contains(&json!({"name": LINK, "xdp": xdp})), "{uplinks:?}");
    let out = lab.counted(|| outside::hidden_from(&beyond.host, Beyond::PAIRS, &lab.a, port))?;
    ensure!(out["fast-path"] > 20, "masquerade: {out:?}");
    let inwards = lab.counted(|| outside::published_to(&beyond.host, Beyond::PAIRS))?;
    ensure!(inwards["fast-path"] > 20, "published port: {inwards:?}");
    Ok(())
}

/// An 802.1Q VLAN on another uplink.
pub fn vlan(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::Vlan, 7600)
}

/// Macvlan.
pub fn macvlan(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::Macvlan, 7601)
}

/// Ipvlan in mode L2, with Ethernet headers.
pub fn ipvlan_l2(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::IpvlanL2, 7602)
}

/// Ipvlan in mode L3, which routes: packets have Ethernet headers, but with no meaning.
pub fn ipvlan_l3(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::IpvlanL3, 7603)
}

/// Ipvlan in mode L3S, whose incoming packets pass no program: it is not used as an uplink, and `status` says so.
pub fn ipvlan_l3s(lab: &mut Lab) -> Result<()> {
    with(lab, Kind::IpvlanL3s, |_| {
        let status = lab.get("/status")?;
        let said = status["conditions"].to_string();
        ensure!(said.contains(&format!("uplink {LINK}: is an ipvlan in mode l3s")), "{said}");
        ensure!(status["uplinks"] == json!([{"name": UPLINK, "xdp": "off"}]), "{}", status["uplinks"]);
        Ok(())
    })
}

/// Netkit in mode L2, with Ethernet headers.
pub fn netkit_l2(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::NetkitL2, 7605)
}

/// Netkit in mode L3, which routes: packets have Ethernet headers of zeros.
pub fn netkit_l3(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::NetkitL3, 7606)
}

/// A port of a VRF: published ports are reached by it. Containers reach the outside when a route in their pool's table
/// leads to it.
pub fn vrf_port(lab: &mut Lab) -> Result<()> {
    with(lab, Kind::VrfPort, |beyond| {
        let status = lab.get("/status")?;
        let said = status["conditions"].to_string();
        ensure!(said.contains(&format!("uplink {LINK}: is in VRF {VRF}, and pools internal, ")), "{said}");
        let uplinks = status["uplinks"].as_array().context("uplinks")?;
        ensure!(uplinks.contains(&json!({"name": LINK, "xdp": "off"})), "{uplinks:?}");
        let inwards = lab.counted(|| outside::published_to(&beyond.host, Beyond::PAIRS))?;
        ensure!(inwards["fast-path"] > 20, "published port: {inwards:?}");
        for (host, _) in Beyond::PAIRS {
            let out = echo::connect(&lab.a.ns, (host, 7607).into());
            let why = format!("{:#}", out.err().context("a way out, and no route that leads there")?);
            ensure!(why.contains("unreachable") || why.contains("No route"), "{host}: {why}");
        }
        let index = lab.device.ns.run(|| Ok(nix::net::if_::if_nametoindex(LINK)?))?;
        for (host, _) in Beyond::PAIRS {
            lab::route(&lab.device.ns, host, index)?;
        }
        let out = lab.counted(|| outside::hidden_from(&beyond.host, Beyond::PAIRS, &lab.a, 7608))?;
        ensure!(out["fast-path"] > 20, "masquerade, with routes in the main table: {out:?}");
        Ok(())
    })
}

/// A pool whose bridge is in the uplink's VRF: its containers reach the outside, and `status` has no condition.
pub fn vrf_pool(lab: &mut Lab) -> Result<()> {
    const BRIDGE: &str = "br-red";
    with(lab, Kind::VrfPort, |beyond| {
        bridge_in_vrf(&lab.device, BRIDGE)?;
        let mut config = config(Kind::VrfPort);
        let mut pool = configs::pool(7);
        (pool["bridge"], pool["nat"]) = (json!(BRIDGE), json!(true));
        config["network"]["pools"]["red"] = pool;
        lab.reload(&config)?;
        let said = lab.get("/status")?["conditions"].to_string();
        ensure!(said.contains("and pools internal, left, management, right are not"), "{said}");
        let red = lab::attach(&lab.device, "red", "red")?;
        let out = lab.counted(|| outside::hidden_from(&beyond.host, Beyond::PAIRS, &red, 7610))?;
        ensure!(out["fast-path"] > 20, "masquerade: {out:?}");
        lab.device.cli(&["detach", "red"]).ok()?;
        lab.reload(&self::config(Kind::VrfPort))?;
        lab::delete_link(&lab.device.ns, BRIDGE)
    })
}

/// A VRF as an uplink: what comes in by its ports passes no program on the VRF itself.
pub fn vrf(lab: &mut Lab) -> Result<()> {
    with(lab, Kind::VrfPort, |_| {
        let mut config = lab::config();
        config["network"]["uplinks"] = json!([UPLINK, VRF]);
        lab.reload(&config)?;
        let status = lab.get("/status")?;
        let said = status["conditions"].to_string();
        ensure!(said.contains(&format!("uplink {VRF}: is a VRF")), "{said}");
        ensure!(status["uplinks"] == json!([{"name": UPLINK, "xdp": "off"}]), "{}", status["uplinks"]);
        Ok(())
    })
}
