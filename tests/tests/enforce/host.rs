//! `host_access`: what containers reach on the device, and that the device always reaches them.

use crate::lab::{self, Lab, PORT, PUBLISHED, gateway, uplink};
use crate::probe::{Traffic, check};
use anyhow::{Context, Result};
use harness::echo;
use serde_json::json;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn containers_reach_of_the_device_what_their_pool_may() -> Result<()> {
    let lab = Lab::new(&lab::config(json!([])))?;
    for addr in gateway() {
        for port in [67, 547] {
            echo::serve(&lab.device.ns, addr, port)?;
        }
    }
    let services = [Traffic::Tcp(53), Traffic::Udp(53), Traffic::Udp(67), Traffic::Udp(547), Traffic::Ping];
    let ports = [Traffic::Tcp(PUBLISHED), Traffic::Udp(PUBLISHED)];
    let rest = [Traffic::Tcp(PORT), Traffic::Udp(PORT), Traffic::Tcp(67), Traffic::Tcp(547)];
    for (access, may_services, may_rest) in [("none", false, false), ("services", true, false), ("all", true, true)] {
        let mut config = lab::config(json!([]));
        config["network"]["pools"]["internal"]["host_access"] = json!(access);
        lab.reload(&config)?;
        let cases = services.map(|t| (t, may_services)).into_iter();
        let cases = cases.chain(ports.map(|t| (t, may_services))).chain(rest.map(|t| (t, may_rest)));
        for (traffic, may) in cases {
            for to in gateway() {
                check(&lab.b.ns, to, traffic, may, true).context(access)?;
            }
        }
        for to in uplink() {
            check(&lab.b.ns, to, Traffic::Tcp(PORT), may_rest, true).context(access)?;
            check(&lab.b.ns, to, Traffic::Udp(PUBLISHED), may_services, true).context(access)?;
        }
        // Answers to the device's own connections arrive, whatever containers may open.
        for to in lab.b.addresses() {
            for traffic in [Traffic::Tcp(PORT), Traffic::Udp(PORT), Traffic::Ping] {
                check(&lab.device.ns, to, traffic, true, false).context(access)?;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_link_local_address_is_the_device_as_well() -> Result<()> {
    let mut config = lab::config(json!([]));
    config["network"]["pools"]["internal"]["host_access"] = json!("none");
    let lab = Lab::new(&config)?;
    // Addresses are not used before duplicate address detection has finished.
    let said = harness::eventually(harness::SOON, || {
        let said = lab.device.ns.ip("-6 -o addr show dev pvbr3 scope link")?;
        anyhow::ensure!(!said.is_empty() && !said.contains("tentative"), "{said}");
        Ok(said)
    })?;
    lab.b.ns.settle()?;
    let addr = said.split_whitespace().nth(3).and_then(|a| a.split('/').next()).context("no link-local address")?;
    let to = std::net::SocketAddrV6::new(addr.parse()?, PORT + 1, 0, 0);
    lab.device.ns.run(|| {
        let listener = std::net::TcpListener::bind(("::", to.port()))?;
        std::thread::spawn(move || listener.incoming().count());
        Ok(())
    })?;
    let connect = || {
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let at = std::net::SocketAddrV6::new(*to.ip(), to.port(), 0, index).into();
        Ok(std::net::TcpStream::connect_timeout(&at, echo::PATIENCE).err().map(|e| e.kind()))
    };
    let refused = lab.b.ns.run(connect)?;
    anyhow::ensure!(refused == Some(std::io::ErrorKind::ConnectionRefused), "under none: {refused:?}");
    config["network"]["pools"]["internal"]["host_access"] = json!("all");
    lab.reload(&config)?;
    let open = lab.b.ns.run(connect)?;
    anyhow::ensure!(open.is_none(), "under all: {open:?}");
    Ok(())
}
