//! Refused requests: one clear error each, and nothing is changed.

use super::*;
use harness::{Reply, Snapshot, unix_http};

/// Everything that a request could change.
fn everything(lab: &Lab) -> Result<(Snapshot, Vec<u8>, Value, String)> {
    let state = std::fs::read(lab.device.file("state").join("state.json"))?;
    let ns = &lab.web.ns;
    let inside =
        format!("{}{}{}{}", ns.ip("-br addr")?, ns.ip("route show table all")?, ns.ip("rule")?, ns.ip("-6 rule")?);
    Ok((Snapshot::of(&lab.device)?, state, lab.device.json(&["leases"])?, inside))
}

#[test]
fn a_refused_change_of_an_interface_changes_nothing() -> Result<()> {
    let mut config = configs::two_pools();
    config["network"]["pools"]["v4only"] = json!({"type": "bridge", "bridge": "pvbr9", "subnet": "10.0.9.0/24"});
    let mut run = run();
    run["network"]["interfaces"][0]["default_route"] = json!(true);
    let lab = lab_of(config, &run)?;
    let taken = lab.device.attach("a", "management")?;
    lab.web.ns.ip("link add mine type bridge")?;
    let before = everything(&lab)?;
    let add =
        |words: &[&str]| [&["attach", "web", "--interface"], words].concat().into_iter().map(str::to_owned).collect();
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let (taken4, taken6) = (taken.v4.to_string(), taken.v6.to_string());
    let cases: Vec<(&str, Vec<String>, i32, Vec<&str>)> = vec![
        (
            "an unknown pool",
            add(&["eth2", "--pool", "nope"]),
            2,
            vec!["\"nope\"", "no such pool", "internal, management"],
        ),
        ("a name taken by pv-net", add(&["eth1", "--pool", "internal"]), 1, vec!["eth1", "is in pool management"]),
        ("a name taken by the container", add(&["mine", "--pool", "internal"]), 1, vec!["mine", "exists already"]),
        ("the loopback's name", add(&["lo", "--pool", "internal"]), 2, vec!["loopback"]),
        ("no name", add(&["a/b", "--pool", "internal"]), 2, vec!["a/b"]),
        (
            "a second default route",
            add(&["eth2", "--pool", "internal", "--default-route"]),
            1,
            vec!["eth0", "default route already"],
        ),
        (
            "an address taken",
            add(&["eth2", "--pool", "management", "--ipv4-address", &taken4]),
            1,
            vec![&taken4, "taken by"],
        ),
        (
            "an IPv6 address taken",
            add(&["eth2", "--pool", "management", "--ipv6-address", &taken6]),
            1,
            vec![&taken6, "taken by"],
        ),
        (
            "an address outside",
            add(&["eth2", "--pool", "internal", "--ipv4-address", "10.0.4.9"]),
            2,
            vec!["10.0.4.9", "outside"],
        ),
        (
            "a family that the pool lacks",
            add(&["eth2", "--pool", "v4only", "--ipv6-address", "fd00::9"]),
            2,
            vec!["fd00::9", "no IPv6"],
        ),
        (
            "another address than it has",
            add(&["eth1", "--pool", "management", "--ipv4-address", "10.0.4.99"]),
            1,
            vec!["eth1", "has 10.0.4."],
        ),
        (
            "a container that is not attached",
            words(&["attach", "db", "--interface", "eth1", "--pool", "internal"]),
            1,
            vec!["db", "not attached"],
        ),
        (
            "no such interface",
            words(&["detach", "web", "--interface", "eth7"]),
            1,
            vec!["no interface eth7", "eth0, eth1"],
        ),
        (
            "the only interface",
            words(&["detach", "a", "--interface", "eth0"]),
            1,
            vec!["its only one", "pv-net detach a"],
        ),
        (
            "another pool for the only interface",
            words(&["attach", "a", "--interface", "eth0", "--pool", "internal"]),
            1,
            vec!["is in pool management", "pv-net detach a\n"],
        ),
        ("no such container", words(&["detach", "db", "--interface", "eth0"]), 1, vec!["db", "not attached"]),
        (
            "a namespace and an interface",
            words(&["attach", "web", "--netns", "/run/netns/x", "--interface", "eth2", "--pool", "internal"]),
            2,
            vec!["--interface"],
        ),
        ("no pool", add(&["eth2"]), 2, vec!["--pool"]),
    ];
    for (what, words, code, parts) in cases {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Reply { code: got, stderr, .. } = lab.device.cli(&words);
        ensure!(got == Some(code), "{what}: exit status {got:?}: {stderr}");
        ensure!(stderr.lines().filter(|l| l.starts_with("error: ")).count() == 1, "{what}: not one error: {stderr}");
        for part in parts {
            ensure!(stderr.contains(part), "{what}: no {part:?} in {stderr}");
        }
        let now = everything(&lab)?;
        ensure!(
            now == before,
            "{what}: {}\n{} became {}\n{} became {}",
            before.0.diff(&now.0),
            before.2,
            now.2,
            before.3,
            now.3
        );
    }
    Ok(())
}

