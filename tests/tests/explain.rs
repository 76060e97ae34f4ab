//! `pv-net policy`: lists, explanations, and the policy that stays in force when a new one cannot be loaded.

use anyhow::{Context, Result, ensure};
use harness::{Device, configs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn rules() -> Value {
    json!([
        {"name": "web-to-db", "from": {"container": "web"}, "to": {"container": "db"},
         "ports": ["tcp/5432", "icmp"], "action": "allow"},
        {"name": "no-lan", "from": {"pool": "internal"}, "to": {"cidr": "192.0.2.0/24"}, "action": "deny"},
        {"from": "world", "to": {"pool": "internal"}, "ports": ["udp/1000-2000"], "action": "deny"},
        {"name": "one-of-them", "from": {"container": "web"}, "to": {"cidr": "192.0.2.9"}, "action": "allow"},
    ])
}

fn config(rules: Value) -> Value {
    let mut config = configs::two_pools();
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    config["network"]["policies"] = rules;
    config
}

fn explain(device: &Device, from: &str, to: &str, traffic: &str) -> Result<Value> {
    device.json(&["policy", "explain", from, to, traffic])
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn explain_names_what_decides() -> Result<()> {
    let device = Device::started(&config(rules()))?;
    let (web, _db) = (device.attach("web", "internal")?, device.attach("db", "management")?);
    let at = |pool: &str, key: &str| Some(format!("network.pools.{pool}.{key}"));
    let rule = |n: usize| Some(format!("network.policies[{n}]"));
    let web_v4 = web.v4.to_string();
    for (from, to, traffic, verdict, name, path) in [
        ("web", "db", "tcp/5432", "allow", Some("web-to-db"), rule(0)),
        ("web", "db", "icmp", "allow", Some("web-to-db"), rule(0)),
        ("web", "db", "tcp/22", "deny", None, at("internal", "isolated")),
        ("db", "web", "tcp/5432", "deny", None, at("management", "isolated")),
        // A deny has precedence, although the allow is more specific.
        ("web", "192.0.2.9", "tcp/80", "deny", Some("no-lan"), rule(1)),
        (&web_v4, "192.0.2.9", "udp/53", "deny", Some("no-lan"), rule(1)),
        ("db", "192.0.2.9", "tcp/80", "allow", None, at("management", "nat")),
        ("world", "web", "udp/1500", "deny", None, rule(2)),
        ("2001:db8::7", "web", "udp/2000", "deny", None, rule(2)),
        ("world", "web", "udp/2001", "deny", None, None),
        ("web", "world", "tcp/443", "allow", None, at("internal", "nat")),
        ("web", "host", "udp/53", "allow", None, at("internal", "host_access")),
        ("web", "host", "tcp/22", "deny", None, at("internal", "host_access")),
        ("host", "web", "tcp/22", "allow", None, None),
    ] {
        let case = format!("{from} {to} {traffic}");
        let said = explain(&device, from, to, traffic).context(case.clone())?;
        let by = if path.as_ref().is_some_and(|p| p.contains("policies")) { "rule" } else { "default" };
        ensure!(said["verdict"] == verdict && said["decided_by"] == by, "{case}: {said}");
        ensure!(said["rule"].as_str() == name && said["path"].as_str() == path.as_deref(), "{case}: {said}");
        let file = path.is_some().then(|| device.config().display().to_string());
        ensure!(said["file"].as_str() == file.as_deref(), "{case}: {said}");
    }
    let text = device.cli(&["policy", "explain", "web", "db", "tcp/5432"]).ok()?;
    ensure!(text.starts_with(&format!("allow: web ({web_v4}) to db (")), "{text}");
    ensure!(text.contains("network.policies[0]"), "{text}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn questions_that_cannot_be_answered_say_why() -> Result<()> {
    let device = Device::started(&config(rules()))?;
    let _web = device.attach("web", "internal")?;
    for (words, part) in [
        (["nobody", "web", "tcp/80"], "\"nobody\" is no container"),
        (["web", "192.0.2.1", "tcp"], "needs a port"),
        (["web", "192.0.2.1", "tcp/0"], "not a port"),
        (["web", "192.0.2.1", "sctp/1"], "not tcp, udp or icmp"),
        (["web", "192.0.2.1", "icmp/8"], "no ports"),
        (["192.0.2.1", "fd00::1", "tcp/80"], "same family"),
    ] {
        let reply = device.cli(&[&["policy", "explain"][..], &words].concat());
        ensure!(reply.code == Some(2) && reply.stderr.starts_with("error: "), "{words:?}: {reply:?}");
        ensure!(reply.stderr.contains(part), "{words:?}: {reply:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_policy_that_does_not_fit_leaves_the_old_one_in_force() -> Result<()> {
    let device = Device::started(&config(rules()))?;
    let _containers = (device.attach("web", "internal")?, device.attach("db", "management")?);
    let list = device.json(&["policy", "list"])?;
    let rules_of = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let first = rules_of(&list).first().cloned().context("rules")?;
    ensure!(rules_of(&list).len() == 4 && rules_of(&list).iter().all(|r| r["in_force"] == true), "{list}");
    ensure!(first["from"] == json!({"container": "web"}) && first["ports"] == json!(["tcp/5432", "icmp"]), "{first}");
    let table = device.cli(&["policy", "list"]).ok()?;
    ensure!(table.contains("web-to-db") && table.contains("pool internal"), "{table}");
    ensure!(device.json(&["status"])?["generation"] == first["generation"], "{first}");

    // Ports that need 30 entries for each of five thousand networks: too many for the map.
    let net = |i: u32| format!("172.{}.{}.0/24", 16 + i / 256, i % 256);
    let large: Vec<Value> = (0..5000)
        .map(|i| json!({"from": {"container": "web"}, "to": {"cidr": net(i)}, "ports": ["tcp/1-65534"], "action": "deny"}))
        .collect();
    device.configure(&config(json!(large)))?;
    let reply = device.cli(&["reload"]);
    ensure!(reply.code == Some(2) && reply.stderr.contains("131072 is the most"), "{reply:?}");
    ensure!(reply.stderr.contains("help: "), "{reply:?}");
    ensure!(device.json(&["policy", "list"])? == list, "the list changed");
    ensure!(explain(&device, "web", "db", "tcp/5432")?["verdict"] == "allow", "the old policy went");

    device.configure(&config(json!([{"from": {"container": "web"}, "to": "world", "action": "deny"}])))?;
    device.cli(&["reload"]).ok()?;
    let list = device.json(&["policy", "list"])?;
    ensure!(rules_of(&list).len() == 1 && list[0]["generation"] != first["generation"], "{list}");
    ensure!(explain(&device, "web", "db", "tcp/5432")?["verdict"] == "deny", "the old policy stays");
    ensure!(
        explain(&device, "web", "world", "udp/53")?["path"] == "network.policies[0]",
        "the new one does not answer"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_new_daemon_takes_the_policy_over() -> Result<()> {
    let mut device = Device::started(&config(rules()))?;
    let _containers = (device.attach("web", "internal")?, device.attach("db", "management")?);
    let generation = device.json(&["status"])?["generation"].clone();
    device.stop(Signal::SIGKILL)?;
    device.start()?;
    ensure!(device.json(&["status"])?["generation"] == generation, "the flows would be decided again");
    let said = explain(&device, "web", "db", "tcp/5432")?;
    ensure!(said["rule"] == "web-to-db" && said["generation"] == generation, "{said}");
    // Another container gets the same name, and must not get the old one's rights.
    device.cli(&["detach", "web"]).ok()?;
    let _other = device.attach("other", "internal")?;
    ensure!(explain(&device, "other", "db", "tcp/5432")?["verdict"] == "deny", "an address inherited a right");
    // Changes of the file while no daemon ran are in force after the start.
    device.stop(Signal::SIGTERM)?;
    device.configure(&config(json!([])))?;
    device.start()?;
    ensure!(explain(&device, "other", "192.0.2.9", "tcp/80")?["decided_by"] == "default", "a rule outlived its file");
    ensure!(device.json(&["policy", "list"])? == json!([]));
    Ok(())
}
