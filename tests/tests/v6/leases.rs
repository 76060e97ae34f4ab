//! DHCPv6, as `dhclient`, `dhcpcd` and containers ask for it.

use crate::host::{GATEWAY, Lab, PREFIX, config};
use anyhow::{Context, Result, ensure};
use harness::{Namespace, Process, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;

const RANGE: [&str; 2] = ["fd00:5056:0:3::d000", "fd00:5056:0:3::dfff"];

fn leasing(lease_time: &str) -> Value {
    let mut config = config(json!({"mode": "stateful"}));
    config["network"]["pools"]["internal"]["dhcp6"] =
        json!({"range": RANGE, "lease_time": lease_time, "ntp": ["fd00:5056:0:3::123"]});
    config
}

/// A script that notes the environment that a client calls it with, and the file that it notes it in.
fn noting(folder: &Path) -> Result<(String, std::path::PathBuf)> {
    let script = folder.join("script");
    // What a client's own script does with an address.
    let text = "#!/bin/sh\nenv >> \"$0.said\"\n\
        [ -n \"$new_ip6_address\" ] && ip -6 addr replace $new_ip6_address/128 dev $interface nodad\nexit 0\n";
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok((script.display().to_string(), folder.join("script.said")))
}

/// `dhclient -6` with its files in `folder`.
fn dhclient(host: &Namespace, folder: &Path, words: &[&str]) -> Result<String> {
    let (script, said) = noting(folder)?;
    std::fs::write(folder.join("conf"), "request dhcp6.name-servers, dhcp6.domain-search;\n")?;
    let file = |name: &str| folder.join(name).display().to_string();
    let mut command = host.command("dhclient");
    command.args(["-6", "-v", "-cf", &file("conf"), "-lf", &file("leases"), "-pf", &file("pid"), "-sf", &script]);
    command.args(words).arg("eth0").stderr(std::process::Stdio::piped());
    let client = Process::start(&mut command)?;
    client.finish(SOON)?;
    Ok(std::fs::read_to_string(said).unwrap_or_default())
}

fn leased(said: &str) -> Result<String> {
    let found = said.lines().rev().find_map(|line| line.strip_prefix("new_ip6_address="));
    Ok(found.with_context(|| said.to_owned())?.to_owned())
}

fn in_range(address: &str) -> Result<()> {
    let parsed = |text: &str| text.parse::<std::net::Ipv6Addr>().with_context(|| text.to_owned());
    ensure!((parsed(RANGE[0])?..=parsed(RANGE[1])?).contains(&parsed(address)?), "{address}");
    Ok(())
}

fn count(lab: &Lab, kind: &str, result: &str) -> Result<u64> {
    lab.metric(&format!("pv_net_dhcp6_messages_total{{type=\"{kind}\",result=\"{result}\"}}"))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn dhclient_has_the_same_address_whatever_becomes_of_the_daemon() -> Result<()> {
    let mut lab = Lab::new(&leasing("1h"))?;
    let host = lab.host("h", "0")?;
    host.settle()?;
    let folder = tempfile::tempdir()?;
    let said = dhclient(&host, folder.path(), &["-1"])?;
    let address = leased(&said)?;
    in_range(&address)?;
    ensure!(said.contains("reason=BOUND6"), "{said}");
    ensure!(said.contains(&format!("new_dhcp6_name_servers={GATEWAY}")), "{said}");
    ensure!(said.contains("new_dhcp6_domain_search=pv.local."), "{said}");
    // What was answered is on the disk; the next daemon is the same server to the client, which confirms or renews.
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    lab.router()?;
    stopped(folder.path())?;
    let folder_said = dhclient(&host, folder.path(), &["-1"])?;
    ensure!(leased(&folder_said)? == address, "{folder_said}");
    // Another client gets another one; and who releases it gives it back.
    let other = lab.host("o", "0")?;
    other.settle()?;
    let others = tempfile::tempdir()?;
    let second = leased(&dhclient(&other, others.path(), &["-1"])?)?;
    ensure!(second != address, "{second} for both");
    stopped(others.path())?;
    dhclient(&other, others.path(), &["-r"])?;
    eventually(SOON, || {
        ensure!(count(&lab, "release", "answered")? > 0, "{}", lab.metrics()?);
        Ok(())
    })?;
    stopped(folder.path())?;
    Ok(())
}

/// Ends the client that stays behind.
fn stopped(folder: &Path) -> Result<()> {
    let Ok(pid) = std::fs::read_to_string(folder.join("pid")) else { return Ok(()) };
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    eventually(SOON, || {
        ensure!(nix::sys::signal::kill(pid, None).is_err(), "dhclient goes on");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_short_lease_is_renewed() -> Result<()> {
    let lab = Lab::new(&leasing("10s"))?;
    let host = lab.host("h", "0")?;
    host.settle()?;
    let folder = tempfile::tempdir()?;
    let address = leased(&dhclient(&host, folder.path(), &["-1"])?)?;
    let said = eventually(SOON, || {
        let said = std::fs::read_to_string(folder.path().join("script.said"))?;
        ensure!(said.contains("reason=RENEW6"), "{said}");
        Ok(said)
    });
    stopped(folder.path())?;
    ensure!(leased(&said?)? == address);
    ensure!(count(&lab, "renew", "answered")? > 0, "{}", lab.metrics()?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn dhcpcd_learns_by_an_advertisement_that_it_has_to_ask() -> Result<()> {
    let lab = Lab::new(&leasing("1h"))?;
    let host = lab.host("h", "0")?;
    let folder = tempfile::tempdir()?;
    let (script, said) = noting(folder.path())?;
    let line = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib/dhcpcd && exec dhcpcd -6 -B -1 -d \
         -w -f /dev/null -c {script} eth0"
    );
    let mut client = Process::start(host.command("unshare").args(["-m", "sh", "-c", &line]))?;
    let bound = eventually(SOON, || {
        let said = std::fs::read_to_string(&said)?;
        ensure!(said.contains("reason=BOUND6"), "{said}");
        Ok(said)
    });
    let _ = client.signal(Signal::SIGTERM);
    eventually(SOON, || {
        ensure!(client.has_ended()?, "dhcpcd goes on");
        Ok(())
    })?;
    let bound = bound?;
    let found = bound.lines().find_map(|line| line.strip_prefix("new_dhcp6_ia_na1_ia_addr1="));
    in_range(found.with_context(|| bound.clone())?)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_is_given_the_address_that_it_has() -> Result<()> {
    let lab = Lab::new(&leasing("1h"))?;
    let a = lab.device.attach("a", "internal")?;
    let folder = tempfile::tempdir()?;
    let said = dhclient(&a.ns, folder.path(), &["-1"])?;
    stopped(folder.path())?;
    ensure!(leased(&said)? == a.v6.to_string(), "{said}");
    a.ns.ping(GATEWAY, 1)?;
    ensure!(a.v6.to_string().starts_with(PREFIX), "{}", a.v6);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_stateless_client_is_told_the_servers() -> Result<()> {
    let mut config = leasing("1h");
    config["network"]["pools"]["internal"]["ra"] = json!({"mode": "stateless"});
    config["network"]["pools"]["internal"]["dhcp6"] = json!({});
    let lab = Lab::new(&config)?;
    let host = lab.host("h", "2")?;
    crate::host::address(&host)?;
    let folder = tempfile::tempdir()?;
    let said = dhclient(&host, folder.path(), &["-S", "-1"])?;
    stopped(folder.path())?;
    ensure!(said.contains(&format!("new_dhcp6_name_servers={GATEWAY}")), "{said}");
    ensure!(count(&lab, "information-request", "answered")? > 0, "{}", lab.metrics()?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_port_that_somebody_else_has_is_a_condition() -> Result<()> {
    let lab = Lab::new(&config(json!({"mode": "stateful"})))?;
    let host = lab.host("h", "0")?;
    host.settle()?;
    let other = lab.device.ns.run(|| Ok(std::net::UdpSocket::bind("[::]:547")?))?;
    lab.reload(&leasing("1h"))?;
    let conditions = || Ok::<_, anyhow::Error>(lab.device.json(&["status"])?["conditions"].to_string());
    eventually(SOON, || {
        let now = conditions()?;
        ensure!(now.contains("dhcpv6: port 547 of pool internal: Address already in use"), "{now}");
        Ok(())
    })?;
    drop(other);
    eventually(SOON, || {
        let now = conditions()?;
        ensure!(now == "[]", "{now}");
        Ok(())
    })?;
    let folder = tempfile::tempdir()?;
    in_range(&leased(&dhclient(&host, folder.path(), &["-1"])?)?)?;
    stopped(folder.path())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_full_range_is_a_condition_until_there_is_room() -> Result<()> {
    let mut config = leasing("1h");
    let one = ["fd00:5056:0:3::d000", "fd00:5056:0:3::d000"];
    config["network"]["pools"]["internal"]["dhcp6"] = json!({"range": one, "leases_per_port": 1});
    let lab = Lab::new(&config)?;
    let (first, second) = (lab.host("h", "0")?, lab.host("o", "0")?);
    let folder = tempfile::tempdir()?;
    ensure!(leased(&dhclient(&first, folder.path(), &["-1"])?)? == one[0]);
    let (script, _) = noting(folder.path())?;
    second.settle()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut command = second.command("dhclient");
    command.args(["-6", "-d", "-lf", &file("leases2"), "-pf", &file("pid2"), "-sf", &script, "eth0"]);
    let _waits = Process::start(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()))?;
    let is_full = |wanted: bool| {
        let now = lab.device.json(&["status"])?["conditions"].to_string();
        let text = "dhcpv6: pool internal: all addresses of its DHCPv6 range are in use";
        ensure!(now.contains(text) == wanted, "{now}");
        Ok(())
    };
    eventually(SOON, || is_full(true))?;
    stopped(folder.path())?;
    dhclient(&first, folder.path(), &["-r"])?;
    eventually(SOON, || {
        ensure!(count(&lab, "request", "answered")? == 2, "{}", lab.metrics()?);
        is_full(false)
    })?;
    ensure!(count(&lab, "solicit", "no-address")? > 0, "{}", lab.metrics()?);
    stopped(folder.path())
}
