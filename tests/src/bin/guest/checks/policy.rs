//! Rules, put in force and taken back by a reload.

use super::forwarding::talks;
use super::life::{exchange, greeted};
use crate::lab::{self, HOSTS, Lab};
use crate::programs;
use anyhow::{Context, Result, ensure};
use harness::{echo, patience};
use pv_net_common::names;
use serde_json::json;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PORT: u16 = 7500;

/// A connection to `at` is refused, and counted.
fn denied(lab: &Lab, at: SocketAddr) -> Result<()> {
    let grown = lab.counted(|| {
        let tcp = lab.a.ns.run(|| Ok(TcpStream::connect_timeout(&at, patience(Duration::from_secs(2))).err()))?;
        ensure!(tcp.as_ref().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused), "{at}: {tcp:?}");
        Ok(())
    })?;
    ensure!(grown["policy-denied"] > 0, "{at}: counted {grown:?}");
    Ok(())
}

/// What a rule denies is refused at once, also in flows that are older than the rule. Without the rule it passes again.
pub fn denies(lab: &mut Lab) -> Result<()> {
    let mut config = lab::config();
    let servers = HOSTS.map(|(host, _)| SocketAddr::new(host, PORT));
    for server in servers {
        echo::serve(&lab.outside, server.ip(), PORT)?;
    }
    let mut old = greeted(&lab.a.ns, servers[0])?;
    exchange(&mut old, b"before the rule")?;
    config["network"]["policies"] = json!([
        {"from": {"container": "a"}, "to": "world", "ports": [format!("tcp/{PORT}")], "action": "deny"},
        {"from": {"container": "d"}, "to": {"container": "e"}, "ports": ["udp/1-6999"], "action": "deny"},
    ]);
    lab.reload(&config)?;
    let asked = lab.get(&format!("/policy/verdict?from=a&to={}&proto=tcp&port={PORT}", servers[0].ip()))?;
    ensure!(asked["verdict"] == "deny", "{asked}");
    programs::are_loaded([names::PROG_POLICY_PROBE])?;
    programs::tell()?;
    for server in servers {
        denied(lab, server)?;
        // The rule denies this port only, and this container only.
        echo::udp(&lab.a.ns, server, b"not TCP").with_context(|| format!("UDP to {server}"))?;
        echo::tcp(&lab.b.ns, server, b"not a").with_context(|| format!("{server} from another container"))?;
    }
    ensure!(exchange(&mut old, b"after the rule").is_err(), "a flow from before the rule goes on");
    talks(&lab.d, &lab.e, PORT + 1).context("beside the rules")?;

    lab.reload(&lab::config())?;
    for server in servers {
        echo::tcp(&lab.a.ns, server, b"allowed again").with_context(|| format!("{server}, no rule any more"))?;
    }
    Ok(())
}
