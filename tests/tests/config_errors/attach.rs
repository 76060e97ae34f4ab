//! Refused attaches: nothing is left half done, and other containers do not notice.

use super::bad_text;
use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Reply, Snapshot, configs};
use serde_json::{Value, json};

/// A device with a container that must not notice what happens to others.
struct Lab {
    device: Device,
    web: harness::Container,
    spare: Namespace,
}

fn lab() -> Result<Lab> {
    let device = Device::started(&configs::two_pools())?;
    let web = device.attach_run(&json!({"name": "web", "network": {"interfaces": [
        {"pool": "internal", "ipv4_address": "10.0.3.7", "ipv6_address": "fd00:5056:0:3::7",
         "mac_address": "02:00:0a:00:03:07"}]}}))?;
    Ok(Lab { device, web, spare: Namespace::new("spare")? })
}

impl Lab {
    /// Everything that an attach changes.
    fn everything(&self) -> Result<(Snapshot, Vec<u8>, Value, String)> {
        let state = std::fs::read(self.device.file("state").join("state.json"))?;
        let inside = format!("{}{}", self.spare.ip("-o link")?, self.spare.ip("-o route")?);
        Ok((Snapshot::of(&self.device)?, state, self.device.json(&["leases"])?, inside))
    }

    /// Attaches the spare namespace as `name`, with these words.
    fn attach(&self, name: &str, words: &[&str]) -> Reply {
        let path = self.spare.path().display().to_string();
        self.device.cli(&[&["attach", name, "--netns", &path], words].concat())
    }
}

#[test]
fn a_container_that_is_refused_leaves_nothing_and_nobody_notices() -> Result<()> {
    let lab = lab()?;
    lab.web.ns.ping("10.0.3.1", 1)?;
    let before = lab.everything()?;
    let eth = |extra: Value| {
        let mut interface = json!({"pool": "internal"});
        if let (Some(all), Some(extra)) = (interface.as_object_mut(), extra.as_object()) {
            all.extend(extra.clone());
        }
        json!({"name": "new", "network": {"interfaces": [interface]}})
    };
    let at = "network.interfaces[0]";
    for (what, run, code, parts) in [
        ("an unknown pool", eth(json!({"pool": "nope"})), 2, vec![at, "\"nope\"", "internal, management"]),
        ("outside", eth(json!({"ipv4_address": "10.0.9.9"})), 2, vec![at, "\"10.0.9.9\"", "outside 10.0.3.0/24"]),
        ("the gateway", eth(json!({"ipv4_address": "10.0.3.1"})), 2, vec![at, "\"10.0.3.1\"", "gateway"]),
        ("the network", eth(json!({"ipv4_address": "10.0.3.0"})), 2, vec![at, "\"10.0.3.0\"", "network"]),
        ("broadcast", eth(json!({"ipv4_address": "10.0.3.255"})), 2, vec![at, "\"10.0.3.255\"", "broadcast"]),
        ("outside, IPv6", eth(json!({"ipv6_address": "fd01::9"})), 2, vec![at, "\"fd01::9\"", "outside"]),
        ("taken", eth(json!({"ipv4_address": "10.0.3.7"})), 1, vec!["10.0.3.7", "taken by", "web"]),
        ("taken, IPv6", eth(json!({"ipv6_address": "fd00:5056:0:3::7"})), 1, vec!["fd00:5056:0:3::7", "web"]),
        ("MAC taken", eth(json!({"mac_address": "02:00:0a:00:03:07"})), 1, vec!["02:00:0a:00:03:07", "web"]),
        (
            "two default routes",
            json!({"name": "new", "network": {"pool": "internal", "interfaces": [
            {"default_route": true}, {"default_route": true}]}}),
            2,
            vec!["[1].default_route", "interfaces[0]"],
        ),
        (
            "its second interface",
            json!({"name": "new", "network": {"interfaces": [
            {"pool": "internal"}, {"pool": "management", "ipv4_address": "10.0.4.1"}]}}),
            2,
            vec!["network.interfaces[1].ipv4_address", "10.0.4.1"],
        ),
        (
            "its second interface, taken",
            json!({"name": "new", "network": {"interfaces": [
            {"pool": "management"}, {"pool": "internal", "ipv4_address": "10.0.3.7"}]}}),
            1,
            vec!["10.0.3.7", "web"],
        ),
        (
            "the loopback's name",
            json!({"name": "new", "network": {"interfaces": [
            {"pool": "management"}, {"pool": "internal", "name": "lo"}]}}),
            2,
            vec!["[1].name", "loopback"],
        ),
        (
            "another name",
            json!({"name": "other", "network": {"pool": "internal"}}),
            2,
            vec!["name", "\"other\"", "new"],
        ),
    ] {
        let file = lab.device.file("new.json");
        std::fs::write(&file, run.to_string())?;
        let reply = lab.attach("new", &["--run", &file.display().to_string()]);
        ensure!(reply.code == Some(code), "{what}: {reply:?}");
        // Errors about the file name the file; errors about the device's state name the container.
        let begins = [format!("error: {}: ", file.display()), "error: container new: ".to_owned()];
        ensure!(begins.iter().any(|b| reply.stderr.starts_with(b)), "{what}: {}", reply.stderr);
        for part in [&["\nhelp: "], parts.as_slice()].concat() {
            ensure!(reply.stderr.contains(part), "{what}: no {part:?} in: {}", reply.stderr);
        }
        let now = lab.everything()?;
        ensure!(now == before, "{what}: {}\n{} became {}", before.0.diff(&now.0), before.2, now.2);
    }
    let bad = lab.device.file("bad.json");
    for case in bad_text() {
        std::fs::write(&bad, &case.text)?;
        let reply = lab.attach("new", &["--run", &bad.display().to_string()]);
        ensure!(reply.code == Some(2) && reply.stderr.contains("bad.json"), "{}: {reply:?}", case.name);
        ensure!(lab.everything()? == before, "{}: something changed", case.name);
    }
    lab.web.ns.ping("fd00:5056:0:3::1", 1)?;
    // The refused container can be attached afterwards, with an address that nobody else has.
    lab.attach("new", &["--pool", "internal"]).ok()?;
    lab.spare.ping(lab.web.v4, 1)?;
    Ok(())
}

