//! The host's own firewall drops packets of pools: a condition says so and names a remedy, and the remedy works.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::{Device, SOON, eventually};
use serde_json::json;

fn nft(device: &Device, line: &str) -> Result<()> {
    let done = device.ns.command("nft").arg(line).output().context("nft")?;
    ensure!(done.status.success(), "nft {line}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The conditions after another look at the kernel.
fn conditions(device: &Device) -> Result<Vec<String>> {
    device.cli(&["reload"]).ok()?;
    let status = device.json(&["status"])?;
    let all = status["conditions"].as_array().context("conditions")?;
    Ok(all.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect())
}

fn doctor_is_content(device: &Device) -> Result<bool> {
    let said = device.json(&["doctor"])?;
    let probes = said["probes"].as_array().context("probes")?;
    let found = probes.iter().find(|p| p["name"].as_str().is_some_and(|name| name.contains("firewall")));
    found.context("no probe of the firewall")?["ok"].as_bool().context("ok")
}

/// `br_netfilter` passes bridged packets to a FORWARD chain that drops (`br_nf_forward_ip`). IPv6 inside a pool fails
/// then, because neighbour discovery does. A condition names a sysctl; with it IPv6 works again, and the condition
/// goes.
#[test]
fn a_dropping_forward_chain_behind_br_netfilter_is_said() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let keys = ["iptables", "ip6tables"].map(|key| format!("/proc/sys/net/bridge/bridge-nf-call-{key}"));
    let set = |value: &str| device.ns.run(|| Ok(keys.iter().try_for_each(|key| std::fs::write(key, value))?));
    if set("1").is_err() {
        harness::skip("a dropping FORWARD chain", "this kernel has no br_netfilter");
        return Ok(());
    }
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    ensure!(conditions(&device)?.is_empty() && doctor_is_content(&device)?, "something is wrong without a firewall");
    for family in ["ip", "ip6"] {
        nft(&device, &format!("add table {family} filter"))?;
        nft(
            &device,
            &format!("add chain {family} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}"),
        )?;
    }
    let said = conditions(&device)?;
    for key in ["bridge-nf-call-iptables=0", "bridge-nf-call-ip6tables=0"] {
        ensure!(said.iter().any(|c| c.contains(key) && c.contains("FORWARD")), "{key}: {said:?}");
    }
    ensure!(!doctor_is_content(&device)?, "doctor sees nothing");
    ensure!(a.ns.ping(b.v6, 1).is_err(), "neighbour discovery passes: there is nothing to say");
    set("0")?;
    for addr in b.addresses() {
        eventually(SOON, || a.ns.ping(addr, 1))?;
    }
    ensure!(conditions(&device)?.is_empty() && doctor_is_content(&device)?, "still said: {:?}", conditions(&device)?);
    Ok(())
}

/// An input chain drops what it does not know, as after `iptables -P INPUT DROP` or with a distribution's firewall.
/// DHCP, DNS and neighbour discovery of containers are lost, unless rules name the pools' bridges.
#[test]
fn a_dropping_input_chain_is_said_until_rules_name_the_bridges() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    nft(&device, "add table inet host")?;
    nft(&device, "add chain inet host input { type filter hook input priority 0; policy drop; }")?;
    let said = conditions(&device)?;
    ensure!(said.len() == 1 && said[0].contains("inet host input") && said[0].contains("pvbr3, pvbr4"), "{said:?}");
    nft(&device, "insert rule inet host input iifname pvbr3 accept")?;
    let said = conditions(&device)?;
    ensure!(said.len() == 1 && said[0].contains("names pvbr4:"), "{said:?}");
    nft(&device, "insert rule inet host input iifname pvbr4 accept")?;
    ensure!(conditions(&device)?.is_empty(), "{:?}", conditions(&device)?);
    nft(&device, "add chain inet host other { type filter hook output priority 0; policy accept; }")?;
    ensure!(conditions(&device)?.is_empty(), "{:?}", conditions(&device)?);
    Ok(())
}

/// With two uplinks, a strict reverse path filter (RFC 3704) drops packets of one uplink whose answers leave by the
/// other.
#[test]
fn a_strict_reverse_path_filter_is_said_with_several_uplinks() -> Result<()> {
    let mut config = configs::masqueraded();
    config["network"]["uplinks"] = json!([UPLINK, "up1"]);
    let mut device = Device::new(&config)?;
    let _out = device.outside(UPLINK, &DEVICE, &HOST)?;
    let _beside = device.outside("up1", &["198.51.100.1/24"], &["198.51.100.9/24"])?;
    device.start()?;
    let set = |value: &str| {
        device.ns.run(|| {
            for link in ["all", UPLINK, "up1"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), value)?;
            }
            Ok(())
        })
    };
    set("2")?;
    ensure!(conditions(&device)?.is_empty(), "{:?}", conditions(&device)?);
    set("1")?;
    let said = conditions(&device)?;
    ensure!(said.len() == 1 && said[0].contains("up0, up1: rp_filter is strict"), "{said:?}");
    Ok(())
}
