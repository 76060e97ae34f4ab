//! Uplinks that are no network card's, as pods and system containers have them: the same must work by each, and what
//! cannot work must be said.

use super::{Absent, outside};
use crate::lab::{self, Lab, UPLINK};
use crate::programs;
use anyhow::{Context, Result, bail, ensure};
use harness::{Beyond, Kind, TRUNK, VRF, bridge_in_vrf, configs, echo};
use pv_net_common::names;
use serde_json::{Value, json};

/// The uplink.
const LINK: &str = "kind0";
/// What the machine that boots this one knows of its kernel: the kinds that it has.
const KINDS: &str = "PV_NET_KINDS";

/// A host behind [`LINK`]; an error when kernel and configuration say different things about the kind.
fn connect(lab: &Lab, kind: Kind) -> Result<Beyond> {
    let kinds = std::env::var(KINDS).context(KINDS)?;
    let expected = kinds.split(',').any(|name| name == kind.name());
    match Beyond::of(kind, &lab.device, LINK)? {
        Some(beyond) if expected => Ok(beyond),
        None if !expected => Err(Absent.into()),
        Some(_) => bail!("the kernel has {}, and its configuration does not say so: {kinds}", kind.name()),
        None => bail!("the kernel's configuration has {}, and the kernel refuses it", kind.name()),
    }
}

/// The lab's configuration with [`LINK`] for another uplink.
fn config(kind: Kind) -> Value {
    // The link below sees the same frames first, with their tag.
    let below = (kind == Kind::Vlan).then_some(TRUNK);
    let mut config = lab::config();
    config["network"]["uplinks"] = json!([&[UPLINK, LINK], below.as_slice()].concat());
    config
}

/// Runs `check` with a host behind a link of this kind, that is an uplink beside that of the lab.
fn with(lab: &Lab, kind: Kind, check: impl FnOnce(&Beyond) -> Result<()>) -> Result<()> {
    let beyond = connect(lab, kind)?;
    let done = lab.reload(&config(kind)).and_then(|()| check(&beyond));
    // The next checks want the links of the lab alone.
    lab::delete_link(&lab.device.ns, LINK)?;
    for (of, other) in [(Kind::Vlan, TRUNK), (Kind::VrfPort, VRF)] {
        if kind == of {
            lab::delete_link(&lab.device.ns, other)?;
        }
    }
    lab.reload(&lab::config())?;
    done
}

/// Out and in by the flow table, and nothing to complain about; with a filter before the stack too.
fn works(lab: &Lab, kind: Kind, port: u16) -> Result<()> {
    with(lab, kind, |beyond| {
        both_ways(lab, beyond, "off", port)?;
        let mut filtered = config(kind);
        filtered["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"], "xdp": "generic"});
        lab.reload(&filtered)?;
        // Frames of several pieces came with 5.18; before, another program takes them.
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

/// 802.1Q, on another uplink.
pub fn vlan(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::Vlan, 7600)
}

/// Macvlan.
pub fn macvlan(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::Macvlan, 7601)
}

/// Ipvlan that speaks Ethernet.
pub fn ipvlan_l2(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::IpvlanL2, 7602)
}

/// Ipvlan that is routed: its Ethernet headers mean nothing, and are there.
pub fn ipvlan_l3(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::IpvlanL3, 7603)
}

/// Ipvlan whose packets come in past all programs: not used, and it is said.
pub fn ipvlan_l3s(lab: &mut Lab) -> Result<()> {
    with(lab, Kind::IpvlanL3s, |_| {
        let status = lab.get("/status")?;
        let said = status["conditions"].to_string();
        ensure!(said.contains(&format!("uplink {LINK}: is an ipvlan in mode l3s")), "{said}");
        ensure!(status["uplinks"] == json!([{"name": UPLINK, "xdp": "off"}]), "{}", status["uplinks"]);
        Ok(())
    })
}

/// Netkit that speaks Ethernet.
pub fn netkit_l2(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::NetkitL2, 7605)
}

/// Netkit that is routed: its Ethernet headers are all zero, and are there.
pub fn netkit_l3(lab: &mut Lab) -> Result<()> {
    works(lab, Kind::NetkitL3, 7606)
}

/// A port of a VRF: published ports are reached by it, and the way out is there when a route of the pools leads to it.
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

/// A pool whose bridge is in the uplink's VRF: its containers go out by it, and are not complained about.
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

/// A VRF itself: what comes in by its ports passes no program of its own.
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