#[test]
fn an_attach_that_cannot_be_is_refused() -> Result<()> {
    let lab = lab()?;
    let before = lab.everything()?;
    let own = lab.device.ns.path().display().to_string();
    let attach = |words: &[&str]| lab.device.cli(&[&["attach"], words].concat());
    for (what, reply, code, part) in [
        ("a container of that name", lab.attach("web", &["--pool", "internal"]), 1, "is attached already"),
        ("an undeclared one", lab.attach("new", &[]), 2, "no run.json is declared"),
        ("a bad name", lab.attach("a/b", &["--pool", "internal"]), 2, "'/'"),
        ("a bad pool name", lab.attach("new", &["--pool", "a b"]), 2, "' '"),
        ("no namespace", attach(&["new", "--netns", "/run/netns/pvt-none", "--pool", "internal"]), 2, "No such file"),
        (
            "a plain file",
            attach(&["new", "--netns", "/etc/hostname", "--pool", "internal"]),
            2,
            "not a network namespace",
        ),
        ("the device's own", attach(&["new", "--netns", &own, "--pool", "internal"]), 2, "the device's own"),
        ("no process", attach(&["new", "--pid", "4194305", "--pool", "internal"]), 2, "No such file"),
        ("neither", attach(&["new", "--pool", "internal"]), 2, "--netns"),
    ] {
        ensure!(reply.code == Some(code), "{what}: {reply:?}");
        ensure!(reply.stderr.contains("error: ") && reply.stderr.contains(part), "{what}: {}", reply.stderr);
        let now = lab.everything()?;
        ensure!(now == before, "{what}: {}", before.0.diff(&now.0));
    }
    // The name inside the namespace is taken, which the kernel tells only when the link is made.
    lab.spare.ip("link add eth0 type veth peer name other")?;
    let before = lab.everything()?;
    let reply = lab.attach("new", &["--pool", "internal"]);
    ensure!(reply.code == Some(1) && reply.stderr.contains("eth0") && reply.stderr.contains("help: "), "{reply:?}");
    let now = lab.everything()?;
    ensure!(now.0 == before.0 && now.2 == before.2 && now.3 == before.3, "{}", before.0.diff(&now.0));
    lab.web.ns.ping("10.0.3.1", 1)
}

#[test]
fn a_declaration_that_is_wrong_is_a_condition_and_touches_nobody_else() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let declare = |name: &str, text: &[u8]| -> Result<()> {
        let dir = device.file("containers").join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(std::fs::write(dir.join("run.json"), text)?)
    };
    let fixed = |name: &str| {
        json!({"name": name, "network": {"interfaces": [{"pool": "internal", "ipv4_address": "10.0.3.9"}]}}).to_string()
    };
    declare("good", fixed("good").as_bytes())?;
    declare("late", fixed("late").as_bytes())?;
    declare("broken", b"{")?;
    declare("binary", b"\xff")?;
    declare("poor", br#"{"network": {"pool": "nope"}}"#)?;
    declare("other", br#"{"name": "else", "network": {"pool": "internal"}}"#)?;
    declare("bad name", br#"{"network": {"pool": "internal"}}"#)?;
    device.start()?;
    let status = device.json(&["status"])?;
    let conditions = status["conditions"].as_array().context("conditions")?;
    let conditions: Vec<&str> = conditions.iter().filter_map(Value::as_str).collect();
    for (dir, part) in [
        ("late", "10.0.3.9 is taken by"),
        ("broken", "EOF"),
        ("binary", "UTF-8"),
        ("poor", "no such pool"),
        ("other", "this is the file of other"),
        ("bad name", "' '"),
    ] {
        let file = device.file("containers").join(dir).join("run.json").display().to_string();
        let there = conditions.iter().filter(|c| c.starts_with(&file) && c.contains(part)).count();
        ensure!(there == 1, "{dir}: {conditions:#?}");
    }
    ensure!(conditions.len() == 6, "{conditions:#?}");
    let good = Namespace::new("good")?;
    device.cli(&["attach", "good", "--netns", &good.path().display().to_string()]).ok()?;
    good.ping("10.0.3.1", 1)?;
    let late = device.cli(&["attach", "late", "--netns", &Namespace::new("late")?.path().display().to_string()]);
    ensure!(late.code == Some(1) && late.stderr.contains("10.0.3.9"), "{late:?}");
    Ok(())
}