/// The second interface of a new container cannot be made: the first one goes too.
#[test]
fn a_container_whose_second_interface_is_refused_has_none() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    // A bridge without ports is down.
    let _peers = [device.attach("a", "internal")?, device.attach("b", "management")?];
    let ns = Namespace::new("web")?;
    ns.ip("link add eth1 type bridge")?;
    std::fs::write(device.file("web.json"), run().to_string())?;
    let (path, file) = (ns.path().display().to_string(), device.file("web.json").display().to_string());
    let before = (Snapshot::of(&device)?, device.json(&["leases"])?, ns.ip("-br addr")?, ns.ip("rule")?);
    let reply = device.cli(&["attach", "web", "--netns", &path, "--run", &file]);
    ensure!(reply.code == Some(1) && reply.stderr.contains("interface eth1: exists already"), "{reply:?}");
    let now = (Snapshot::of(&device)?, device.json(&["leases"])?, ns.ip("-br addr")?, ns.ip("rule")?);
    ensure!(before.0.diff(&now.0).is_empty(), "{}", before.0.diff(&now.0));
    ensure!((before.1, before.2, before.3) == (now.1, now.2, now.3), "leases, addresses or rules are left");
    ns.ip("link del eth1")?;
    device.cli(&["attach", "web", "--netns", &path, "--run", &file]).ok().map(drop)
}

/// The namespace went away with all links: there is nothing to add an interface to.
#[test]
fn a_container_that_is_gone_gets_no_interface() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let web = device.attach("web", "internal")?;
    drop(web);
    harness::eventually(harness::SOON, || {
        ensure!(view(&device, "web")?["state"] == "detached", "still attached");
        Ok(())
    })?;
    let leases = device.json(&["leases"])?;
    let reply = device.cli(&["attach", "web", "--interface", "eth1", "--pool", "management"]);
    ensure!(matches!(reply.code, Some(1 | 2)) && reply.stderr.contains("container web: "), "{reply:?}");
    ensure!(device.json(&["leases"])? == leases, "a lease is left");
    Ok(())
}

#[test]
fn the_api_does_the_same() -> Result<()> {
    let lab = lab_of(configs::two_pools(), &json!({"name": "web", "network": {"pool": "internal"}}))?;
    let socket = lab.device.file("run").join("api.sock");
    let path = "/containers/web/interfaces/eth1";
    let ask = |method: &str, body: &str| unix_http::ask(&socket, method, path, body).map_err(|e| e.to_string());
    let put = |body: Value| ask("PUT", &body.to_string());
    let done = put(json!({"pool": "management", "mac_address": "02:00:00:00:00:11"}));
    ensure!(done.as_ref().is_ok_and(|view| view.contains("02:00:00:00:00:11")), "{done:?}");
    let refused = |done: &Result<String, String>, status: &str, part: &str| {
        ensure!(done.as_ref().is_err_and(|e| e.contains(status) && e.contains(part)), "{done:?}");
        Ok(())
    };
    refused(&put(json!({"pool": "management", "color": "red"})), " 400 ", "color")?;
    let done = ask("DELETE", "");
    ensure!(done.as_ref().is_ok_and(String::is_empty), "{done:?}");
    refused(&ask("DELETE", ""), " 404 ", "no interface eth1")?;
    Ok(())
}
