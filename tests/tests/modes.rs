//! Containers without a network of their own: `mode: host`, `mode: none`, and those that share a namespace.

use anyhow::{Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS, UPLINK};
use harness::{Device, Namespace};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A device that declares `none` and `host`, each in its mode.
fn device(config: &Value) -> Result<Device> {
    let mut device = Device::new(config)?;
    for mode in ["none", "host"] {
        let dir = device.file("containers").join(mode);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("run.json"), json!({"name": mode, "network": {"mode": mode}}).to_string())?;
    }
    device.start()?;
    Ok(device)
}

/// They get no interface, no address and no record, whoever asks, and the daemon does not wait for their namespaces.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn there_is_nothing_to_attach() -> Result<()> {
    let device = device(&configs::two_pools())?;
    let ns = Namespace::new("none")?;
    let path = ns.path().display().to_string();
    for mode in ["none", "host"] {
        let refused = device.cli(&["attach", mode, "--netns", &path]);
        ensure!(refused.code == Some(1) && refused.stderr.contains(&format!("network.mode: {mode}")), "{refused:?}");
    }
    // Nor by a run.json that comes with the request.
    let run = device.file("run.json");
    fs::write(&run, json!({"name": "other", "network": {"mode": "none"}}).to_string())?;
    let refused = device.cli(&["attach", "other", "--netns", &path, "--run", &run.display().to_string()]);
    ensure!(refused.code == Some(1) && refused.stderr.contains("network.mode"), "{refused:?}");
    let links = ns.ip("-o link show")?;
    ensure!(links.lines().count() == 1, "an interface: {links}");
    let all = device.json(&["containers"])?;
    let is_idle = |c: &Value| c["state"] == "declared" && c["interfaces"] == json!([]) && c["conditions"] == json!([]);
    ensure!(all.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(is_idle)), "{all}");
    ensure!(device.json(&["leases"])? == json!([]), "leases");
    ensure!(device.json(&["status"])?["conditions"] == json!([]), "conditions");
    // Ports are published by containers in pools alone.
    let wrong = json!({"name": "host", "network": {"mode": "host", "ports": ["80:80"]}});
    fs::write(&run, wrong.to_string())?;
    let refused = device.cli(&["check", &run.display().to_string()]);
    ensure!(refused.code == Some(2) && refused.stderr.contains("network.ports"), "{refused:?}");
    Ok(())
}

/// A namespace is one container's: a second one would have its rights, and change its routes. Who only shares the namespace
/// needs no attach.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn two_containers_cannot_be_attached_in_one_namespace() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let web = device.attach("web", "internal")?;
    let path = web.ns.path().display().to_string();
    let run = device.file("run.json");
    let before = (web.ns.ip("-o addr show")?, device.json(&["leases"])?);
    for (pool, interface) in [("internal", "eth0"), ("internal", "eth1"), ("management", "eth1")] {
        let interfaces = json!([{"pool": pool, "name": interface}]);
        fs::write(&run, json!({"name": "sidecar", "network": {"interfaces": interfaces}}).to_string())?;
        let refused = device.cli(&["attach", "sidecar", "--netns", &path, "--run", &run.display().to_string()]);
        ensure!(refused.code == Some(1) && refused.stderr.contains("is container web's"), "{refused:?}");
    }
    ensure!((web.ns.ip("-o addr show")?, device.json(&["leases"])?) == before, "something is left");
    // When that one is gone, the namespace is free for another.
    device.cli(&["detach", "web"]).ok()?;
    device.cli(&["attach", "sidecar", "--netns", &path, "--run", &run.display().to_string()]).ok()?;
    web.ns.ping("10.0.4.1", 1)
}

/// What runs in the device's namespace is the device: rules about `host` are about it, it has the device's ports, and
/// containers reach it as far as `host_access` says.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_mode_host_a_container_is_the_device() -> Result<()> {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!([UPLINK]);
    config["network"]["pools"]["management"]["host_access"] = json!("all");
    config["network"]["policies"] = json!([{"from": "host", "to": {"container": "shut"}, "action": "deny"}]);
    let device = device(&config)?;
    let outside = device.outside(UPLINK, &DEVICE, &HOST)?;
    let (web, shut) = (device.attach("web", "internal")?, device.attach("shut", "internal")?);
    let manager = device.attach("manager", "management")?;
    let serve = |ns: &Namespace| {
        ns.run(|| {
            let listener = TcpListener::bind("[::]:7000")?;
            std::thread::spawn(move || listener.incoming().flatten().for_each(|mut s| drop(s.write_all(b"x"))));
            Ok(())
        })
    };
    for ns in [&web.ns, &shut.ns, &device.ns] {
        serve(ns)?;
    }
    let reaches = |from: &Namespace, address: IpAddr| {
        let to = SocketAddr::new(address, 7000);
        from.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()))
    };
    for (from, gateways, is_open) in
        [(&web.ns, ["10.0.3.1", "fd00:5056:0:3::1"], false), (&manager.ns, ["10.0.4.1", "fd00:5056:0:4::1"], true)]
    {
        for gateway in gateways {
            ensure!(reaches(from, gateway.parse()?)? == is_open, "{gateway}");
        }
    }
    for (container, is_open) in [(&web, true), (&shut, false)] {
        for address in container.addresses() {
            ensure!(reaches(&device.ns, address)? == is_open, "from the device to {address}");
        }
    }
    // Its ports are the device's own, without a published one.
    for (_, address) in HOSTS {
        ensure!(reaches(&outside, address)?, "from outside to {address}");
    }
    Ok(())
}
